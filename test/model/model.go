package model

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

// Outcome is what follows from an operation.
type Outcome struct {
	// Skipped says that the operation makes no sense in the state it meets, and is not carried out: there is no such
	// socket, or nobody could say what happens. So any part of a sequence is a sequence.
	Skipped bool
	// Seen is what each receiver gets, in order, in words: Reply, Notices, and the sockets that packets arrive on.
	Seen map[string][]string
}

// Receivers.
const (
	Reply   = "reply"   // to requests
	Notices = "notices" // what is announced to the family's group
)

// Client is the receiver that is one of the client's sockets, FarEnd the other end of its connection, Remote a
// remote's socket and Tap what an interface receives.
func Client(socket int) string { return fmt.Sprintf("client %d", socket) }
func FarEnd(socket int) string { return Client(socket) + " far end" }
func Remote(remote int) string { return fmt.Sprintf("remote %d", remote) }
func Tap(device int) string    { return fmt.Sprintf("interface %d", device) }

// Ended is what a receiver is told of the end of its connection.
const Ended = "the connection has ended"

// Model is the state of two devices and the client's sockets.
type Model struct {
	Devices [2]*Device // nil: there is none
	sockets []socket   // by number, from 1
	now     int        // a number for each time that a peer gets a transport address
	out     Outcome
}

// Device is one link with its peers.
type Device struct {
	MP, Up bool
	MTU    int
	// Renamed says that it has its other name, and Elsewhere that it is in the other namespace.
	Renamed, Elsewhere bool
	peers              map[uint32]*Peer
}

// Peer is a peer of a device.
type Peer struct {
	ID, TxID     uint32
	Socket       int
	Remote       int // 0: TCP
	Local        string
	VPN4, VPN6   string // empty: none
	Keepalive    [2]uint32
	slots        [2]*slot
	primary      int
	boundAt      int // when it got its Remote
	VPNRx, VPNTx Count
	// LinkRx and LinkTx count whole data packets.
	LinkRx, LinkTx Count
}

// Count is a number of packets and their bytes.
type Count struct{ Packets, Bytes int }

func (c *Count) add(n int) { c.Packets++; c.Bytes += n }

// slot is a key with the packet ids it has seen and given out.
type slot struct {
	id            uint32
	key           Key
	sent          uint32
	seen          map[uint32]bool
	highest, back uint32 // how far behind the highest one packet ids are looked at
}

// window is how many packet ids are remembered.
const window = 2048

// fresh says whether a packet id is acceptable, and remembers it if so. That ids expire after 30 seconds without
// traffic is left out: no sequence pauses as long.
func (s *slot) fresh(id uint32) bool {
	switch {
	case id == 0:
		return false
	case id > s.highest:
		s.back = min(s.back+(id-s.highest), window)
		s.highest = id
	case s.highest-id >= s.back || s.seen[id]:
		return false
	}
	s.seen[id] = true
	return true
}

type socket struct {
	open, used bool
	// spent says that nothing more is known of a connection: its peer has gone by itself.
	spent bool
	// finished and reset say how the other end has ended a connection.
	finished, reset bool
}

// ended says whether nothing more comes from a connection's other end.
func (s *socket) ended() bool { return s.finished || s.reset }

// New returns a model without devices and open sockets.
func New() *Model { return &Model{sockets: make([]socket, len(Sockets)+1)} }

func (m *Model) see(receiver, format string, args ...any) {
	m.out.Seen[receiver] = append(m.out.Seen[receiver], fmt.Sprintf(format, args...))
}

func (m *Model) reply(errno string) { m.see(Reply, "%s", errno) }

// ack is the answer to a request that was carried out.
const ack = "ACK"

// PeerIDs are the ids of a device's peers in the order in which they are listed and removed.
func (d *Device) PeerIDs() []uint32 {
	return slices.SortedFunc(maps.Keys(d.peers), func(a, b uint32) int { return int(bucket(a)) - int(bucket(b)) })
}

