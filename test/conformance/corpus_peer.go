package conformance

import "fmt"

// peerSequences are about PEER_NEW, PEER_SET, PEER_GET and PEER_DEL.
func peerSequences(p profile) []*writer {
	return []*writer{
		newPeers(p), newPeersMP(p), sockets(p), setPeers(p), setPeersMP(p), getPeers(p), deletePeers(p), replacePeers(p),
		endpoints(p), tcpPeers(p),
	}
}

// udp is a complete description of a peer with changes: the attributes of changes replace those of the same number,
// and those of the numbers in without are left out.
func udp(id uint32, without []uint16, changes ...attr) attr {
	basis := []attr{
		u32(peerID, id), addr(peerRemote4, "127.0.0.1"), be16(peerPort, 9), fdOf(peerSocket, "udp"),
	}
	var kids []attr
	for _, a := range basis {
		keep := true
		for _, kind := range without {
			keep = keep && a.kind != kind
		}
		for _, c := range changes {
			keep = keep && a.kind != c.kind
		}
		if keep {
			kids = append(kids, a)
		}
	}
	return peer(append(kids, changes...)...)
}

func none(kinds ...uint16) []uint16 { return kinds }

// rules are combinations of attributes that P1 to P10 are about, with or without a mistake.
var rules = []struct {
	name string
	peer attr
}{
	{"P1: no id", udp(0, none(peerID))},
	{"P1: no id, no socket", udp(0, none(peerID, peerSocket))},
	{"P1: nothing", peer()},
	{"P2: both remotes", udp(1, nil, addr(peerRemote6, "::1"))},
	{"P2: both remotes, no port", udp(1, none(peerPort), addr(peerRemote6, "::1"))},
	{"P3: port without remote", udp(1, none(peerRemote4))},
	{"P4: remote without port", udp(1, none(peerPort))},
	{"P4: IPv6 remote without port", udp(1, none(peerPort, peerRemote4), addr(peerRemote6, "::1"))},
	{"P5: local IPv4 without remote", udp(1, none(peerPort, peerRemote4), addr(peerLocal4, "127.0.0.1"))},
	{"P5: local IPv4 with IPv6 remote", udp(1, none(peerRemote4), addr(peerRemote6, "::1"), addr(peerLocal4, "127.0.0.1"))},
	{"P6: local IPv6 without remote", udp(1, none(peerPort, peerRemote4), addr(peerLocal6, "::1"))},
	{"P6: local IPv6 with IPv4 remote", udp(1, nil, addr(peerLocal6, "::1"))},
	{"P6: mapped local IPv6 with IPv4 remote", udp(1, nil, addr(peerLocal6, "::ffff:127.0.0.1"))},
	{"P7: mapped remote, IPv6 local", udp(1, none(peerRemote4), addr(peerRemote6, "::ffff:127.0.0.1"), addr(peerLocal6, "::1"))},
	{"P7: IPv6 remote, mapped local", udp(1, none(peerRemote4), addr(peerRemote6, "::1"), addr(peerLocal6, "::ffff:127.0.0.1"))},
	{"P7: both mapped, no mistake", udp(1, none(peerRemote4), addr(peerRemote6, "::ffff:127.0.0.1"), addr(peerLocal6, "::ffff:127.0.0.1"))},
	{"P8: scope id with IPv4", udp(1, nil, u32(peerScope, 1))},
	{"P8: scope id 0 with IPv4", udp(1, nil, u32(peerScope, 0))},
	{"P8: scope id with mapped remote", udp(1, none(peerRemote4), addr(peerRemote6, "::ffff:127.0.0.1"), u32(peerScope, 1))},
	{"P8: scope id without remote", udp(1, none(peerRemote4, peerPort), u32(peerScope, 1))},
	{"P8: scope id with IPv6, no mistake", udp(1, none(peerRemote4), addr(peerRemote6, "fe80::1"), u32(peerScope, 1))},
	{"P9: vpn-ipv4", udp(1, nil, addr(peerVPN4, "10.8.0.1"))},
	{"P9: vpn-ipv6", udp(1, nil, addr(peerVPN6, "fd00::1"))},
	{"P9: unspecified vpn-ipv4", udp(1, nil, addr(peerVPN4, "0.0.0.0"))},
	{"P10: interval alone", udp(1, nil, u32(peerInterval, 600))},
	{"P10: timeout alone", udp(1, nil, u32(peerTimeout, 1200))},
	{"P10: interval 0 alone", udp(1, nil, u32(peerInterval, 0))},
	{"P10: both, no mistake", udp(1, nil, u32(peerInterval, 600), u32(peerTimeout, 1200))},
	{"P10: both 0, no mistake", udp(1, nil, u32(peerInterval, 0), u32(peerTimeout, 0))},
	{"P10: one of both 0, no mistake", udp(1, nil, u32(peerInterval, 600), u32(peerTimeout, 0))},
	{"P10: interval above timeout, no mistake", udp(1, nil, u32(peerInterval, 1200), u32(peerTimeout, 600))},
	{"P2 before P8", udp(1, nil, addr(peerRemote6, "::1"), u32(peerScope, 1), u32(peerInterval, 600))},
	{"P3 before P10", udp(1, none(peerRemote4), u32(peerInterval, 600))},
	{"P5 before P9", udp(1, none(peerPort, peerRemote4), addr(peerLocal4, "127.0.0.1"), addr(peerVPN4, "10.8.0.1"))},
	{"P8 before P9", udp(1, nil, u32(peerScope, 1), addr(peerVPN4, "10.8.0.1"))},
	{"P9 before P10", udp(1, nil, addr(peerVPN4, "10.8.0.1"), u32(peerTimeout, 1200))},
	{"tx-id", udp(1, nil, u32(peerTxID, 5))},
	{"tx-id 0", udp(1, nil, u32(peerTxID, 0))},
	{"local IPv4", udp(1, nil, addr(peerLocal4, "127.0.0.1"))},
	{"local IPv4 unspecified", udp(1, nil, addr(peerLocal4, "0.0.0.0"))},
	{"local IPv4 that is not ours", udp(1, nil, addr(peerLocal4, "192.0.2.1"))},
	{"local IPv6", udp(1, none(peerRemote4), addr(peerRemote6, "::1"), addr(peerLocal6, "::1"))},
	{"local IPv6 unspecified", udp(1, none(peerRemote4), addr(peerRemote6, "::1"), addr(peerLocal6, "::"))},
	{"remote unspecified", udp(1, nil, addr(peerRemote4, "0.0.0.0"))},
	{"remote multicast", udp(1, nil, addr(peerRemote4, "224.0.0.1"))},
	{"remote broadcast", udp(1, nil, addr(peerRemote4, "255.255.255.255"))},
	{"remote IPv6 unspecified", udp(1, none(peerRemote4), addr(peerRemote6, "::"))},
	{"remote IPv6 multicast", udp(1, none(peerRemote4), addr(peerRemote6, "ff02::1"))},
	{"link-local without scope id", udp(1, none(peerRemote4), addr(peerRemote6, "fe80::1"))},
	{"link-local with a scope id that does not exist", udp(1, none(peerRemote4), addr(peerRemote6, "fe80::1"), u32(peerScope, 4711))},
}

