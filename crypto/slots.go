package crypto

import (
	"fmt"
	"sync"
	"sync/atomic"
)

// Slot names one of a peer's two key slots. Its values are those of enum ovpn_key_slot in the
// kernel's uapi.
type Slot uint8

// Packets are sealed with the key in the Primary slot. Both slots open packets.
const (
	Primary   Slot = 0
	Secondary Slot = 1
)

// String returns the kernel's name of the slot.
func (s Slot) String() string {
	switch s {
	case Primary:
		return "primary"
	case Secondary:
		return "secondary"
	}
	return fmt.Sprintf("slot(%d)", uint8(s))
}

// KeySlots holds the two keys of a peer. Nothing checks key ids: both slots may hold the same one.
// The zero value has two empty slots. It must not be copied.
//
// Reading takes no lock and may go on while the slots change; a reader that already has a key may
// finish with it.
type KeySlots struct {
	mu sync.Mutex // serialises Install, Swap and Delete
	// swaps counts Swap calls. Its lowest bit says which of keys is the primary one; the rest lets a
	// reader notice that the slots were swapped under it.
	swaps atomic.Uint32
	keys  [2]atomic.Pointer[Key]
}

// Primary returns the key to seal with, nil if there is none.
func (s *KeySlots) Primary() *Key { return s.At(Primary) }

// At returns the key in a slot, nil if it is empty.
func (s *KeySlots) At(slot Slot) *Key {
	for {
		swaps := s.swaps.Load()
		key := s.place(swaps, slot).Load()
		// Without this look, a swap and an install between the two loads could make a key appear
		// in a slot where it never was.
		if s.swaps.Load() == swaps {
			return key
		}
	}
}

// ByID returns the key to open a packet with: the primary one if it has that id, else the secondary
// one if it has, else nil. There is never a second candidate.
func (s *KeySlots) ByID(id uint8) *Key {
	swaps := s.swaps.Load()
	if key := s.place(swaps, Primary).Load(); key != nil && key.id == id {
		return key
	}
	if key := s.place(swaps, Secondary).Load(); key != nil && key.id == id {
		return key
	}
	return nil
}

// Install puts key into slot, in place of what is there.
func (s *KeySlots) Install(slot Slot, key *Key) {
	s.mu.Lock()
	s.place(s.swaps.Load(), slot).Store(key)
	s.mu.Unlock()
}

// Swap exchanges what is in the slots, either of which may be empty.
func (s *KeySlots) Swap() {
	s.mu.Lock()
	s.swaps.Add(1)
	s.mu.Unlock()
}

// Delete empties a slot. The other one stays what it is.
func (s *KeySlots) Delete(slot Slot) { s.Install(slot, nil) }

// Remove empties the slot that holds exactly this key, and reports whether there was one. Of
// several callers with the same key one gets true.
func (s *KeySlots) Remove(key *Key) bool {
	if key == nil {
		return false
	}
	return s.keys[0].CompareAndSwap(key, nil) || s.keys[1].CompareAndSwap(key, nil)
}

// place returns where the key of a slot is kept after a number of swaps.
func (s *KeySlots) place(swaps uint32, slot Slot) *atomic.Pointer[Key] {
	return &s.keys[(swaps^uint32(slot))&1]
}
