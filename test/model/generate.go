package model

import (
	"fmt"
	"math/rand/v2"
)

// Generate returns a random sequence of n operations, the same for the same seed. It follows the model, so that most
// operations meet a state in which they do something; many are wrong in one way or another.
func Generate(seed, stream uint64, n int) []Op {
	g := &generator{Rand: rand.New(rand.NewPCG(seed, stream)), m: New()}
	g.apply(Op{Do: LinkNew, Device: 0, MP: g.chance(50)})
	g.apply(Op{Do: LinkNew, Device: 1, MP: true})
	for socket := range Sockets {
		g.apply(Op{Do: SocketOpen, Socket: socket + 1})
	}
	for device := range g.m.Devices {
		g.apply(Op{Do: LinkUp, Device: device})
	}
	for len(g.ops) < n {
		g.apply(g.op())
	}
	return g.ops
}

type generator struct {
	*rand.Rand
	m    *Model
	ops  []Op
	keys int // how many keys there have been
	// slow counts the operations that take seconds.
	slow int
}

// apply adds an operation, unless it makes no sense.
func (g *generator) apply(o Op) {
	out := g.m.Apply(o)
	if out.Skipped {
		return
	}
	g.ops = append(g.ops, o)
	// A peer without keys does little.
	if o.Do == PeerNew && out.Seen[Reply][0] == ack && g.chance(80) {
		key := Op{Do: KeyNew, Device: o.Device, Peer: o.Peer}
		g.key(&key)
		g.apply(key)
	}
}

func (g *generator) chance(percent int) bool { return g.IntN(100) < percent }

func one[T any](g *generator, from ...T) T { return from[g.IntN(len(from))] }

// weights are how often an action is taken, in comparison.
var weights = []struct {
	action Action
	weight int
}{
	{LinkNew, 3}, {LinkDel, 1}, {LinkUp, 4}, {LinkDown, 1}, {LinkRename, 1}, {LinkMove, 1}, {LinkMTU, 1}, {SocketOpen, 4}, {SocketClose, 2},
	{PeerNew, 22}, {PeerSet, 10}, {PeerGet, 1}, {PeerDel, 4}, {KeyNew, 26}, {KeyGet, 2}, {KeySwap, 6}, {KeyDel, 2},
	{Receive, 50}, {Transmit, 40}, {ControlIn, 4}, {ControlOut, 3}, {BadRecord, 2}, {Finish, 1}, {Reset, 1}, {Expire, 2}, {Ping, 2},
}

func (g *generator) action() Action {
	sum := 0
	for _, w := range weights {
		sum += w.weight
	}
	n := g.IntN(sum)
	for _, w := range weights {
		if n -= w.weight; n < 0 {
			return w.action
		}
	}
	panic("unreachable")
}

// slowest is how many operations of a sequence may take seconds.
const slowest = 1

