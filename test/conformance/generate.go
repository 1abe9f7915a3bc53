package conformance

import (
	"fmt"
	"math/rand/v2"

	"golang.org/x/sys/unix"

	"ovpn-go/test/conformance/script"
)

// Random returns n sequences of random requests, which are the same for the same seed. The requests come from a small
// world, of few devices, peers and addresses, so that they collide; many of them have a mistake, or several.
func Random(seed uint64, n int) []script.Sequence {
	var all []script.Sequence
	for i := range n {
		g := &generator{Rand: rand.New(rand.NewPCG(seed, uint64(i)))}
		p := profiles[g.IntN(len(profiles))]
		g.mistakes = pick(g, 4, 9, 30)
		g.writer = newSequence(fmt.Sprintf("random %d.%d", seed, i), p)
		g.write()
		all = append(all, g.Sequence)
	}
	return all
}

type generator struct {
	*rand.Rand
	*writer
	// mistakes is how many of a hundred lists of attributes get one.
	mistakes int
}

func pick[T any](g *generator, from ...T) T { return from[g.IntN(len(from))] }

func (g *generator) chance(percent int) bool { return g.IntN(100) < percent }

func (g *generator) write() {
	const requests = 60
	g.link("tun0", modeP2P)
	g.link("tun1", modeMP)
	g.listen()
	g.socket("udp6", "a", 6800)
	g.socket("udp6", "b", 6801)
	g.socket("unix", "c", 0)
	for range requests {
		name, m := g.request()
		messages := []message{m}
		for g.chance(8) {
			var more string
			more, m = g.request()
			name += " + " + more
			messages = append(messages, m)
		}
		g.send("random: "+name, control, messages...)
	}
	g.dump("dump", "tun0")
	g.dump("dump", "tun1")
}

func (g *generator) request() (string, message) {
	op := operations[g.IntN(len(operations))]
	if g.chance(8) {
		m := request(peerGet, g.device()).with(dumping)
		return "dump", g.mutate(m)
	}
	if g.chance(25) {
		op = operations[0]
	}
	var inside []attr
	switch {
	case op.cmd == peerNew || op.cmd == peerSet:
		inside = g.peer(op.cmd)
	case op.nest == attrPeer:
		inside = []attr{g.id()}
	default:
		inside = g.key(op.cmd)
	}
	attrs := []attr{g.device(), nest(op.nest, g.spoil(inside)...)}
	return op.name, g.mutate(request(op.cmd, g.spoil(attrs)...))
}

func (g *generator) device() attr {
	if g.chance(4) {
		return u32(attrIfindex, pick[uint32](g, 0, 1, 9999))
	}
	return ifindexOf(pick(g, "tun0", "tun1", "tun1"))
}

func (g *generator) id() attr { return u32(peerID, pick[uint32](g, 0, 1, 1, 2, 3, 4, 0xffffff)) }

// peer never gives an IPv4 socket an IPv6 remote address, nor a short keepalive: the module then crashes when it
// sends its first packet.
func (g *generator) peer(cmd uint8) []attr {
	var a []attr
	add := func(percent int, more ...attr) {
		if g.chance(percent) {
			a = append(a, more...)
		}
	}
	add(98, g.id())
	port := be16(peerPort, pick[uint16](g, 1, 9, 1194, 65535))
	switch g.IntN(6) {
	case 0, 1, 2:
		add(100, addr(peerRemote4, pick(g, "127.0.0.1", "127.0.0.2", "192.0.2.1")))
		add(95, port)
		add(20, addr(peerLocal4, pick(g, "127.0.0.1", "0.0.0.0")))
		add(3, addr(peerLocal6, "::1"))
	case 3, 4:
		add(100, addr(peerRemote6, pick(g, "::1", "fe80::1", "::ffff:192.0.2.1")))
		add(95, port)
		add(20, addr(peerLocal6, pick(g, "::1", "::", "::ffff:127.0.0.1")))
		add(20, u32(peerScope, pick[uint32](g, 0, 1, 9)))
		add(3, addr(peerLocal4, "127.0.0.1"))
	}
	if cmd == peerNew {
		add(95, fdOf(peerSocket, pick(g, "a", "a", "b", "b", "b", "c")))
	}
	add(3, u32(peerSocket, 4000))
	add(55, addr(peerVPN4, pick(g, "10.8.0.1", "10.8.0.2", "10.8.0.3", "10.8.0.4", "0.0.0.0", "224.0.0.1")))
	add(35, addr(peerVPN6, pick(g, "fd00::1", "fd00::2", "fd00::3", "::", "ff02::1")))
	add(20, u32(peerInterval, pick[uint32](g, 0, 600, 86400)), u32(peerTimeout, pick[uint32](g, 0, 1200, 86400)))
	add(3, u32(peerTimeout, 1200))
	add(20, u32(peerTxID, pick[uint32](g, 0, 7, 0xffffff, 0x1000000)))
	g.Shuffle(len(a), func(i, j int) { a[i], a[j] = a[j], a[i] })
	return a
}

func (g *generator) key(cmd uint8) []attr {
	a := []attr{g.id()}
	if cmd == keySwap {
		return a
	}
	a = append(a, u32(keySlot, uint32(g.IntN(2))))
	if cmd == keyNew {
		a = append(a, u32(keyID, uint32(g.IntN(8))), u32(keyCipher, pick[uint32](g, 0, 1, 1, 1, 2, 2)))
		for _, dir := range []uint16{keyEncrypt, keyDecrypt} {
			a = append(a, nest(dir, g.spoil([]attr{
				bytesOf(dirKey, pick(g, 32, 32, 32, 16, 24, 31)), bytesOf(dirTail, 8),
			})...))
		}
	}
	return a
}

// spoil makes a mistake in some lists of attributes.
func (g *generator) spoil(in []attr) []attr {
	out := append([]attr(nil), in...)
	if len(out) == 0 || !g.chance(g.mistakes) {
		return out
	}
	i := g.IntN(len(out))
	switch g.IntN(8) {
	case 0:
		out = append(out[:i], out[i+1:]...)
	case 1:
		out = append(out, out[i])
	case 2:
		out = append(out, junk(make([]byte, 1+g.IntN(5))...))
	case 3:
		out = append(out, bytesOf(uint16(g.IntN(30)), pick(g, 0, 1, 2, 4, 8, 16)))
	case 4:
		out[i].kind ^= pick[uint16](g, nested, netByteOrder)
	case 5:
		out[i].size = uint16(g.IntN(40))
	case 6:
		if out[i].kids == nil {
			out[i] = bytesOf(out[i].kind, pick(g, 0, 1, 2, 3, 4, 5, 8, 16))
		}
	case 7:
		out[i], out[0] = out[0], out[i]
	}
	return out
}

// mutate makes a mistake in the header of some messages.
func (g *generator) mutate(m message) message {
	if !g.chance(8) {
		return m
	}
	switch g.IntN(5) {
	case 0:
		m.flags ^= 1 << g.IntN(12)
	case 1:
		m.flags &^= unix.NLM_F_ACK
	case 2:
		m.body = []byte{uint8(g.IntN(14)), uint8(g.IntN(3)), 0, 0}
	case 3:
		m.port = g.Uint32()
	case 4:
		m.body = []byte{m.body[0], 1, 0, uint8(g.IntN(2))}
	}
	return m
}
