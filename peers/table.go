package peers

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
)

// Mode is how many peers a device has. Its values are those of enum ovpn_mode in the kernel's
// uapi.
type Mode uint8

const (
	P2P Mode = 0 // at most one peer, which gets everything
	MP  Mode = 1 // many peers, told apart by their VPN addresses
)

// String returns the kernel's name of the mode.
func (m Mode) String() string {
	switch m {
	case P2P:
		return "p2p"
	case MP:
		return "mp"
	}
	return fmt.Sprintf("mode(%d)", uint8(m))
}

var (
	// ErrIDInUse is returned for a peer whose id another one has.
	ErrIDInUse = errors.New("peer id is in use")
	// ErrAddrInUse is returned for a VPN address that another peer has.
	ErrAddrInUse = errors.New("VPN address belongs to another peer")
	// ErrNotFound is returned for a peer that is not, or no longer, there.
	ErrNotFound = errors.New("no such peer")
)

// Table holds the peers of a device. A peer may be in one table only.
//
// The lookups (Sole and the By functions) take no lock and do not allocate. A peer that is being
// added or removed may be found one way and not the other for a moment, and may be found for a
// moment after it was removed. All methods may be called concurrently.
type Table struct {
	mode Mode
	sole atomic.Pointer[Peer] // the peer in P2P mode
	many *tables              // nil in P2P mode

	mu sync.Mutex // serialises changes, and guards what tables and peers say it does
}

// tables is what MP mode has. Lookups may read ids and the indexes; everything else, and every
// change, is guarded by Table.mu.
type tables struct {
	ids        ids
	vpn4       index[[4]byte]
	vpn6       index[[16]byte]
	transports transports
	order      dumpOrder
	count      int
}

// NewTable makes an empty table.
func NewTable(mode Mode) *Table {
	t := &Table{mode: mode}
	if mode == MP {
		t.many = new(tables)
	}
	return t
}

// Mode returns the mode that the table was made for.
func (t *Table) Mode() Mode { return t.mode }

// Sole returns the peer in P2P mode, nil if there is none. In MP mode it is always nil.
func (t *Table) Sole() *Peer { return t.sole.Load() }

// ByID returns the peer with an id, nil if there is none.
func (t *Table) ByID(id uint32) *Peer {
	if t.many != nil {
		return t.many.ids.get(id)
	}
	if p := t.sole.Load(); p != nil && p.id == id {
		return p
	}
	return nil
}

// ByVPN4 returns the peer with a VPN address, nil if there is none. In P2P mode it is always nil.
func (t *Table) ByVPN4(addr [4]byte) *Peer {
	if t.many == nil {
		return nil
	}
	return t.many.vpn4.get(addr)
}

// ByVPN6 returns the peer with a VPN address, nil if there is none. In P2P mode it is always nil.
func (t *Table) ByVPN6(addr [16]byte) *Peer {
	if t.many == nil {
		return nil
	}
	return t.many.vpn6.get(addr)
}

// ByTransport returns the UDP peer at a transport address, nil if there is none. The address's zone
// is ignored. If several peers are there it is the one that came last. It serves packets with the
// undefined peer id.
func (t *Table) ByTransport(remote netip.AddrPort) *Peer {
	key := keyOf(remote)
	if t.many != nil {
		return t.many.transports.get(key)
	}
	if p := t.sole.Load(); p != nil {
		if b := p.Binding(); b != nil && keyOf(b.Remote) == key {
			return p
		}
	}
	return nil
}