func (g *generator) op() Op {
	o := Op{Do: g.action(), Device: g.IntN(2)}
	if d := g.m.Devices[o.Device]; g.chance(95) {
		// Without a device, or without peers, there is not much that could be done.
		switch {
		case d == nil:
			o.Do = LinkNew
		case !d.Up && g.chance(20):
			o.Do = LinkUp
		case len(d.peers) == 0 && !linkAction(o.Do):
			o.Do = PeerNew
			if socket := 1 + g.IntN(len(Sockets)); !g.m.sockets[socket].open {
				return Op{Do: SocketOpen, Socket: socket}
			}
		case !d.MP && o.Do == PeerNew && len(d.peers) == 1 && g.chance(80):
			o.Do = Receive
		}
	}
	switch o.Do {
	case LinkNew:
		o.MP = g.chance(50)
	case SocketOpen, SocketClose:
		o.Device, o.Socket = 0, 1+g.IntN(len(Sockets))
	case LinkMTU:
		o.Size = one(g, smallestMTU-1, smallestMTU, smallestMTU, firstMTU, largestMTU, largestMTU+1)
	case BadRecord, Finish, Reset:
		o.Device, o.Socket = 0, one(g, connections...)
	case PeerNew, PeerSet:
		g.peer(&o)
	case PeerGet, PeerDel, KeySwap:
		g.target(&o)
	case KeyNew, KeyGet, KeyDel:
		g.target(&o)
		if g.chance(35) {
			o.Slot = 1
		}
		if o.Do == KeyNew {
			g.key(&o)
		}
	case Receive:
		g.packet(&o)
	case ControlIn, ControlOut:
		o.Device, o.Socket, o.Remote = 0, 1+g.IntN(len(Sockets)-1), 1+g.IntN(len(Remotes))
	case Transmit:
		o.Size = g.size()
		n := 1 + g.Uint32N(5)
		if o.VPN4 = vpn4(n); g.chance(30) {
			o.VPN4, o.VPN6 = "", vpn6(n)
		}
		if d := g.m.Devices[o.Device]; d != nil && len(d.peers) > 0 && g.chance(70) {
			if p := g.keyed(d); p.VPN4 != "" {
				o.VPN4, o.VPN6 = p.VPN4, ""
			}
		}
		if g.chance(6) {
			o.VPN4, o.VPN6 = Nobody4, ""
		}
	case Expire, Ping:
		if g.slow == slowest {
			return g.op()
		}
		d := g.m.Devices[o.Device]
		if d == nil || len(d.peers) == 0 {
			return g.op()
		}
		o.Peer = g.keyed(d).ID
		g.slow++
	}
	return o
}

func linkAction(a Action) bool {
	return a == LinkNew || a == LinkDel || a == LinkUp || a == LinkDown || a == LinkRename || a == LinkMove || a == LinkMTU
}

// size is that of a payload: often a small one.
func (g *generator) size() int {
	if g.chance(10) {
		return g.IntN(firstMTU - header6)
	}
	return g.IntN(40)
}

func vpn4(n uint32) string { return fmt.Sprintf("10.8.0.%d", n) }
func vpn6(n uint32) string { return fmt.Sprintf("fd00:8::%d", n) }

// target chooses a peer that is there, most of the time.
func (g *generator) target(o *Op) {
	o.Peer = g.id()
	if d := g.m.Devices[o.Device]; d != nil && len(d.peers) > 0 && g.chance(90) {
		o.Peer = one(g, d.PeerIDs()...)
	}
}

// keyed chooses a peer with a key, most of the time.
func (g *generator) keyed(d *Device) (p *Peer) {
	for range 5 {
		if p = d.peers[one(g, d.PeerIDs()...)]; p.key(0) != nil {
			break
		}
	}
	return p
}

func (g *generator) id() uint32 {
	if g.chance(3) {
		return one[uint32](g, 0, UndefinedPeer)
	}
	return 1 + g.Uint32N(5)
}

func (g *generator) peer(o *Op) {
	o.Peer = g.id()
	if o.Do == PeerSet {
		g.target(o)
	}
	for n := uint32(1); o.Do == PeerNew && n <= 5 && g.m.Devices[o.Device].Peer(o.Peer) != nil && g.chance(90); n++ {
		o.Peer = n
	}
	if g.chance(30) {
		o.TxID = one[uint32](g, 1, 7, 1234567)
	}
	kind := UDP6
	d := g.m.Devices[o.Device]
	if o.Do == PeerNew && g.chance(97) {
		o.Socket = g.socket(o.Device)
		kind = Sockets[o.Socket-1].Kind
	} else if p := g.m.Devices[o.Device].Peer(o.Peer); p != nil {
		kind = Sockets[p.Socket-1].Kind
	}
	if kind != TCP && (o.Do == PeerNew && g.chance(95) || g.chance(30)) || g.chance(3) {
		if o.Remote = 1 + g.IntN(len(Remotes)); kind == UDP4 {
			o.Remote = 1 + g.IntN(remotes4)
		}
		o.Local, o.NoPort = g.chance(30), g.chance(3)
	}
	if d != nil && d.MP == g.chance(97) {
		if o.Do == PeerNew || g.chance(30) {
			o.VPN4 = vpn4(1 + g.Uint32N(5))
			for n := uint32(1); n <= 5 && d.owner(o.VPN4) != nil && g.chance(95); n++ {
				o.VPN4 = vpn4(n)
			}
		}
		if g.chance(30) {
			o.VPN6 = vpn6(1 + g.Uint32N(5))
		}
		if g.chance(8) {
			o.VPN4 = one(g, "", Unspecified4, "224.0.0.1", "127.0.0.1", "255.255.255.255")
		}
		if g.chance(8) {
			o.VPN6 = one(g, "", Unspecified6, "ff02::1", "::1")
		}
	}
	if g.chance(20) {
		o.Keepalive = one(g, []uint32{0, 0}, []uint32{60, 120}, []uint32{600, 1200}, []uint32{0, 50}, []uint32{50, 0}, []uint32{60})
	}
}

