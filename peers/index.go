package peers

import (
	"hash/maphash"
	"math/bits"
	"sync/atomic"
)

// index finds peers by address: a hash table with open addressing and linear probing. K has no
// pointers, so a slot is one thing in memory.
//
// get takes no lock and may be called at any time; the other methods are serialised by the caller.
// That works because a slot gets its key before it becomes visible and keeps it for as long as its
// array lives: a deleted entry stays behind as a tombstone, which only the same key uses again.
// When too few slots are free the living entries move into a new array. A reader that is still in
// the old one sees what there was when it began.
//
// Hashing is seeded, since remote addresses are not ours to choose. The zero value is empty.
type index[K comparable] struct {
	array atomic.Pointer[slotArray[K]]
	live  int // entries
	used  int // slots that are not free: entries and tombstones
}

type slotArray[K comparable] struct {
	seed  maphash.Seed
	slots []slot[K] // a power of two, never all used
}

type slot[K comparable] struct {
	peer atomic.Pointer[Peer] // nil: free; gone: tombstone
	key  K                    // written before peer, and never again
}

// gone marks a slot whose entry was deleted.
var gone = new(Peer)

const minSlots = 8

func (x *index[K]) get(key K) *Peer {
	array := x.array.Load()
	if array == nil {
		return nil
	}
	if s := array.find(key); s != nil {
		if p := s.peer.Load(); p != gone {
			return p
		}
	}
	return nil
}

// find returns the slot that has key, nil if there is none.
func (a *slotArray[K]) find(key K) *slot[K] {
	slots := a.slots
	for i := int(maphash.Comparable(a.seed, key)); ; i++ {
		s := &slots[i&(len(slots)-1)]
		if s.peer.Load() == nil {
			return nil
		}
		if s.key == key {
			return s
		}
	}
}

// put makes key lead to p, instead of where it led before.
func (x *index[K]) put(key K, p *Peer) {
	array := x.array.Load()
	if array != nil {
		if s := array.find(key); s != nil {
			if s.peer.Load() == gone {
				x.live++
			}
			s.peer.Store(p)
			return
		}
	}
	if array == nil || (x.used+1)*4 > len(array.slots)*3 {
		array = x.rebuild()
	}
	array.insert(key, p)
	x.live++
	x.used++
}

// del makes key lead nowhere.
func (x *index[K]) del(key K) {
	array := x.array.Load()
	if array == nil {
		return
	}
	s := array.find(key)
	if s == nil || s.peer.Load() == gone {
		return
	}
	s.peer.Store(gone)
	x.live--
	if x.live == 0 {
		x.array.Store(nil)
		x.used = 0
	}
}

// rebuild moves the entries into an array that at most half of them would fill, which leaves room
// for half as many again before the next time.
func (x *index[K]) rebuild() *slotArray[K] {
	size := max(minSlots, 1<<bits.Len(uint(2*(x.live+1)-1)))
	fresh := &slotArray[K]{seed: maphash.MakeSeed(), slots: make([]slot[K], size)}
	if old := x.array.Load(); old != nil {
		for i := range old.slots {
			s := &old.slots[i]
			if p := s.peer.Load(); p != nil && p != gone {
				fresh.insert(s.key, p)
			}
		}
	}
	x.array.Store(fresh)
	x.used = x.live
	return fresh
}

// insert fills the first free slot for a key that is not there yet.
func (a *slotArray[K]) insert(key K, p *Peer) {
	for i := int(maphash.Comparable(a.seed, key)); ; i++ {
		s := &a.slots[i&(len(a.slots)-1)]
		if s.peer.Load() == nil {
			s.key = key
			s.peer.Store(p)
			return
		}
	}
}
