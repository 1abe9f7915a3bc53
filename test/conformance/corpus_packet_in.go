package conformance

import (
	"encoding/binary"
	"fmt"
)

// damage is a packet of the usual key that is spoilt after it was sealed.
func (t *tunnel) damage(change func(p []byte)) []byte {
	return with(t.sealed(t.inner(8)), change)
}

// malformedPackets are those that are dropped, or go up to the client, before a key is looked at, and those too short.
func malformedPackets() []*tunnel {
	var all []*tunnel
	for _, mode := range []uint8{modeP2P, modeMP} {
		t := udpTunnel("malformed", mode)
		t.in("a good one", 1, t.sealed(t.inner(8)))
		for n := range overhead + 1 {
			t.in(fmt.Sprintf("cut to %d bytes", n), 0, t.sealed(t.inner(8))[:n])
		}
		for code := range byte(32) {
			if code == dataV2 {
				continue
			}
			packet := t.damage(func(p []byte) { p[0] = code<<3 | 1 })
			name := fmt.Sprintf("opcode %d", code)
			if code == dataV1 {
				t.in(name+", DATA_V1", 0, packet)
			} else {
				t.upward(name, packet)
			}
		}
		t.upward("a control packet of 4 bytes", []byte{0x38, 1, 2, 3})
		t.in("a control packet of 3 bytes", 0, []byte{0x38, 1, 2})
		for id := uint32(1); id < fenceKeyID; id++ {
			t.in(fmt.Sprintf("key id %d, which there is not", id), 0, usual.seal(op(id, 1), 1, t.inner(8)))
		}
		for _, id := range []uint32{0, 2, 10, 0x100, 0x10001, 0xfffffe} {
			t.in(fmt.Sprintf("peer id %d, which there is not", id), 0, usual.seal(op(0, id), 100, t.inner(8)))
		}
		t.in("no peer id, from the peer's address", 1, usual.seal(op(0, undefinedPeer), 101, t.inner(8)))
		t.in("no peer id, the wrong key", 0, fence.seal(op(0, undefinedPeer), 102, t.inner(8)))
		t.in("no peer id, twice", 0, usual.seal(op(0, undefinedPeer), 101, t.inner(8)))
		t.open("udp", "stranger", "127.0.0.3:7001")
		t.from = "stranger"
		t.quiet = true
		t.add(emitOnly("no peer id, from another address", t.emission(usual.seal(op(0, undefinedPeer), 103, t.inner(8)))))
		t.from, t.quiet = remote, false
		t.in("no peer id, after that", 1, usual.seal(op(0, undefinedPeer), 104, t.inner(8)))
		t.in("an empty datagram", 0, nil)
		all = append(all, t)
	}
	return all
}

// forgedPackets differ in one bit from good ones.
func forgedPackets() []*tunnel {
	var all []*tunnel
	for _, p := range []pair{usual, {chaCha20, 32, 3}} {
		t := udpTunnel(fmt.Sprintf("forged, cipher %d,", p.cipher), modeP2P)
		t.install(1, 0, 0, p)
		good := p.seal(op(0, 1), 5, t.inner(4))
		for i := range good {
			// The flipped bit of a header's first byte is one of the key id.
			bit := byte(1) << (i % 8)
			t.in(fmt.Sprintf("byte %d, bit %#02x", i, bit), 0, with(good, func(b []byte) { b[i] ^= bit }))
		}
		t.in("a byte more", 0, append(append([]byte(nil), good...), 0))
		t.in("a byte less", 0, good[:len(good)-1])
		t.in("another peer's key", 0, pair{p.cipher, 32, 9}.seal(op(0, 1), 6, t.inner(4)))
		t.in("the key of the other direction", 0, pair{p.cipher, 32, p.seed ^ 0x80}.seal(op(0, 1), 6, t.inner(4)))
		t.in("a forged keepalive", 0, with(p.seal(op(0, 1), 6, keepalive), func(b []byte) { b[39] ^= 1 }))
		t.in("after all that the good one, once", 1, good)
		t.in("and not again", 0, good)
		all = append(all, t)
	}
	return all
}