// check asks for a peer, which shows what a request before has done.
func (w *writer) check(device string, id uint32) {
	w.on(device, fmt.Sprintf("check %d", id), peerGet, peer(u32(peerID, id)))
}

func newPeers(p profile) *writer {
	w := newSequence("PEER_NEW in P2P mode", p)
	w.link("tun0", modeP2P)
	w.socket("udp6", "udp", 6010)
	w.on("tun0", "N1", peerNew)
	for _, r := range rules {
		w.on("tun0", "PEER_NEW, "+r.name, peerNew, r.peer)
		w.check("tun0", 1)
	}
	w.on("tun0", "N2: no socket", peerNew, udp(1, none(peerSocket)))
	w.on("tun0", "P10 before N2", peerNew, udp(1, none(peerSocket), u32(peerInterval, 1)))
	w.on("tun0", "N2 before N5", peerNew, udp(1, none(peerSocket, peerRemote4, peerPort)))
	w.on("tun0", "N5: UDP without remote", peerNew, udp(1, none(peerRemote4, peerPort)))
	for _, id := range []uint32{0, 1, 2, 0xfffffe, 0xffffff} {
		w.on("tun0", fmt.Sprintf("P2P replaces, id %d", id), peerNew, udp(id, nil))
		w.check("tun0", id)
		w.check("tun0", 1)
		w.dump("dump", "tun0")
	}
	return w
}

