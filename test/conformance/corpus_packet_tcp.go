package conformance

import (
	"fmt"

	"ovpn-go/test/conformance/script"
)

// tcpTunnel is a tunnel over TCP with one peer, which is up.
func tcpTunnel(name string, mode uint8) *tunnel {
	t := newTunnel("TCP, "+name+" in "+modeNames[mode]+" mode", mode)
	t.records, t.from = true, farEnd
	t.open(script.TCP, client, ourTransport)
	t.addPeer(1, "")
	t.up()
	return t
}

// bytes has the other side write bytes that are not made into a record.
func (t *tunnel) bytes(b []byte) script.Emission { return script.Emission{On: farEnd, Data: b} }

// records are about packets over TCP.
func records() []*tunnel {
	var all []*tunnel
	for _, mode := range []uint8{modeP2P, modeMP} {
		t := tcpTunnel("records", mode)
		t.in("a packet", 1, t.sealed(t.inner(8)))
		t.in("two packets", 2, t.sealed(t.inner(8)), t.sealed(t.inner(9)))
		t.out("out", 1, t.routed(ip4(ourVPN, t.destination, 8)))
		t.out("out, IPv6", 1, t.routed(ip6(ourVPN6, "fd00:8::1", 8)))
		t.out("out, long", 1, t.routed(ip4(ourVPN, t.destination, 1396)))
		for n := 4; n <= overhead; n++ {
			t.in(fmt.Sprintf("cut to %d bytes", n), 0, t.sealed(t.inner(8))[:n])
		}
		for code := range byte(32) {
			if code != dataV2 && code != dataV1 {
				t.upward(fmt.Sprintf("opcode %d", code), t.damage(func(p []byte) { p[0] = code << 3 }))
			}
		}
		t.upward("a control packet of 4 bytes", []byte{0x38, 1, 2, 3})
		t.upward("a control packet of 20000 bytes", with(make([]byte, 20000), func(p []byte) { p[0] = 0x38 }))
		t.in("no such key", 0, usual.seal(op(3, 1), 1000, t.inner(8)))
		t.in("another peer id", 1, usual.seal(op(0, 77), 1001, t.inner(8)))
		t.in("no peer id", 1, usual.seal(op(0, undefinedPeer), 1002, t.inner(8)))
		t.in("replayed", 0, usual.seal(op(0, 1), 1002, t.inner(8)))
		t.in("packet id 0", 0, usual.seal(op(0, 1), 0, t.inner(8)))
		t.ids = 1002
		t.in("forged", 0, t.damage(func(p []byte) { p[20] ^= 1 }))
		t.in("a keepalive", 0, t.sealed(keepalive))
		t.in("nonsense inside", 0, t.sealed([]byte("nonsense")))
		t.in("nothing inside", 0, t.sealed(nil))
		t.in("9000 bytes", 1, t.sealed(t.inner(8980)))
		t.split()
		t.writes()
		all = append(all, t)
	}
	return append(all, endsOfConnections()...)
}

// split is about records that come in pieces, and together.
func (t *tunnel) split() {
	whole := record(t.sealed(t.inner(8)))
	for _, at := range []int{1, 2, 3, 6, 10, 26, len(whole) - 1} {
		whole := record(t.sealed(t.inner(8)))
		t.add(script.Step{Name: fmt.Sprintf("the first %d bytes of a record", at), Action: script.Emit, Emissions: []script.Emission{t.bytes(whole[:at])}})
		t.add(script.Step{
			Name: "and the rest", Action: script.Emit, Emissions: []script.Emission{t.bytes(whole[at:])}, Await: []script.Await{{On: tap, Count: 1}},
		})
		t.counters()
	}
	var together []byte
	for range 5 {
		together = append(together, record(t.sealed(t.inner(8)))...)
	}
	control := record([]byte{0x38, 1, 2, 3, 4, 5})
	together = append(together, control...)
	next := record(t.sealed(t.inner(8)))
	t.add(script.Step{
		Name: "five packets, a control packet and a half in one write", Action: script.Emit,
		Emissions: []script.Emission{t.bytes(append(together, next[:9]...))},
		Await:     []script.Await{{On: tap, Count: 5}, {On: client, Count: 1}},
	})
	t.add(script.Step{
		Name: "the other half and a control packet", Action: script.Emit,
		Emissions: []script.Emission{t.bytes(append(next[9:], control...))},
		Await:     []script.Await{{On: tap, Count: 1}, {On: client, Count: 1}},
	})
	t.counters()
}

// writes is about what the client writes.
func (t *tunnel) writes() {
	for _, n := range []int{1, 14, 1200, 20000} {
		control := with(make([]byte, n), func(p []byte) { p[0] = 0x38 })
		t.add(script.Step{
			Name: fmt.Sprintf("the client writes a record of %d bytes", n), Action: script.Emit,
			Emissions: []script.Emission{{On: client, Data: record(control)}}, Await: []script.Await{{On: farEnd, Count: 1}},
		})
	}
	t.out("data after that", 1, t.routed(ip4(ourVPN, t.destination, 8)))
	t.counters()
}

// impossible is a stream that begins with a length that no record has.
type impossible struct {
	name  string
	bytes []byte
}

var impossibleLengths = []impossible{
	{"record of 0 bytes", []byte{0, 0}},
	{"record of 1 byte", []byte{0, 1, 0x48}},
	{"junk", []byte{0, 0, 1, 2, 3, 4, 5, 6, 7, 8}},
}

