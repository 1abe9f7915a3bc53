package conformance

import (
	"fmt"

	"golang.org/x/sys/unix"

	"ovpn-go/test/conformance/script"
)

// noticeSequences are about what is announced to the family's group, and when.
func noticeSequences() []*writer {
	var all []*writer
	for _, mode := range []uint8{modeP2P, modeMP} {
		w := newSequence([]string{"notices in P2P mode", "notices in MP mode"}[mode], extended)
		w.add(script.Step{Name: "listen with the socket of requests", Action: script.Join, On: control})
		w.listen()
		w.link("tun0", mode)
		w.socket("udp4", "udp", 6400)
		w.socket("udp6", "other", 6401)
		vpn := func(id uint32) []attr {
			if mode == modeP2P {
				return nil
			}
			return []attr{addr(peerVPN4, fmt.Sprintf("10.8.0.%d", id))}
		}
		for id := uint32(1); id <= 3; id++ {
			w.udpPeer("tun0", "udp", id, vpn(id)...)
		}
		w.on("tun0", "change", peerSet, peer(u32(peerID, 3), u32(peerTxID, 4)))
		w.installKey("tun0", 3, 0, 0, 1, 32, 32)
		w.swapKeys("tun0", 3)
		w.on("tun0", "delete", peerDel, peer(u32(peerID, 3)))
		w.on("tun0", "refused delete", peerDel, peer(u32(peerID, 3)))
		w.send("delete without NLM_F_ACK", control,
			request(peerDel, ifindexOf("tun0"), peer(u32(peerID, 2))).with(unix.NLM_F_REQUEST))
		w.udpPeer("tun0", "udp", 4, vpn(4)...)
		w.udpPeer("tun0", "other", 5, vpn(5)...)
		if mode == modeMP {
			w.udpPeer("tun0", "other", 6, vpn(6)...)
			w.udpPeer("tun0", "other", 7, vpn(7)...)
		}
		w.closeAndAwait("other", 1+2*int(mode))
		w.dump("dump", "tun0")
		w.udpPeer("tun0", "udp", 8, vpn(8)...)
		w.send("delete the link", route, linkMessage(unix.RTM_DELLINK, do, "tun0"))
		w.dump("dump", "tun0")
		w.link("tun0", mode)
		w.udpPeer("tun0", "udp", 9, vpn(9)...)
		w.on("tun0", "delete", peerDel, peer(u32(peerID, 9)))
		all = append(all, w)
	}
	return all
}

// rightsSequences are about who may ask.
func rightsSequences() []*writer {
	w := newSequence("without CAP_NET_ADMIN", extended)
	w.link("tun0", modeP2P)
	w.rights(false)
	w.netlink("weak", unix.NETLINK_GENERIC, unix.NETLINK_EXT_ACK)
	for _, on := range []string{control, "weak"} {
		for _, op := range operations {
			w.send("EPERM: "+op.name+" on "+on, on, request(op.cmd, ifindexOf("tun0"), nest(op.nest, u32(1, 5))))
		}
		w.send("EPERM: dump on "+on, on, request(peerGet, ifindexOf("tun0")).with(dumping))
		w.send("EPERM before EINVAL on "+on, on, request(peerGet, data(0)))
		w.send("EOPNOTSUPP before EPERM on "+on, on, request(99))
		w.send("EINVAL before EPERM on "+on, on, request(peerGet).with(do|unix.NLM_F_CREATE))
		w.send("GETFAMILY on "+on, on, getFamily(do, familyName("ovpn")))
		w.send("GETPOLICY on "+on, on, getPolicy(dumping, familyID()))
	}
	w.add(script.Step{Name: "join the group", Action: script.Join, On: "weak"})
	w.send("RTM_NEWLINK", route, newLink("tun1", info(0)))
	w.send("RTM_DELLINK", route, linkMessage(unix.RTM_DELLINK, do, "tun0"))
	w.send("RTM_GETLINK", route, linkMessage(unix.RTM_GETLINK, unix.NLM_F_REQUEST, "tun0"))
	w.rights(true)
	for _, op := range operations {
		m := request(op.cmd, ifindexOf("tun0"), nest(op.nest, u32(1, 5)))
		w.send("opened without the right, sent with an address: "+op.name, "weak", m)
		w.sendAs(script.Unaddressed, "EPERM, opened without the right, sent without an address: "+op.name, "weak", m)
		w.sendAs(script.Unaddressed, "opened with the right, sent without an address: "+op.name, control, m)
	}
	w.do("with CAP_NET_ADMIN again", peerGet, ifindexOf("tun0"), peer(u32(peerID, 5)))

	u := newSequence("root of a user namespace", extended)
	u.Unprivileged = true
	u.link("tun0", modeP2P)
	u.socket("udp4", "udp", 6500)
	u.udpPeer("tun0", "udp", 1)
	u.check("tun0", 1)
	u.dump("dump", "tun0")
	u.send("GETFAMILY", control, getFamily(do, familyName("ovpn")))
	u.installKey("tun0", 1, 0, 0, 1, 32, 32)
	u.getKey("tun0", 1, 0)
	u.on("tun0", "delete", peerDel, peer(u32(peerID, 1)))
	u.do("EOPNOTSUPP before EPERM", 99)
	u.send("RTM_DELLINK", route, linkMessage(unix.RTM_DELLINK, do, "tun0"))
	return []*writer{w, u}
}