func newPeersMP(p profile) *writer {
	w := newSequence("PEER_NEW in MP mode", p)
	w.link("tun0", modeMP)
	w.socket("udp6", "udp", 6011)
	for _, r := range rules {
		w.on("tun0", "PEER_NEW, MP, "+r.name, peerNew, r.peer)
		w.check("tun0", 1)
	}
	for i, r := range rules {
		id := uint32(100 + i)
		vpn := r.peer
		vpn.kids = append([]attr(nil), vpn.kids...)
		for j := range vpn.kids {
			if vpn.kids[j].kind == peerID {
				vpn.kids[j] = u32(peerID, id)
			}
		}
		vpn.kids = append(vpn.kids, addr(peerVPN4, fmt.Sprintf("10.9.0.%d", i+1)))
		w.on("tun0", "PEER_NEW, MP with address, "+r.name, peerNew, vpn)
		w.check("tun0", id)
	}
	w.dump("dump", "tun0")

	id := uint32(10)
	try := func(rule string, attrs ...attr) {
		id++
		w.on("tun0", rule, peerNew, udp(id, nil, attrs...))
		w.check("tun0", id)
	}
	try("A1: none")
	try("A1: unspecified IPv4", addr(peerVPN4, "0.0.0.0"))
	try("A1: unspecified IPv6", addr(peerVPN6, "::"))
	try("A1: both unspecified", addr(peerVPN4, "0.0.0.0"), addr(peerVPN6, "::"))
	try("A1: one unspecified, no mistake", addr(peerVPN4, "0.0.0.0"), addr(peerVPN6, "fd00::77"))
	for _, a := range []string{
		"224.0.0.1", "239.255.255.255", "255.255.255.255", "127.0.0.1", "127.255.255.255", "240.0.0.1", "255.255.255.254",
		"0.0.0.1", "169.254.0.1", "100.64.0.1", "223.255.255.255", "126.255.255.255", "128.0.0.0",
	} {
		try("A2: "+a, addr(peerVPN4, a))
		try("A2 with IPv6: "+a, addr(peerVPN4, a), addr(peerVPN6, fmt.Sprintf("fd00::%x", id)))
	}
	for _, a := range []string{
		"ff02::1", "ff0e::1", "::ffff:10.0.0.1", "::1", "::2", "::10.0.0.1", "fe80::1", "fec0::1", "2001:db8::1", "::1:0:0:1",
		"fdff::1", "64:ff9b::1",
	} {
		try("A3: "+a, addr(peerVPN6, a))
		try("A3 with IPv4: "+a, addr(peerVPN6, a), addr(peerVPN4, fmt.Sprintf("10.10.0.%d", id)))
	}
	try("A2 before A3", addr(peerVPN4, "224.0.0.1"), addr(peerVPN6, "ff02::1"))
	try("N2 before A2: has a socket", addr(peerVPN4, "224.0.0.1"))
	w.on("tun0", "N2 before A2", peerNew, udp(80, none(peerSocket), addr(peerVPN4, "224.0.0.1")))
	w.on("tun0", "A1 before N4", peerNew, udp(80, nil, u32(peerSocket, 4000)))
	w.on("tun0", "A1 before N5", peerNew, udp(80, none(peerRemote4, peerPort)))

	w.udpPeer("tun0", "udp", 1, addr(peerVPN4, "10.8.0.1"), addr(peerVPN6, "fd00::1"))
	w.udpPeer("tun0", "udp", 1, addr(peerVPN4, "10.8.0.2"))
	w.udpPeer("tun0", "udp", 2, addr(peerVPN4, "10.8.0.1"))
	w.udpPeer("tun0", "udp", 2, addr(peerVPN4, "10.8.0.2"), addr(peerVPN6, "fd00::1"))
	w.udpPeer("tun0", "udp", 1, addr(peerVPN4, "10.8.0.1"))
	w.udpPeer("tun0", "udp", 2, addr(peerVPN4, "10.8.0.2"), addr(peerVPN6, "fd00::2"))
	w.udpPeer("tun0", "udp", 3, addr(peerVPN4, "0.0.0.0"), addr(peerVPN6, "fd00::3"))
	w.udpPeer("tun0", "udp", 4, addr(peerVPN4, "0.0.0.0"), addr(peerVPN6, "fd00::4"))
	w.udpPeer("tun0", "udp", 0xffffff, addr(peerVPN4, "10.8.0.255"))
	w.dump("dump", "tun0")
	return w
}