// remotes4 is how many of the remotes have an IPv4 address.
const remotes4 = 3

// connections are the numbers of the sockets of TCP.
var connections = []int{4, 5, 6}

// socket chooses a socket that a device can have, most of the time.
func (g *generator) socket(device int) int {
	for range 10 {
		number := 1 + g.IntN(len(Sockets))
		s, kind := g.m.sockets[number], Sockets[number-1].Kind
		at, user := g.m.user(number)
		if s.open && !s.spent && kind != NotASocket && (user == nil || kind != TCP && at == device) {
			return number
		}
	}
	return 1 + g.IntN(len(Sockets))
}

func (g *generator) key(o *Op) {
	g.keys++
	o.KeyID = g.Uint32N(4)
	o.Key = Key{Cipher: 1 + g.Uint32N(2), Length: 32, Seed: byte(g.keys)}
	if g.chance(15) {
		o.Key.Length = one(g, 16, 16, 24, 24, 31, 0)
	}
	if g.chance(3) {
		o.Key.Cipher = 0
	}
}

// packet makes a data packet for a peer that has a key, good or with a mistake.
func (g *generator) packet(o *Op) {
	o.Inner = one(g, IPv4, IPv4, IPv4, IPv4, IPv6, IPv6, IPv6, Keepalive, Nonsense, Empty, Forged, Short)
	o.Size = g.size()
	o.Remote = 1 + g.IntN(len(Remotes))
	o.Socket = 1 + g.IntN(len(Sockets)-1)
	d := g.m.Devices[o.Device]
	o.Device = 0
	if d == nil || len(d.peers) == 0 {
		o.Peer = StrangerPeer
		return
	}
	p := g.keyed(d)
	o.Peer, o.Socket = p.ID, p.Socket
	if o.Remote = p.Remote; p.Remote != 0 && g.chance(15) {
		o.Remote = 1 + g.IntN(len(Remotes))
	}
	o.Source = p.VPN4
	if o.Inner == IPv6 {
		o.Source = p.VPN6
	}
	if o.Source == "" || g.chance(5) {
		o.Source = vpn4(1 + g.Uint32N(5))
		if o.Inner == IPv6 {
			o.Source = vpn6(1 + g.Uint32N(5))
		}
	}
	k := p.slots[g.IntN(2)]
	if k == nil {
		k = p.key(0)
	}
	if k != nil {
		o.KeyID, o.Key = k.id, k.key
		o.Packet = k.highest + 1
		switch {
		case g.chance(20): // again, perhaps
			o.Packet -= min(o.Packet, g.Uint32N(6))
		case g.chance(15):
			o.Packet += one[uint32](g, 1, 5, window-1, window, 3*window)
		case g.chance(5):
			o.Packet -= min(o.Packet, one[uint32](g, window-1, window, window+1))
		}
	}
	switch {
	case g.chance(6):
		o.Peer = UndefinedPeer
	case g.chance(2):
		o.Peer = StrangerPeer
	case g.chance(3):
		o.KeyID = g.Uint32N(8)
	case g.chance(3):
		o.Key.Seed ^= 0x40
	}
}