// endsOfConnections are about connections that end, or whose stream is out of step.
func endsOfConnections() []*tunnel {
	var all []*tunnel
	fatal := func(name string, bytes func(t *tunnel) []byte) {
		t := tcpTunnel(name, modeP2P)
		t.in("a packet", 1, t.sealed(t.inner(8)))
		t.add(script.Step{
			Name: name, Action: script.Emit, Emissions: []script.Emission{t.bytes(bytes(t))}, Await: []script.Await{{On: events, Count: 1}},
		})
		t.counters()
		t.upwardQuietly("a packet after that", t.sealed(t.inner(8)))
		all = append(all, t)
	}
	fatal("record of 2 bytes", func(*tunnel) []byte { return []byte{0, 2, 0x48, 0} })
	fatal("record of 3 bytes", func(*tunnel) []byte { return []byte{0, 3, 0x48, 0, 0} })
	fatal("control record of 3 bytes", func(*tunnel) []byte { return []byte{0, 3, 0x38, 0, 0} })
	fatal("DATA_V1", func(t *tunnel) []byte { return record(t.damage(func(p []byte) { p[0] = 0x30 })) })
	fatal("good, then a record of 2 bytes", func(t *tunnel) []byte { return append(record(t.sealed(t.inner(8))), 0, 2, 1, 1) })

	for _, c := range impossibleLengths {
		t := tcpTunnel(c.name, modeP2P)
		t.in("a packet", 1, t.sealed(t.inner(8)))
		t.add(script.Step{
			Name: c.name, Action: script.Emit, Emissions: []script.Emission{t.bytes(c.bytes)}, Await: []script.Await{{On: client, Count: 1}},
		})
		t.counters()
		t.quiet = true
		t.out("sending still works", 1, t.routed(ip4(ourVPN, t.destination, 8)))
		t.add(emitOnly("a packet after that", t.emission(t.sealed(t.inner(8)))))
		t.add(script.Step{Name: "a moment", Action: script.Pause, Number: 200})
		t.counters()
		t.on("tun0", "PEER_DEL", peerDel, peer(u32(peerID, 1)))
		all = append(all, t)
	}

	long := tcpTunnel("record of 65535 bytes", modeP2P)
	head := long.sealed(long.inner(8))
	whole := with(make([]byte, 65535), func(p []byte) { copy(p, head) })
	long.in("forged, of 65535 bytes", 0, whole)
	long.in("a good packet", 1, long.sealed(long.inner(8)))
	all = append(all, long)

	for _, partial := range []bool{false, true} {
		for _, reset := range []bool{false, true} {
			name := map[bool]string{false: "FIN", true: "RST"}[reset]
			if partial {
				name += " in mid-record"
			}
			t := tcpTunnel(name, modeP2P)
			t.in("a packet", 1, t.sealed(t.inner(8)))
			t.upward("a control packet", []byte{0x38, 1, 2, 3, 4})
			if partial {
				t.add(emitOnly("half a record", t.bytes(record(t.sealed(t.inner(8)))[:20])))
			}
			end := script.Step{Name: name, Action: script.Shutdown, On: farEnd, Await: []script.Await{{On: client, Count: 1}}}
			if reset {
				end.Action, end.Kind = script.Close, script.Reset
			}
			t.add(end)
			t.counters()
			t.quiet = true
			if reset {
				t.add(script.Step{
					Name: "data after the end", Action: script.Emit,
					Emissions: []script.Emission{t.routed(ip4(ourVPN, t.destination, 8))}, Await: []script.Await{{On: events, Count: 1}},
				})
			} else {
				t.out("data after the end", 1, t.routed(ip4(ourVPN, t.destination, 8)))
				t.on("tun0", "PEER_DEL", peerDel, peer(u32(peerID, 1)))
			}
			t.counters()
			all = append(all, t)
		}
	}

	closing := tcpTunnel("close", modeMP)
	closing.in("a packet", 1, closing.sealed(closing.inner(8)))
	closing.add(script.Step{Name: "the client closes", Action: script.Close, On: client, Await: []script.Await{{On: events, Count: 1}, {On: farEnd, Count: 1}}})
	closing.counters()

	plain := tcpTunnel("PEER_DEL", modeMP)
	plain.in("a packet", 1, plain.sealed(plain.inner(8)))
	plain.on("tun0", "PEER_DEL", peerDel, peer(u32(peerID, 1)))
	plain.add(script.Step{
		Name: "bytes after that", Action: script.Emit, Emissions: []script.Emission{plain.bytes([]byte("plain"))}, Await: []script.Await{{On: client, Count: 1}},
	})
	plain.counters()

	expiry := tcpTunnel("keepalive", modeMP)
	expiry.on("tun0", "keepalive 3 60", peerSet, peer(u32(peerID, 1), u32(peerInterval, 3), u32(peerTimeout, 60)))
	expiry.add(script.Step{Name: "one keepalive comes", Action: script.Pause, Await: []script.Await{{On: farEnd, Count: 1}}})
	expiry.on("tun0", "keepalive 60 2", peerSet, peer(u32(peerID, 1), u32(peerInterval, 60), u32(peerTimeout, 2)))
	expiry.add(script.Step{Name: "the peer expires", Action: script.Pause, Await: []script.Await{{On: events, Count: 1}}})
	expiry.counters()
	return append(all, closing, plain, expiry)
}
