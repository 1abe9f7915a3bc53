package conformance

import (
	"golang.org/x/sys/unix"

	"ovpn-go/test/conformance/script"
)

// emitOnly is a case in which nothing arrives that could be waited for.
func emitOnly(name string, emissions ...script.Emission) script.Step {
	return script.Step{Name: name, Action: script.Emit, Emissions: emissions}
}

// lost is a case of packets of which nothing arrives, with time for them to be dealt with.
func (t *tunnel) lost(name string, emissions ...script.Emission) {
	t.add(emitOnly(name, emissions...))
	t.add(script.Step{Name: "a moment", Action: script.Pause, Number: 500})
}

// sentPackets are about what the interface is given.
func sentPackets() []*tunnel {
	var all []*tunnel
	for _, mode := range []uint8{modeP2P, modeMP} {
		t := udpTunnel("sent", mode)
		four, six := ip4(ourVPN, t.destination, 20), ip6(ourVPN6, "fd00:8::1", 8)
		t.out("IPv4", 1, t.routed(four))
		t.out("IPv6", 1, t.routed(six))
		t.out("1416 bytes", 1, t.routed(ip4(ourVPN, t.destination, 1396)))
		t.out("20 bytes", 1, t.routed(ip4(ourVPN, t.destination, 0)))
		t.out("IPv4 from a packet socket", 1, given(unix.ETH_P_IP, four))
		t.out("IPv6 from a packet socket", 1, given(unix.ETH_P_IPV6, six))
		t.out("ARP", 0, given(unix.ETH_P_ARP, make([]byte, 28)))
		t.out("one byte", 0, given(unix.ETH_P_IP, []byte{0x45}))
		t.out("19 bytes of IPv4", 0, given(unix.ETH_P_IP, four[:19]))
		t.out("20 bytes of IPv4 that say they are 40", 1, given(unix.ETH_P_IP, four[:20]))
		t.out("39 bytes of IPv6", 0, given(unix.ETH_P_IPV6, six[:39]))
		t.out("40 bytes of IPv6 that say they are 48", 1, given(unix.ETH_P_IPV6, six[:40]))
		t.out("version 5", 0, given(unix.ETH_P_IP, with(four, func(p []byte) { p[0] = 0x55 })))
		t.out("version 0", 0, given(unix.ETH_P_IPV6, with(six, func(p []byte) { p[0] = 0 })))
		t.out("header of 0 words", 1, given(unix.ETH_P_IP, with(four, func(p []byte) { p[0] = 0x40 })))
		t.out("total length 0", 1, given(unix.ETH_P_IP, with(four, func(p []byte) { p[2], p[3] = 0, 0 })))
		t.out("wrong checksum", 1, given(unix.ETH_P_IP, with(four, func(p []byte) { p[10]++ })))
		t.out("a keepalive's bytes", 0, given(unix.ETH_P_IP, keepalive))
		reach := 1 - int(mode)
		for _, to := range []string{"224.0.0.1", "255.255.255.255", "10.8.0.255", "169.254.1.1", "10.8.0.77", elsewhere} {
			t.out("to "+to+" from a packet socket", reach, given(unix.ETH_P_IP, ip4(ourVPN, to, 8)))
		}
		for _, to := range []string{"ff02::1", "fe80::1", "fd00:8::77", elsewhere6} {
			t.out("to "+to+" from a packet socket", reach, given(unix.ETH_P_IPV6, ip6(ourVPN6, to, 8)))
		}
		t.out("to another host of the network", reach, t.routed(ip4(ourVPN, "10.8.0.77", 8)))
		t.out("to another IPv6 host of the network", reach, t.routed(ip6(ourVPN6, "fd00:8::77", 8)))
		t.out("from a strange source", 1, t.routed(ip4("203.0.113.1", t.destination, 8)))
		t.route("10.77.0.0/24", "10.8.0.1")
		t.out("to a network behind the peer", 1, t.routed(ip4(ourVPN, "10.77.0.9", 8)))
		t.route("10.78.0.0/24", "")
		t.out("to a network on the link", reach, t.routed(ip4(ourVPN, "10.78.0.9", 8)))
		t.route("fd77::/64", "fd00:8::1")
		t.out("to an IPv6 network behind the peer", 1, t.routed(ip6(ourVPN6, "fd77::9", 8)))
		t.route("10.79.0.0/24", "10.8.0.78")
		t.out("to a network behind nobody", reach, t.routed(ip4(ourVPN, "10.79.0.9", 8)))
		t.route("10.77.0.128/25", "10.8.0.78")
		t.out("to a part of the network that is behind nobody", reach, t.routed(ip4(ourVPN, "10.77.0.129", 8)))
		t.out("to the other part", 1, t.routed(ip4(ourVPN, "10.77.0.127", 8)))
		t.on("tun0", "KEY_DEL", keyDel, keyconf(u32(keyPeerID, 1), u32(keySlot, 0)))
		t.quiet = true
		t.lost("without a key", t.routed(four), t.routed(six))
		t.counters()
		t.install(1, 0, 3, usual)
		t.out("with a key again", 2, t.routed(four), t.routed(six))
		t.on("tun0", "PEER_DEL", peerDel, peer(u32(peerID, 1)))
		t.add(emitOnly("without a peer", given(unix.ETH_P_IP, four), given(unix.ETH_P_IPV6, six)))
		t.add(emitOnly("received without a peer", t.emission(t.sealed(t.inner(8)))))
		t.upwardQuietly("a control packet without a peer", []byte{0x38, 1, 2, 3, 4})
		t.upwardQuietly("a data packet when the socket is plain again", t.sealed(t.inner(8)))
		t.counters()
		all = append(all, t)
	}
	t := udpTunnel(strangeProtocol, modeP2P)
	t.out("IPv4 that says it is IPv6", 0, given(unix.ETH_P_IPV6, ip4(ourVPN, t.destination, 20)))
	t.out("IPv6 that says it is IPv4", 0, given(unix.ETH_P_IP, ip6(ourVPN6, "fd00:8::1", 8)))
	return append(all, t)
}