// replayedPackets are about the window of packet ids.
func replayedPackets() []*tunnel {
	t := udpTunnel("replayed", modeP2P)
	try := func(id uint32, good bool) {
		arrive := 0
		if good {
			arrive = 1
		}
		t.in(fmt.Sprintf("packet id %d", id), arrive, usual.seal(op(0, 1), id, t.inner(8)))
	}
	try(0, false)
	try(1, true)
	try(1, false)
	try(5, true)
	try(5, false)
	try(3, true)
	try(3, false)
	try(2, true)
	try(4, true)
	try(4, false)
	try(0, false)
	try(3000, true)
	try(952, false)
	try(953, true)
	try(953, false)
	try(954, true)
	try(2999, true)
	try(3000, false)
	try(5047, true)
	try(3000, false)
	try(3001, true)
	try(7095, true) // 2048 further
	try(5047, false)
	try(5048, true)
	try(0x80000000, true)
	try(0x80000000-2047, true)
	try(0x80000000-2048, false)
	try(0xffffffff, true)
	try(0xffffffff, false)
	try(0xffffffff-2047, true)
	try(0xffffffff-2048, false)
	try(1, false)
	t.in("a forged one does not count", 0, with(usual.seal(op(0, 1), 0xfffffffe, t.inner(8)), func(p []byte) { p[30] ^= 1 }))
	try(0xfffffffe, true)
	t.install(1, 0, 0, usual)
	t.Steps[len(t.Steps)-1].Name = "the same key anew"
	try(1500, true)
	try(1, true)
	try(1, false)
	try(1499, true)
	try(1500, false)
	t.install(1, 0, 0, usual)
	try(3, true)
	try(2, true)
	try(1, true)
	try(0, false)
	return []*tunnel{t}
}

// innerPackets are about what is inside good packets.
func innerPackets() []*tunnel {
	var all []*tunnel
	for _, mode := range []uint8{modeP2P, modeMP} {
		t := udpTunnel("inside", mode)
		four, six := t.inner(20), ip6("fd00:8::1", elsewhere6, 8)
		total := func(n uint16) []byte {
			return checked(with(four, func(p []byte) { binary.BigEndian.PutUint16(p[2:], n) }))
		}
		words := func(n byte) []byte { return checked(with(four, func(p []byte) { p[0] = 0x40 | n })) }
		length6 := func(n uint16) []byte { return with(six, func(p []byte) { binary.BigEndian.PutUint16(p[4:], n) }) }
		for _, c := range []struct {
			name   string
			packet []byte
			arrive int
		}{
			{"nothing", nil, 0},
			{"a keepalive", keepalive, 0},
			{"a keepalive without its last byte", keepalive[:15], 0},
			{"a keepalive and a byte more", append(append([]byte(nil), keepalive...), 0), 0},
			{"16 bytes that are no keepalive", with(keepalive, func(p []byte) { p[15]++ }), 0},
			{"one byte", []byte{0x45}, 0},
			{"version 0", with(four, func(p []byte) { p[0] = 0x05 }), 0},
			{"version 5", with(four, func(p []byte) { p[0] = 0x55 }), 0},
			{"version 15", with(six, func(p []byte) { p[0] = 0xf0 }), 0},
			{"19 bytes of IPv4", four[:19], 0},
			{"20 bytes of IPv4 that say they are 40", four[:20], 1},
			{"20 bytes of IPv4", ip4(t.source, elsewhere, 0), 1},
			{"39 bytes of IPv6", six[:39], 0},
			{"40 bytes of IPv6 that say they are 48", six[:40], 1},
			{"40 bytes of IPv6", ip6("fd00:8::1", elsewhere6, 0), 1},
			{"20 bytes of version 6", with(four, func(p []byte) { p[0] = 0x65 })[:20], 0},
			{"total length 0", total(0), 1},
			{"total length 19", total(19), 1},
			{"total length shorter by one", total(39), 1},
			{"total length longer by one", total(41), 1},
			{"total length 65535", total(65535), 1},
			{"header of 0 words", words(0), 1},
			{"header of 4 words", words(4), 1},
			{"header of 6 words", words(6), 1},
			{"header longer than the packet", words(15), 1},
			{"wrong header checksum", with(four, func(p []byte) { p[10]++ }), 1},
			{"TTL 0", checked(with(four, func(p []byte) { p[8] = 0 })), 1},
			{"a fragment", checked(with(four, func(p []byte) { p[6] = 0x20 })), 1},
			{"IPv6 payload shorter", length6(7), 1},
			{"IPv6 payload longer", length6(9), 1},
			{"IPv6 payload length 0", length6(0), 1},
			{"1416 bytes", t.inner(1396), 1},
			{"9000 bytes", t.inner(8980), 1},
			{"60000 bytes", t.inner(59980), 1},
			{"a TCP packet without its header", with(four[:20], func(p []byte) { p[9] = 6 }), 1},
			{"TCP with a nonsense header", checked(with(four, func(p []byte) { p[9] = 6 })), 1},
			{"UDP with a nonsense header", checked(with(four, func(p []byte) { p[9] = 17 })), 1},
		} {
			t.in(c.name, c.arrive, t.sealed(c.packet))
		}
		all = append(all, t)
	}
	return all
}

