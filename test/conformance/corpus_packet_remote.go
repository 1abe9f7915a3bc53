package conformance

import (
	"fmt"

	"golang.org/x/sys/unix"

	"ovpn-go/test/conformance/script"
)

// floats are about where a peer's packets come from.
func floats() []*tunnel {
	var all []*tunnel
	for _, mode := range []uint8{modeP2P, modeMP} {
		t := udpTunnel("float", mode)
		t.quiet = true
		sockets := map[string]string{"address": "127.0.0.3:7001", "port": "127.0.0.2:7002", "both": "127.0.0.4:7003"}
		for _, name := range []string{"address", "port", "both"} {
			t.open(script.UDP, name, sockets[name])
		}
		// from is a case: a packet from a socket, and how many notices and packets follow.
		from := func(name, socket string, notices, arrive int, packet []byte) {
			t.from = socket
			if notices+arrive == 0 {
				// The next packet that arrives shows that this one has been dealt with.
				t.add(emitOnly(name, t.emission(packet)))
				return
			}
			t.receive(name, []script.Await{{On: events, Count: notices}, {On: tap, Count: arrive}}, packet)
		}
		send := func(name, socket string) {
			t.add(script.Step{
				Name: name, Action: script.Emit, Emissions: []script.Emission{t.routed(ip4(ourVPN, t.destination, 8))},
				Await: []script.Await{{On: socket, Count: 1}},
			})
		}
		// settled shows that whatever came before has been dealt with, from where the peer is.
		at := remote
		settled := func() {
			t.from = at
			t.receive("and one from where the peer is", []script.Await{{On: tap, Count: 1}}, t.sealed(t.inner(4)))
		}
		good := func() []byte { return t.sealed(t.inner(8)) }
		from("the remote address", remote, 0, 1, good())
		for _, socket := range []string{"address", "port", "both", remote, "address"} {
			from("forged, from "+socket, socket, 0, 0, with(good(), func(p []byte) { p[25] ^= 1 }))
			settled()
			replay := good()
			t.from = at
			t.in("good", 1, replay)
			from("replayed, from "+socket, socket, 0, 0, replay)
			from("no such key, from "+socket, socket, 0, 0, usual.seal(op(3, 1), 9, t.inner(8)))
			from("no peer id, from "+socket, socket, 0, 0, usual.seal(op(0, undefinedPeer), 0, t.inner(8)))
			from("packet id 0, from "+socket, socket, 0, 0, usual.seal(op(0, 1), 0, t.inner(8)))
			settled()
			send("sent to where it was", at)
			from("good, from "+socket, socket, 1, 1, good())
			at = socket
			send("sent to "+socket, socket)
			from("again from "+socket, socket, 0, 1, good())
		}
		from("a keepalive", "port", 1, 0, t.sealed(keepalive))
		from("nonsense inside", "both", 1, 0, t.sealed([]byte("nonsense")))
		from("nothing inside", remote, 1, 0, t.sealed(nil))
		at = remote
		if mode == modeMP {
			from("a source of somebody else", "both", 1, 0, t.sealed(ip4("10.8.0.9", elsewhere, 8)))
			from("back", remote, 1, 1, good())
		}
		from("no peer id, from where it is", remote, 0, 1, usual.seal(op(0, undefinedPeer), 1000, t.inner(8)))
		t.ids = 1000
		// The packets' own destination becomes the local address.
		t.address("lo", "10.5.0.1", 32)
		t.to = "10.5.0.1:6000"
		from("to another of our addresses", remote, 0, 1, good())
		send("sent from there", remote)
		t.to = "127.0.0.9:6000"
		from("to an address that is no interface's own", remote, 0, 1, good())
		send(sentFromLoopback, remote)
		t.send(countersAfterThat, control, request(peerGet, ifindexOf("tun0")).with(unix.NLM_F_REQUEST|unix.NLM_F_DUMP))
		t.to = ourTransport
		from("to the first one", remote, 0, 1, good())
		t.on("tun0", "PEER_SET: elsewhere", peerSet, peer(u32(peerID, 1), addr(peerRemote4, "127.0.0.3"), be16(peerPort, 7001)))
		send("sent where PEER_SET said", "address")
		from("from where it was before", remote, 1, 1, good())
		all = append(all, t)
	}
	return all
}

// Names of steps that the list of differences knows.
const (
	sentFromLoopback  = "sent to one who spoke to 127.0.0.9"
	countersAfterThat = "the peer after that"
)