// strangeProtocol begins the name of a sequence that the list of differences knows.
const strangeProtocol = "sent with another protocol's number"

// upwardQuietly is upward with nothing to read afterwards.
func (t *tunnel) upwardQuietly(name string, packet []byte) {
	t.add(script.Step{
		Name: name, Action: script.Emit, Emissions: []script.Emission{t.emission(packet)}, Await: []script.Await{{On: client, Count: 1}},
	})
}

// severalPeers are about whose packet is whose.
func severalPeers() []*tunnel {
	t := udpTunnel("several peers", modeMP)
	t.open(script.UDP, "second peer", "127.0.0.3:7001")
	t.addPeer(2, "127.0.0.3:7001")
	for id := uint32(1); id <= 2; id++ {
		t.install(id, 0, 0, pair{aesGCM, 32, byte(30 + id)})
	}
	one, two := pair{aesGCM, 32, 31}, pair{aesGCM, 32, 32}
	n := uint32(0)
	seal := func(p pair, peer uint32, packet []byte) []byte {
		n++
		return p.seal(op(0, peer), n, packet)
	}
	from := func(source string) []byte { return ip4(source, elsewhere, 8) }
	from6 := func(source string) []byte { return ip6(source, elsewhere6, 8) }
	t.in("the first's", 1, seal(one, 1, from("10.8.0.1")))
	t.in("the first's, source of the second", 0, seal(one, 1, from("10.8.0.2")))
	t.in("the first's, IPv6", 1, seal(one, 1, from6("fd00:8::1")))
	t.in("the first's, IPv6 source of the second", 0, seal(one, 1, from6("fd00:8::2")))
	t.in("the first's key and the second's id", 0, seal(one, 2, from("10.8.0.1")))
	t.in("the second's key and the first's id", 0, seal(two, 1, from("10.8.0.2")))
	for _, source := range []string{
		"0.0.0.0", "255.255.255.255", "127.0.0.1", "224.0.0.1", "169.254.0.1", "10.8.0.3", ourVPN, "10.8.0.255", "203.0.113.1",
	} {
		t.in("source "+source, 0, seal(one, 1, from(source)))
	}
	for _, source := range []string{"::", "::1", "fe80::1", "ff02::1", "fd00:8::3", ourVPN6, "2001:db8::1", "::ffff:10.8.0.1"} {
		t.in("source "+source, 0, seal(one, 1, from6(source)))
	}
	t.route("10.77.0.0/16", "10.8.0.1")
	t.in("source of a network behind the first", 1, seal(one, 1, from("10.77.3.4")))
	t.in("keepalives need no source", 0, seal(one, 1, keepalive))
	t.route("10.77.9.0/24", "10.8.0.2")
	t.in("source of a part that is behind the second", 0, seal(one, 1, from("10.77.9.1")))
	t.in("source of a part that is not", 1, seal(one, 1, from("10.77.8.1")))
	t.route("fd77::/48", "fd00:8::1")
	t.in("source of an IPv6 network behind the first", 1, seal(one, 1, from6("fd77::5")))
	t.route("10.90.0.0/16", "")
	t.in("source of a network on the link", 0, seal(one, 1, from("10.90.0.1")))
	t.on("tun0", "another VPN address", peerSet, peer(u32(peerID, 1), addr(peerVPN4, "203.0.113.1")))
	t.source = "203.0.113.1"
	t.in("source without a route that is the peer's own", 1, seal(one, 1, from("203.0.113.1")))
	t.in("its old address", 0, seal(one, 1, from("10.8.0.1")))
	t.in("networks behind its old address", 0, seal(one, 1, from("10.77.3.4")))
	t.on("tun0", "the first's address is the second's", peerSet, peer(u32(peerID, 2), addr(peerVPN4, "10.8.0.1")))
	t.from, t.peer, t.source = "second peer", 2, "10.8.0.1"
	t.fences = 0
	t.in("the second's, with the address that it got", 1, seal(two, 2, from("10.8.0.1")))
	t.in("and with what is behind it", 1, seal(two, 2, from("10.77.3.4")))
	t.in("without a peer id", 1, seal(two, undefinedPeer, from("10.8.0.1")))
	t.add(script.Step{
		Name: "sent to it", Action: script.Emit, Emissions: []script.Emission{t.routed(ip4(ourVPN, "10.8.0.1", 8)), t.routed(ip4(ourVPN, "10.77.9.1", 8))},
		Await: []script.Await{{On: "second peer", Count: 1}},
	})
	t.counters()
	return []*tunnel{t}
}

