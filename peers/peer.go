package peers

import (
	"net/netip"
	"sync/atomic"

	"ovpn-go/crypto"
)

// Config is what a peer is made from.
type Config struct {
	ID   uint32 // expected in received packets, 0 to crypto.MaxPeerID
	TxID uint32 // written into sent packets, 0 to crypto.MaxPeerID
	// VPN4 and VPN6 are the peer's addresses inside the tunnel. Unspecified or invalid is none.
	VPN4, VPN6 netip.Addr
}

// Keepalive says after how many seconds without sending a keepalive is due, and after how many
// without receiving the peer is given up. Both, or neither.
type Keepalive struct {
	Interval, Timeout uint32
}

// Enabled reports whether both values are set. With one alone nothing is sent and nothing expires.
func (k Keepalive) Enabled() bool { return k.Interval != 0 && k.Timeout != 0 }

// Peer is the other end of a tunnel. Its methods may be called concurrently, except SetTransport.
//
// It is four cache lines long, which makes it start at one: what every packet reads, what sending
// writes, what receiving writes, and what only control touches.
type Peer struct {
	id        uint32
	txID      atomic.Uint32
	binding   atomic.Pointer[Binding]
	transport any
	Keys      crypto.KeySlots

	// The second line begins here, and the third in the middle of Counters.
	lastSent     atomic.Int64
	Counters     Counters
	lastReceived atomic.Int64
	lastSeen     atomic.Int64
	_            [cacheLine - trafficSize - 16]byte

	vpn        atomic.Pointer[vpnAddrs] // nil: none
	keepalive  atomic.Uint64            // Interval<<32 | Timeout
	sameRemote transportLinks           // guarded by the mu of the Table that holds the peer
	lifetime   lifetime                 // owned by the Lifetimes that the peer was given to
	_          [16]byte
}

type vpnAddrs struct{ v4, v6 netip.Addr }

// New makes a peer that is in no table, has no keys and no binding, and is not kept alive.
func New(config Config) *Peer {
	p := &Peer{id: config.ID}
	p.txID.Store(config.TxID)
	p.setVPN(config.VPN4, config.VPN6)
	return p
}

// ID returns the peer id expected in received packets. It never changes.
func (p *Peer) ID() uint32 { return p.id }

// TxID returns the peer id to write into sent packets.
func (p *Peer) TxID() uint32 { return p.txID.Load() }

// SetTxID changes TxID from the next packet on.
func (p *Peer) SetTxID(id uint32) { p.txID.Store(id) }

// Transport returns what SetTransport left here.
func (p *Peer) Transport() any { return p.transport }

// SetTransport leaves what carries the peer's packets. It must not be called any more once the peer
// is in a table; being added is what makes the value visible to others.
func (p *Peer) SetTransport(transport any) { p.transport = transport }

// Binding returns the transport addresses of a UDP peer, nil for a TCP peer. It changes through
// Table.Rebind and Table.SetLocal.
func (p *Peer) Binding() *Binding { return p.binding.Load() }

// VPN4 returns the peer's IPv4 address inside the tunnel, invalid if it has none. It changes
// through Table.SetVPN.
func (p *Peer) VPN4() netip.Addr {
	if vpn := p.vpn.Load(); vpn != nil {
		return vpn.v4
	}
	return netip.Addr{}
}

// VPN6 returns the peer's IPv6 address inside the tunnel, invalid if it has none. It changes
// through Table.SetVPN.
func (p *Peer) VPN6() netip.Addr {
	if vpn := p.vpn.Load(); vpn != nil {
		return vpn.v6
	}
	return netip.Addr{}
}

func (p *Peer) setVPN(v4, v6 netip.Addr) {
	vpn := vpnAddrs{specified(v4), specified(v6)}
	if vpn == (vpnAddrs{}) {
		p.vpn.Store(nil)
		return
	}
	p.vpn.Store(&vpn)
}

// specified returns addr as peers keep it: plain, or invalid if it says no address.
func specified(addr netip.Addr) netip.Addr {
	if !addr.IsValid() || addr.IsUnspecified() {
		return netip.Addr{}
	}
	return addr.WithZone("")
}

// MarkSent notes that a packet was handed to the transport. now is in seconds of boot time.
func (p *Peer) MarkSent(now int64) {
	// Written only when the second has changed, since reading a shared cache line is cheap.
	if p.lastSent.Load() != now {
		p.lastSent.Store(now)
	}
}

// MarkReceived notes that a genuine, new packet came in. now is in seconds of boot time.
func (p *Peer) MarkReceived(now int64) {
	if p.lastSeen.Load() != now { // as in MarkSent; and after Lifetimes.Set in the same second lastReceived is now already
		p.lastSeen.Store(now)
		p.lastReceived.Store(now)
	}
}

// LastSent returns the time of the last MarkSent or Lifetimes.Set, in seconds of boot time.
func (p *Peer) LastSent() int64 { return p.lastSent.Load() }

// LastReceived returns the time of the last MarkReceived or Lifetimes.Set, in seconds of boot time.
func (p *Peer) LastReceived() int64 { return p.lastReceived.Load() }

// LastSeen returns the time of the last MarkReceived, in seconds of boot time; 0 if there was none.
func (p *Peer) LastSeen() int64 { return p.lastSeen.Load() }

// Keepalive returns what Lifetimes.Set was last given.
func (p *Peer) Keepalive() Keepalive {
	packed := p.keepalive.Load()
	return Keepalive{Interval: uint32(packed >> 32), Timeout: uint32(packed)}
}

func (p *Peer) setKeepalive(k Keepalive) {
	p.keepalive.Store(uint64(k.Interval)<<32 | uint64(k.Timeout))
}