// families are about transport over IPv6 and mapped addresses.
func families() []*tunnel {
	v6 := newTunnel("IPv6 transport in MP mode", modeMP)
	v6.to = "[fd00::1]:6000"
	v6.address("lo", "fd00::1", 128)
	v6.address("lo", "fd00::2", 128)
	v6.address("lo", "fd00::3", 128)
	v6.open(script.UDP, client, "[::]:6000")
	v6.open(script.UDP, remote, "[fd00::2]:7001")
	v6.open(script.UDP, "other", "[fd00::3]:7001")
	v6.open(script.UDP, "other port", "[fd00::2]:7002")
	v6.open(script.UDP, "IPv4", "127.0.0.2:7001")
	v6.addPeer(1, "[fd00::2]:7001")
	v6.up()
	v6.roundOfFamilies("IPv4", ourTransport)

	mapped := newTunnel("mapped IPv4 transport in P2P mode", modeP2P)
	mapped.address("lo", "fd00::1", 128)
	mapped.address("lo", "fd00::2", 128)
	mapped.open(script.UDP, client, "[::]:6000")
	mapped.open(script.UDP, remote, peerTransport)
	mapped.open(script.UDP, "other", "127.0.0.3:7001")
	mapped.open(script.UDP, "other port", "127.0.0.2:7002")
	mapped.open(script.UDP, "IPv6", "[fd00::2]:7001")
	mapped.on("tun0", "PEER_NEW 1", peerNew, peer(u32(peerID, 1), fdOf(peerSocket, client),
		addr(peerRemote6, "::ffff:127.0.0.2"), be16(peerPort, 7001)))
	mapped.keys(1)
	mapped.up()
	mapped.roundOfFamilies("IPv6", "[fd00::1]:6000")

	only := newTunnel("IPv4 remote of an IPv6 socket in MP mode", modeMP)
	only.open(script.UDP, client, "[::]:6000")
	only.open(script.UDP, remote, peerTransport)
	only.addPeer(1, peerTransport, addr(peerLocal4, "127.0.0.1"))
	only.up()
	only.in("in", 1, only.sealed(only.inner(8)))
	only.out("out", 1, only.routed(ip4(ourVPN, only.destination, 8)))
	return []*tunnel{v6, mapped, only}
}

// roundOfFamilies is about a peer that moves between addresses of a family, and to another family.
func (t *tunnel) roundOfFamilies(foreign, foreignTo string) {
	t.in("in", 1, t.sealed(t.inner(8)))
	t.in("in, IPv6", 1, t.sealed(ip6("fd00:8::1", elsewhere6, 8)))
	t.out("out", 1, t.routed(ip4(ourVPN, t.destination, 8)))
	t.upward("a control packet", []byte{0x38, 1, 2, 3, 4})
	t.in("forged", 0, with(t.sealed(t.inner(8)), func(p []byte) { p[24] ^= 1 }))
	t.in("no peer id", 1, usual.seal(op(0, undefinedPeer), 77, t.inner(8)))
	t.ids = 77
	t.quiet = true
	home, to := t.from, t.to
	for _, from := range []string{"other", "other port", home, foreign, home} {
		t.from, t.to = from, to
		if from == foreign {
			t.to = foreignTo
		}
		t.receive("from "+from, []script.Await{{On: events, Count: 1}, {On: tap, Count: 1}}, t.sealed(t.inner(8)))
		t.add(script.Step{
			Name: "sent there", Action: script.Emit, Emissions: []script.Emission{t.routed(ip4(ourVPN, t.destination, 8))},
			Await: []script.Await{{On: from, Count: 1}},
		})
		t.counters()
	}
}

// keepalives are about silence, in either direction.
func keepalives() []*tunnel {
	var all []*tunnel
	for _, mode := range []uint8{modeP2P, modeMP} {
		t := udpTunnel("keepalive", mode)
		set := func(interval, timeout uint32) {
			t.on("tun0", fmt.Sprintf("keepalive %d %d", interval, timeout), peerSet,
				peer(u32(peerID, 1), u32(peerInterval, interval), u32(peerTimeout, timeout)))
		}
		wait := func(name, on string, count int) {
			t.add(script.Step{Name: name, Action: script.Pause, Await: []script.Await{{On: on, Count: count}}})
		}
		set(3, 60)
		wait("one keepalive comes", remote, 1)
		set(0, 0)
		t.counters()
		t.out("data after it", 1, t.routed(ip4(ourVPN, t.destination, 8)))
		set(60, 2)
		wait("the peer expires", events, 1)
		t.counters()
		t.quiet = true
		t.lost("packets of an expired peer", t.emission(t.sealed(t.inner(8))))
		t.addPeer(2, peerTransport)
		t.peer, t.fences, t.quiet, t.source, t.destination = 2, 0, false, "10.8.0.2", "10.8.0.2"
		t.in("the next peer", 1, t.sealed(t.inner(8)))
		all = append(all, t)
	}
	return all
}