// Len returns the number of peers.
func (t *Table) Len() int {
	if t.many == nil {
		if t.sole.Load() == nil {
			return 0
		}
		return 1
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.many.count
}

// All returns the peers, in the order in which the kernel dumps them. The slice is the caller's.
func (t *Table) All() []*Peer {
	if t.many == nil {
		if p := t.sole.Load(); p != nil {
			return []*Peer{p}
		}
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.many.order.appendTo(make([]*Peer, 0, t.many.count))
}

// Add puts a peer into the table. In P2P mode it takes the place of the peer that is there, which
// is returned. In MP mode it is an error if the id is in use (ErrIDInUse) or a VPN address is
// (ErrAddrInUse), and then nothing has changed.
func (t *Table) Add(p *Peer) (replaced *Peer, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.many == nil {
		return t.sole.Swap(p), nil
	}
	if t.many.ids.get(p.id) != nil {
		return nil, ErrIDInUse
	}
	v4, v6 := p.VPN4(), p.VPN6()
	if t.many.takenBesides(p, v4, v6) {
		return nil, ErrAddrInUse
	}
	t.many.count++
	t.many.order.add(p)
	t.many.putVPN(p, v4, v6)
	if b := p.Binding(); b != nil {
		t.many.transports.put(keyOf(b.Remote), p)
	}
	t.many.ids.put(p.id, p)
	return nil, nil
}

// Remove takes a peer out of the table and reports whether it was there.
func (t *Table) Remove(p *Peer) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.many == nil {
		return t.sole.CompareAndSwap(p, nil)
	}
	if t.many.ids.get(p.id) != p {
		return false
	}
	t.many.ids.del(p.id)
	if b := p.Binding(); b != nil {
		t.many.transports.del(keyOf(b.Remote), p)
	}
	t.many.delVPN(p.VPN4(), p.VPN6())
	t.many.order.remove(p)
	t.many.count--
	return true
}

// SetVPN gives a peer other VPN addresses; unspecified or invalid is none. It is an error if the
// peer is not in the table (ErrNotFound) or another one has an address (ErrAddrInUse), and then
// nothing has changed.
func (t *Table) SetVPN(p *Peer, v4, v6 netip.Addr) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ByID(p.id) != p {
		return ErrNotFound
	}
	if t.many == nil {
		p.setVPN(v4, v6)
		return nil
	}
	v4, v6 = specified(v4), specified(v6)
	if t.many.takenBesides(p, v4, v6) {
		return ErrAddrInUse
	}
	// What stays the same is not touched, so that lookups find the peer throughout.
	was4, was6 := p.VPN4(), p.VPN6()
	if v4 == was4 {
		was4 = netip.Addr{}
	}
	if v6 == was6 {
		was6 = netip.Addr{}
	}
	t.many.putVPN(p, v4, v6)
	p.setVPN(v4, v6)
	t.many.delVPN(was4, was6)
	return nil
}

// Rebind gives a peer another binding and makes it the one that is found at its remote address,
// even if the address is the same. A peer that is not in the table gets the binding for when it is
// added.
func (t *Table) Rebind(p *Peer, b *Binding) {
	t.mu.Lock()
	defer t.mu.Unlock()
	was := p.binding.Swap(b)
	if t.many == nil || t.many.ids.get(p.id) != p {
		return
	}
	t.many.transports.move(p, was, b)
}

// SetLocal changes only the local address of a UDP peer's binding; invalid lets routing choose it.
// A peer without a binding is left alone.
func (t *Table) SetLocal(p *Peer, local netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	was := p.binding.Load()
	if was == nil {
		return
	}
	b := *was
	b.Local = local
	p.binding.Store(&b)
}

// takenBesides reports whether a peer other than p has one of the addresses.
func (m *tables) takenBesides(p *Peer, v4, v6 netip.Addr) bool {
	if v4.IsValid() {
		if owner := m.vpn4.get(v4.As4()); owner != nil && owner != p {
			return true
		}
	}
	if v6.IsValid() {
		if owner := m.vpn6.get(v6.As16()); owner != nil && owner != p {
			return true
		}
	}
	return false
}

func (m *tables) putVPN(p *Peer, v4, v6 netip.Addr) {
	if v4.IsValid() {
		m.vpn4.put(v4.As4(), p)
	}
	if v6.IsValid() {
		m.vpn6.put(v6.As16(), p)
	}
}

func (m *tables) delVPN(v4, v6 netip.Addr) {
	if v4.IsValid() {
		m.vpn4.del(v4.As4())
	}
	if v6.IsValid() {
		m.vpn6.del(v6.As16())
	}
}