// namespaceSequences are about devices, requests and transport sockets in different network namespaces.
func namespaceSequences() []*writer {
	w := newSequence("namespaces", extended)
	w.listen()
	w.link("tun0", modeMP)
	w.namespace("other")
	w.socket("udp4", "udp", 6600)
	w.netlink("there", unix.NETLINK_GENERIC, unix.NETLINK_EXT_ACK)
	w.add(script.Step{Name: "join the group there", Action: script.Join, On: "there"})
	w.send("I2: interface of another namespace", "there", request(peerGet, ifindexOf("tun0"), peer(u32(peerID, 1))))
	w.udpPeer("tun0", "udp", 1, addr(peerVPN4, "10.8.0.1"))
	w.check("tun0", 1)
	w.namespace("home")
	w.check("tun0", 1)
	w.dump("dump", "tun0")
	w.socket("udp4", "near", 6601)
	w.udpPeer("tun0", "near", 2, addr(peerVPN4, "10.8.0.2"))
	w.check("tun0", 2)
	w.dump("dump", "tun0")
	w.send("move tun0 to the other namespace", route, linkMessage(unix.RTM_NEWLINK, do, "tun0", namespaceFD("other")))
	w.check("tun0", 1)
	w.dump("I2: dump of the moved", "tun0")
	w.namespace("other")
	w.find("tun0")
	get := func(id uint32) message { return request(peerGet, ifindexOf("tun0"), peer(u32(peerID, id))) }
	w.send("far peer of the moved", "there", get(1))
	w.send("near peer of the moved", "there", get(2))
	w.send("dump of the moved", "there", request(peerGet, ifindexOf("tun0")).with(dumping))
	w.send("delete the near one, moved", "there", request(peerDel, ifindexOf("tun0"), peer(u32(peerID, 2))))
	w.netlink("route there", unix.NETLINK_ROUTE, unix.NETLINK_EXT_ACK)
	w.send("move tun0 back", "route there", linkMessage(unix.RTM_NEWLINK, do, "tun0", namespaceFD("home")))
	w.namespace("home")
	w.find("tun0")
	w.check("tun0", 1)
	w.udpPeer("tun0", "near", 2, addr(peerVPN4, "10.8.0.2"))
	w.send("new link in the other namespace", route, newLink("tun1", namespaceFD("other"), info(modeP2P)))
	w.namespace("other")
	w.find("tun1")
	w.send("request to the new link", "there", request(peerGet, ifindexOf("tun1"), peer(u32(peerID, 2))))
	w.namespace("home")
	w.on("tun0", "delete the near one", peerDel, peer(u32(peerID, 2)))
	w.on("tun0", "delete the far one", peerDel, peer(u32(peerID, 1)))
	return []*writer{w}
}

// namespaceFD is IFLA_NET_NS_FD with a namespace of the sequence.
func namespaceFD(name string) attr { return fdOf(unix.IFLA_NET_NS_FD, script.NamespaceFD+name) }

// optionSequences are about options of generic netlink sockets.
func optionSequences() []*writer {
	w := newSequence("socket options", plain)
	for number := range 20 {
		for _, value := range []int{1, 0} {
			w.add(script.Step{
				Name: fmt.Sprintf("option %d = %d", number, value), Action: script.Option, On: control, Number: number, Value: value,
			})
			w.send("GETFAMILY", control, getFamily(do, familyName("ovpn")))
		}
	}
	return []*writer{w}
}