// states are about interfaces that are down, and devices that end.
func states() []*tunnel {
	t := udpTunnel("states", modeP2P)
	t.in("up", 1, t.sealed(t.inner(8)))
	t.add(script.Step{Name: "set tun0 down", Action: script.Down, On: "tun0"})
	t.quiet = true
	t.lost("received while down", t.emission(t.sealed(t.inner(8))), t.emission(t.sealed(keepalive)))
	t.upwardQuietly("a control packet while down", []byte{0x38, 1, 2, 3, 4})
	t.counters()
	t.add(script.Step{Name: "set tun0 up", Action: script.Up, On: "tun0"})
	t.quiet = false
	t.in("up again", 1, t.sealed(t.inner(8)))
	t.on("tun0", "replace the peer", peerNew, peer(u32(peerID, 5), addr(peerRemote4, "127.0.0.2"), be16(peerPort, 7001), fdOf(peerSocket, client)))
	t.keys(5)
	t.peer, t.fences = 5, 0
	t.in("the old one's packets", 0, usual.seal(op(0, 1), 50, t.inner(8)))
	t.in("the new one's packets", 1, usual.seal(op(0, 5), 51, t.inner(8)))
	t.send("delete the link", route, linkMessage(unix.RTM_DELLINK, do, "tun0"))
	t.upwardQuietly("a data packet when the device is gone", usual.seal(op(0, 5), 52, t.inner(8)))

	m := newTunnel("bindings", modeMP)
	m.open(script.UDP, client, "0.0.0.0:6000")
	m.open(script.UDP, remote, peerTransport)
	m.addPeer(1, peerTransport, addr(peerLocal4, "127.0.0.1"))
	m.up()
	m.out("sent with the local address given", 1, m.routed(ip4(ourVPN, m.destination, 8)))
	m.on("tun0", "another local address", peerSet, peer(u32(peerID, 1), addr(peerRemote4, "127.0.0.2"), be16(peerPort, 7001), addr(peerLocal4, "203.0.113.9")))
	m.out("sent with a local address that we don't have", 1, m.routed(ip4(ourVPN, m.destination, 8)))
	m.address("lo", "10.5.0.1", 32)
	m.on("tun0", "a local address of another network", peerSet, peer(u32(peerID, 1), addr(peerRemote4, "127.0.0.2"), be16(peerPort, 7001), addr(peerLocal4, "10.5.0.1")))
	m.out("sent with that", 1, m.routed(ip4(ourVPN, m.destination, 8)))
	m.on("tun0", "no local address", peerSet, peer(u32(peerID, 1), addr(peerRemote4, "127.0.0.2"), be16(peerPort, 7001)))
	m.out("sent without", 1, m.routed(ip4(ourVPN, m.destination, 8)))
	m.on("tun0", "a remote that can't be reached", peerSet, peer(u32(peerID, 1), addr(peerRemote4, "203.0.113.10"), be16(peerPort, 7001)))
	m.quiet = true
	m.lost("sent there", m.routed(ip4(ourVPN, m.destination, 8)), m.routed(ip4(ourVPN, m.destination, 8)))
	m.counters()
	m.on("tun0", "the remote as it was", peerSet, peer(u32(peerID, 1), addr(peerRemote4, "127.0.0.2"), be16(peerPort, 7001)))
	m.out("sent again", 1, m.routed(ip4(ourVPN, m.destination, 8)))
	return []*tunnel{t, m}
}