// cipherPackets are about each cipher, in both directions.
func cipherPackets() []*tunnel {
	t := udpTunnel("ciphers", modeP2P)
	for _, p := range []pair{{aesGCM, 16, 11}, {aesGCM, 24, 12}, {aesGCM, 32, 13}, {chaCha20, 32, 14}} {
		for _, id := range []uint32{0, 5} {
			name := fmt.Sprintf("cipher %d of %d bytes, key id %d: ", p.cipher, p.length, id)
			t.install(1, 0, id, p)
			t.in(name+"in", 1, p.seal(op(id, 1), 1, t.inner(33)))
			t.in(name+"in once more", 1, p.seal(op(id, 1), 2, t.inner(0)))
			t.in(name+"replayed", 0, p.seal(op(id, 1), 2, t.inner(0)))
			t.in(name+"forged", 0, with(p.seal(op(id, 1), 3, t.inner(0)), func(b []byte) { b[20] ^= 4 }))
			t.in(name+"keepalive", 0, p.seal(op(id, 1), 4, keepalive))
			t.out(name+"out", 1, t.routed(ip4(ourVPN, t.destination, 33)))
		}
	}
	return []*tunnel{t}
}

// keyPackets are about slots.
func keyPackets() []*tunnel {
	second := pair{aesGCM, 32, 21}
	t := udpTunnel("keys", modeMP)
	first := func(id uint32) []byte { return usual.seal(op(0, 1), id, t.inner(8)) }
	other := func(id uint32) []byte { return second.seal(op(1, 1), id, t.inner(8)) }
	t.in("primary", 1, first(1))
	t.out("sent with the primary", 0)
	t.quiet = true
	t.install(1, 1, 1, second)
	t.in("secondary", 1, other(1))
	t.in("both", 2, other(2), first(2))
	t.out("still sent with the primary", 1, t.routed(ip4(ourVPN, t.destination, 8)))
	t.swapKeys("tun0", 1)
	t.out("sent with the other after a swap", 1, t.routed(ip4(ourVPN, t.destination, 8)))
	t.in("both after a swap", 2, first(3), other(3))
	t.in("replays after a swap, then one that is not", 1, first(3), other(3), other(4))
	t.swapKeys("tun0", 1)
	t.out("sent with the first again", 1, t.routed(ip4(ourVPN, t.destination, 8)))
	t.deleteKey("tun0", 1, 0)
	t.in("the primary is deleted", 1, first(4), other(5))
	t.lost("nothing is sent without a primary", t.routed(ip4(ourVPN, t.destination, 8)))
	t.counters()
	t.swapKeys("tun0", 1)
	t.out("sent again", 1, t.routed(ip4(ourVPN, t.destination, 8)))
	t.install(1, 1, 1, usual)
	t.in("the same key id in both slots: the primary decides", 1, usual.seal(op(1, 1), 9, t.inner(8)), other(6))
	t.swapKeys("tun0", 1)
	t.in("and the other one after a swap", 1, other(7), usual.seal(op(1, 1), 10, t.inner(8)))
	t.deleteKey("tun0", 1, 0)
	t.deleteKey("tun0", 1, 1)
	t.lost("no keys at all", t.emission(first(11)), t.emission(other(11)), t.routed(ip4(ourVPN, t.destination, 8)))
	t.counters()
	t.install(1, 0, 0, usual)
	t.in("a new key", 1, first(1))
	t.out("a new key sends from 1", 1, t.routed(ip4(ourVPN, t.destination, 8)))
	t.on("tun0", "change the tx-id", peerSet, peer(u32(peerID, 1), u32(peerTxID, 0xabcdef)))
	t.out("with another tx-id", 1, t.routed(ip4(ourVPN, t.destination, 8)))
	return []*tunnel{t}
}