// sockets are about what may stand in the socket attribute (N4 to N7).
func sockets(p profile) *writer {
	w := newSequence("transport sockets", p)
	w.link("tun0", modeP2P)
	w.link("tun1", modeP2P)
	for _, fd := range []uint32{4000, 1 << 20, 1<<31 - 1, 1 << 31, 1<<32 - 1} {
		w.on("tun0", fmt.Sprintf("N4: descriptor %d", fd), peerNew, udp(1, nil, u32(peerSocket, fd)))
	}
	for _, kind := range []string{"file", "pipe", "epoll"} {
		w.socket(kind, kind, 0)
		w.on("tun0", "N4: "+kind, peerNew, udp(1, nil, fdOf(peerSocket, kind)))
		w.on("tun0", "N4: "+kind+" without remote", peerNew, udp(1, none(peerRemote4, peerPort), fdOf(peerSocket, kind)))
	}
	for _, kind := range []string{"unix", "icmp", "netlink"} {
		w.socket(kind, kind, 0)
		w.on("tun0", "N7: "+kind, peerNew, udp(1, nil, fdOf(peerSocket, kind)))
		w.on("tun0", "N7: "+kind+" without remote", peerNew, udp(1, none(peerRemote4, peerPort), fdOf(peerSocket, kind)))
	}
	w.socket("udp4-encap", "encap", 6020)
	w.on("tun0", "N7: encapsulation of another kind", peerNew, udp(1, nil, fdOf(peerSocket, "encap")))
	w.socket("udp4", "udp", 6021)
	w.on("tun0", "attach", peerNew, udp(1, nil))
	w.on("tun1", "N7: attached to another device", peerNew, udp(1, nil))
	w.on("tun0", "the same socket again", peerNew, udp(2, nil))
	w.on("tun0", "delete", peerDel, peer(u32(peerID, 2)))
	w.on("tun1", "free again", peerNew, udp(1, nil))
	w.on("tun0", "N7: attached to the other device", peerNew, udp(1, nil))
	w.socket("udp4-unbound", "unbound", 0)
	w.on("tun0", "unbound", peerNew, udp(3, nil, fdOf(peerSocket, "unbound")))
	w.check("tun0", 3)
	w.socket("udp6", "dual", 6022)
	w.on("tun0", "dual-stack", peerNew, udp(4, nil, fdOf(peerSocket, "dual")))
	w.check("tun0", 4)
	w.socket("udp6-only", "v6only", 6023)
	w.on("tun0", "IPv6 only, IPv4 remote", peerNew, udp(5, nil, fdOf(peerSocket, "v6only")))
	w.check("tun0", 5)
	w.close("udp")
	w.close("dual")
	w.socket("udp4-connected", "connected", 6024)
	w.on("tun0", "connected UDP socket: new", peerNew, udp(6, nil, fdOf(peerSocket, "connected")))
	w.on("tun0", "connected UDP socket: check", peerGet, peer(u32(peerID, 6)))
	w.on("tun0", "connected UDP socket: another remote", peerNew, udp(7, nil, fdOf(peerSocket, "connected"), addr(peerRemote4, "127.0.0.2")))
	w.on("tun0", "connected UDP socket: check again", peerGet, peer(u32(peerID, 7)))
	w.on("tun0", "connected UDP socket: delete", peerDel, peer(u32(peerID, 7)))
	w.on("tun0", "connected UDP socket: once more", peerNew, udp(8, nil, fdOf(peerSocket, "connected")))
	w.on("tun0", "connected UDP socket: check once more", peerGet, peer(u32(peerID, 8)))
	return w
}