// bucket is where the module's table has a peer (Bob Jenkins' lookup3 of the id).
func bucket(id uint32) uint32 {
	const start = 0xdeadbeef + 4
	a, b, c := start+id, uint32(start), uint32(start)
	rotated := func(v uint32, by int) uint32 { return v<<by | v>>(32-by) }
	c ^= b
	c -= rotated(b, 14)
	a ^= c
	a -= rotated(c, 11)
	b ^= a
	b -= rotated(a, 25)
	c ^= b
	c -= rotated(b, 16)
	a ^= c
	a -= rotated(c, 4)
	b ^= a
	b -= rotated(a, 14)
	c ^= b
	c -= rotated(b, 24)
	return c % 4096
}

// Peer returns a peer of a device, nil if there is none.
func (d *Device) Peer(id uint32) *Peer {
	if d == nil {
		return nil
	}
	return d.peers[id]
}

// Primary returns the number of the key in a slot, whether there is one, and its cipher.
func (p *Peer) key(n uint32) *slot { return p.slots[(p.primary+int(n))%2] }

// user returns the device and one of the peers that use a socket.
func (m *Model) user(number int) (int, *Peer) {
	for i, d := range m.Devices {
		if d == nil {
			continue
		}
		for _, id := range d.PeerIDs() {
			if d.peers[id].Socket == number {
				return i, d.peers[id]
			}
		}
	}
	return -1, nil
}

// remove takes a peer away, and says why.
func (m *Model) remove(device int, p *Peer, reason string) {
	delete(m.Devices[device].peers, p.ID)
	m.see(Notices, "peer %d of device %d deleted: %s", p.ID, device, reason)
	if p.Remote == 0 && reason != "userspace" && reason != "teardown" {
		m.sockets[p.Socket].spent = true
	}
}

// bind gives a peer its remote transport address, and forgets our own.
func (m *Model) bind(p *Peer, remote int, local string) {
	m.now++
	p.Remote, p.Local, p.boundAt = remote, local, m.now
}

// unspecified is the local address that is not known.
func unspecified(remote int) string {
	if V6(remote) {
		return Unspecified6
	}
	return Unspecified4
}

func ours(remote int) string {
	if V6(remote) {
		return Ours6
	}
	return Ours4
}

// wrong is the part of the checks that PEER_NEW and PEER_SET share.
func (o *Op) wrong(d *Device) bool {
	switch {
	case o.NoPort && o.Remote != 0:
		return true
	case !d.MP && (o.VPN4 != "" || o.VPN6 != ""):
		return true
	}
	return len(o.Keepalive) == 1
}

// badVPN judges the addresses that a peer of an MP device is to have, and that of other peers if they are taken.
func badVPN(v4, v6 string) string {
	if (v4 == "" || v4 == Unspecified4) && (v6 == "" || v6 == Unspecified6) {
		return "EINVAL"
	}
	if v4 != "" {
		if a := netip.MustParseAddr(v4); a.IsMulticast() || a.IsLoopback() || v4 == "255.255.255.255" {
			return "EADDRNOTAVAIL"
		}
	}
	if v6 != "" {
		if a := netip.MustParseAddr(v6); a.IsMulticast() || a.IsLoopback() || a.Is4In6() {
			return "EADDRNOTAVAIL"
		}
	}
	return ""
}

// owner returns the peer that has an address within the tunnel.
func (d *Device) owner(address string) *Peer {
	if address == "" || address == Unspecified4 || address == Unspecified6 {
		return nil
	}
	for _, p := range d.peers {
		if p.VPN4 == address || p.VPN6 == address {
			return p
		}
	}
	return nil
}

// specified returns an address, or nothing for an unspecified one.
func specified(address string) string {
	if address == Unspecified4 || address == Unspecified6 {
		return ""
	}
	return address
}