func setPeers(p profile) *writer {
	w := newSequence("PEER_SET in P2P mode", p)
	w.link("tun0", modeP2P)
	w.socket("udp6", "udp", 6030)
	w.on("tun0", "S4: no peer at all", peerSet, peer(u32(peerID, 1)))
	w.udpPeer("tun0", "udp", 1)
	w.on("tun0", "S1", peerSet)
	w.on("tun0", "S4", peerSet, peer(u32(peerID, 2)))
	w.on("tun0", "P9 before S4", peerSet, peer(u32(peerID, 2), addr(peerVPN4, "10.8.0.1")))
	w.on("tun0", "only the id", peerSet, peer(u32(peerID, 1)))
	w.check("tun0", 1)
	for _, r := range rules {
		w.on("tun0", "PEER_SET, "+r.name, peerSet, withoutSocket(r.peer))
		w.check("tun0", 1)
	}
	return w
}

func withoutSocket(p attr) attr {
	out := p
	out.kids = []attr{}
	for _, a := range p.kids {
		if a.kind != peerSocket {
			out.kids = append(out.kids, a)
		}
	}
	return out
}

func setPeersMP(p profile) *writer {
	w := newSequence("PEER_SET in MP mode", p)
	w.link("tun0", modeMP)
	w.socket("udp6", "udp", 6031)
	w.udpPeer("tun0", "udp", 1, addr(peerVPN4, "10.8.0.1"), addr(peerVPN6, "fd00::1"))
	w.udpPeer("tun0", "udp", 2, addr(peerVPN4, "10.8.0.2"))
	w.udpPeer("tun0", "udp", 3, addr(peerVPN6, "fd00::3"))
	for _, r := range rules {
		w.on("tun0", "PEER_SET, MP, "+r.name, peerSet, withoutSocket(r.peer))
		w.check("tun0", 1)
	}
	try := func(rule string, id uint32, attrs ...attr) {
		w.on("tun0", rule, peerSet, peer(append([]attr{u32(peerID, id)}, attrs...)...))
		w.check("tun0", id)
	}
	try("S6: IPv4 of another peer", 1, addr(peerVPN4, "10.8.0.2"))
	try("S7: IPv6 of another peer", 1, addr(peerVPN6, "fd00::3"))
	try("S6 before S7", 1, addr(peerVPN4, "10.8.0.2"), addr(peerVPN6, "fd00::3"))
	try("S7 before S8", 1, addr(peerVPN4, "224.0.0.1"), addr(peerVPN6, "fd00::3"))
	try("own address again", 2, addr(peerVPN4, "10.8.0.2"))
	try("clear IPv4", 1, addr(peerVPN4, "0.0.0.0"))
	try("S8: clear the last", 1, addr(peerVPN6, "::"))
	try("S8: IPv4 multicast", 1, addr(peerVPN4, "224.0.0.1"))
	try("S8: IPv6 multicast", 1, addr(peerVPN6, "ff02::1"))
	try("S8: merged, no mistake", 1, addr(peerVPN4, "10.8.0.99"), addr(peerVPN6, "::"))
	try("address that was given back", 2, addr(peerVPN4, "10.8.0.1"))
	try("take one that another had", 3, addr(peerVPN4, "10.8.0.2"))
	try("S4", 9, addr(peerVPN4, "10.8.0.50"))
	try("S4 before S8", 9, addr(peerVPN4, "224.0.0.1"))
	try("several at once", 3, u32(peerTxID, 99), u32(peerInterval, 500), u32(peerTimeout, 1000), addr(peerVPN4, "10.8.0.50"),
		addr(peerRemote4, "127.0.0.7"), be16(peerPort, 77), addr(peerLocal4, "127.0.0.8"))
	try("remote resets local", 3, addr(peerRemote4, "127.0.0.9"), be16(peerPort, 78))
	try("refused request leaves all alone", 3, addr(peerVPN4, "10.8.0.1"), u32(peerTxID, 5), addr(peerRemote4, "127.0.0.1"), be16(peerPort, 1))
	w.dump("dump", "tun0")
	return w
}

func getPeers(p profile) *writer {
	w := newSequence("PEER_GET", p)
	w.link("tun0", modeMP)
	w.link("tun1", modeP2P)
	w.socket("udp6", "udp", 6040)
	w.on("tun0", "G1", peerGet)
	w.on("tun0", "G2", peerGet, peer())
	w.on("tun0", "G4", peerGet, peer(u32(peerID, 1)))
	w.on("tun1", "G4: P2P", peerGet, peer(u32(peerID, 1)))
	w.udpPeer("tun0", "udp", 1, addr(peerVPN4, "10.8.0.1"))
	w.check("tun0", 1)
	for kind, f := range peerFormats {
		if f.size == 0 || kind == peerID {
			continue
		}
		value := make([]byte, f.size)
		if f.size == 2 {
			value[1] = 1
		}
		w.on("tun0", "G3: "+f.name, peerGet, peer(u32(peerID, 1), data(uint16(kind), value...)))
		w.on("tun0", "G3: "+f.name+" and tx-id", peerGet, peer(u32(peerTxID, 1), data(uint16(kind), value...), u32(peerID, 1)))
		w.on("tun0", "G2 before G3: "+f.name, peerGet, peer(data(uint16(kind), value...)))
	}
	w.on("tun0", "G3 before G4", peerGet, peer(u32(peerID, 9), u32(peerTxID, 1)))
	w.on("tun0", "id 0", peerGet, peer(u32(peerID, 0)))
	return w
}

func deletePeers(p profile) *writer {
	w := newSequence("PEER_DEL", p)
	w.link("tun0", modeMP)
	w.link("tun1", modeP2P)
	w.socket("udp4", "udp", 6050)
	w.socket("udp4", "udp1", 6051)
	w.on("tun0", "D1", peerDel)
	w.on("tun0", "D2", peerDel, peer())
	w.on("tun0", "D3", peerDel, peer(u32(peerID, 1)))
	w.on("tun1", "D3: P2P without peer", peerDel, peer(u32(peerID, 1)))
	for id := uint32(1); id <= 4; id++ {
		w.udpPeer("tun0", "udp", id, addr(peerVPN4, fmt.Sprintf("10.8.0.%d", id)))
	}
	w.udpPeer("tun1", "udp1", 1)
	w.on("tun1", "D3: P2P, another id", peerDel, peer(u32(peerID, 2)))
	w.on("tun1", "delete in P2P", peerDel, peer(u32(peerID, 1)))
	w.on("tun1", "D3: twice in P2P", peerDel, peer(u32(peerID, 1)))
	for _, id := range []uint32{2, 2, 4, 1, 3, 3} {
		w.on("tun0", fmt.Sprintf("delete %d", id), peerDel, peer(u32(peerID, id)))
		w.dump("dump", "tun0")
	}
	w.udpPeer("tun0", "udp", 2, addr(peerVPN4, "10.8.0.2"))
	w.check("tun0", 2)
	return w
}

// replacePeers is what P2P devices do with a second peer, and what is left of the first.
func replacePeers(p profile) *writer {
	w := newSequence("P2P replacement", p)
	w.link("tun0", modeP2P)
	w.listen()
	w.socket("udp4", "a", 6060)
	w.socket("udp4", "b", 6061)
	w.udpPeer("tun0", "a", 1)
	w.installKey("tun0", 1, 0, 0, 1, 32, 32)
	w.udpPeer("tun0", "b", 1)
	w.getKey("tun0", 1, 0)
	w.udpPeer("tun0", "a", 2, u32(peerTxID, 9))
	w.check("tun0", 1)
	w.check("tun0", 2)
	w.on("tun0", "N5 leaves the peer", peerNew, peer(u32(peerID, 3), fdOf(peerSocket, "a")))
	w.on("tun0", "N4 leaves the peer", peerNew, peer(u32(peerID, 3), addr(peerRemote4, "127.0.0.1"), be16(peerPort, 1), u32(peerSocket, 4000)))
	w.check("tun0", 2)
	w.on("tun0", "delete", peerDel, peer(u32(peerID, 2)))
	w.dump("dump", "tun0")
	return w
}

// endpoints are about how addresses are shown.
func endpoints(p profile) *writer {
	w := newSequence("endpoints", p)
	w.link("tun0", modeMP)
	w.socket("udp6", "udp", 6070)
	for i, attrs := range [][]attr{
		{addr(peerRemote4, "192.0.2.1"), be16(peerPort, 1)},
		{addr(peerRemote4, "192.0.2.1"), be16(peerPort, 65535), addr(peerLocal4, "192.0.2.2")},
		{addr(peerRemote6, "2001:db8::1"), be16(peerPort, 1194)},
		{addr(peerRemote6, "2001:db8::1"), be16(peerPort, 1194), addr(peerLocal6, "2001:db8::2")},
		{addr(peerRemote6, "2001:db8::1"), be16(peerPort, 1194), u32(peerScope, 7)},
		{addr(peerRemote6, "fe80::1"), be16(peerPort, 1194), u32(peerScope, 1), addr(peerLocal6, "fe80::2")},
		{addr(peerRemote6, "::ffff:192.0.2.9"), be16(peerPort, 1194)},
		{addr(peerRemote6, "::ffff:192.0.2.9"), be16(peerPort, 1194), addr(peerLocal6, "::ffff:192.0.2.10")},
		{be16(peerPort|netByteOrder, 1194), addr(peerRemote4|netByteOrder, "192.0.2.11")},
		{be16(peerPort, 1194), addr(peerRemote4, "192.0.2.12"), addr(peerRemote4, "192.0.2.13")},
	} {
		id := uint32(i + 1)
		kids := append([]attr{u32(peerID, id), fdOf(peerSocket, "udp"), addr(peerVPN4, fmt.Sprintf("10.8.0.%d", id))}, attrs...)
		w.on("tun0", fmt.Sprintf("endpoint %d", id), peerNew, peer(kids...))
		w.check("tun0", id)
		w.on("tun0", fmt.Sprintf("endpoint %d as a change", id), peerSet, peer(append([]attr{u32(peerID, 1)}, attrs...)...))
		w.check("tun0", 1)
	}
	w.dump("dump", "tun0")
	return w
}

// tcpPeers are peers over TCP. They come last in the sequence of their own, so that what differs there stays there.
func tcpPeers(p profile) *writer {
	w := newSequence("TCP", p)
	w.link("tun0", modeP2P)
	w.listen()
	w.socket("tcp4-listening", "listening", 6080)
	w.socket("tcp4-new", "new", 0)
	w.socket("tcp4", "tcp", 6081)
	tcp := func(id uint32, socket string, more ...attr) attr {
		return peer(append([]attr{u32(peerID, id), fdOf(peerSocket, socket)}, more...)...)
	}
	w.on("tun0", "N6: remote with TCP", peerNew, tcp(1, "tcp", addr(peerRemote4, "127.0.0.1"), be16(peerPort, 9)))
	w.on("tun0", "N7: listening", peerNew, tcp(1, "listening"))
	w.on("tun0", "N7: not connected", peerNew, tcp(1, "new"))
	w.on("tun0", "TCP", peerNew, tcp(1, "tcp"))
	w.check("tun0", 1)
	w.on("tun0", "N7: TCP again", peerNew, tcp(2, "tcp"))
	w.check("tun0", 1)
	w.on("tun0", "S5", peerSet, peer(u32(peerID, 1), addr(peerRemote4, "127.0.0.1"), be16(peerPort, 9)))
	w.on("tun0", "change of keepalive", peerSet, peer(u32(peerID, 1), u32(peerInterval, 600), u32(peerTimeout, 1200)))
	w.installKey("tun0", 1, 0, 0, 1, 32, 32)
	w.getKey("tun0", 1, 0)
	w.dump("dump", "tun0")
	w.on("tun0", "delete", peerDel, peer(u32(peerID, 1)))
	w.socket("tcp4", "second", 6082)
	w.socket("tcp4", "third", 6083)
	w.on("tun0", "a second connection", peerNew, tcp(5, "second"))
	w.on("tun0", "a third, which replaces it", peerNew, tcp(6, "third"))
	w.check("tun0", 6)
	w.closeAndAwait("third", 1)
	w.on("tun0", "G4: closed", peerGet, peer(u32(peerID, 6)))
	w.on("tun0", "TCP once more", peerNew, tcp(3, "tcp", u32(peerTxID, 4)))
	w.on("tun0", "check of TCP once more", peerGet, peer(u32(peerID, 3)))
	return w
}
