package conformance

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"ovpn-go/test/conformance/script"
)

// linkSequences are about links of kind ovpn, over rtnetlink.
func linkSequences() []*writer {
	return []*writer{newLinks(), chosenIndexes(), attributesOfNewLinks(), showLinks(), listLinks(), changeLinks(), announcedLinks()}
}

func newLinks() *writer {
	w := newSequence("RTM_NEWLINK", plain)
	w.link("tun0", modeP2P)
	w.send("taken name", route, newLink("tun0", info(modeP2P)))
	w.send("taken name of another kind", route, newLink("lo", info(modeP2P)))
	w.send("taken name without NLM_F_EXCL", route, linkMessage(unix.RTM_NEWLINK, do|unix.NLM_F_CREATE, "",
		text(unix.IFLA_IFNAME, "tun0"), info(modeMP)))
	w.link("tun1", modeMP)
	w.send("mode 2", route, newLink("tun2", info(2)))
	w.send("mode 255", route, newLink("tun2", info(255)))
	w.send("no mode", route, newLink("tun3", infoWith()))
	w.find("tun3")
	w.send("no data", route, newLink("tun4", nest(unix.IFLA_LINKINFO, text(unix.IFLA_INFO_KIND, "ovpn"))))
	w.find("tun4")
	w.send("mode of no bytes", route, newLink("tun5", infoWith(data(1))))
	w.find("tun5")
	w.send("mode of 4 bytes", route, newLink("tun6", infoWith(u32(1, modeMP))))
	w.find("tun6")
	w.send("unknown attribute in the data", route, newLink("tun7", infoWith(u32(9, 1))))
	w.find("tun7")
	w.send("kind without NUL", route, newLink("tun8", nest(unix.IFLA_LINKINFO,
		attr{kind: unix.IFLA_INFO_KIND, value: []byte("ovpn")})))
	w.find("tun8")
	w.send("unknown kind", route, newLink("tun9", nest(unix.IFLA_LINKINFO, text(unix.IFLA_INFO_KIND, "ovpm"))))
	w.send("without NLM_F_CREATE", route, linkMessage(unix.RTM_NEWLINK, do, "", text(unix.IFLA_IFNAME, "tun10"), info(0)))
	w.send("without NLM_F_ACK", route, linkMessage(unix.RTM_NEWLINK, unix.NLM_F_REQUEST|unix.NLM_F_CREATE, "",
		text(unix.IFLA_IFNAME, "tun11"), info(0)))
	w.find("tun11")
	w.send("pattern", route, newLink("vpn%d", info(0)))
	w.find("vpn0")
	w.send("no name", route, linkMessage(unix.RTM_NEWLINK, create, "", info(0)))
	w.find("ovpn0")
	for _, name := range []string{"", ".", "..", "a/b", "a b", "a:b", "a%s", "a%d%d", "0123456789012345", "0123456789abcdef0"} {
		w.send(fmt.Sprintf("name %q", name), route, newLink(name, info(0)))
	}
	w.send("name of 15 characters", route, newLink("tun456789012345", info(0)))
	w.find("tun456789012345")
	up := newLink("up0", info(0))
	up.body[8], up.body[12] = unix.IFF_UP, unix.IFF_UP
	w.send("set up at once", route, up)
	w.find("up0")
	w.send("with other attributes", route, newLink("more0", u32(unix.IFLA_TXQLEN, 77), u32(unix.IFLA_GROUP, 5),
		u32(unix.IFLA_MTU, 1300), text(unix.IFLA_IFALIAS, "alias"), info(modeMP)))
	w.find("more0")
	for _, name := range []string{"up0", "more0"} {
		w.send("show "+name, route, linkMessage(unix.RTM_GETLINK, unix.NLM_F_REQUEST, name))
	}
	w.send("master that is none", route, newLink("bad0", u32(unix.IFLA_MASTER, 1), info(0)))
	w.send("short MTU", route, newLink("bad1", data(unix.IFLA_MTU, 1, 2), info(0)))
	w.send("IFLA_ADDRESS", route, newLink("bad2", bytesOf(unix.IFLA_ADDRESS, 6), info(0)))
	w.find("bad2")
	w.send("MTU with bytes behind", route, newLink("long0", data(unix.IFLA_MTU, 0x14, 5, 0, 0, 9, 9, 9, 9), info(0)))
	w.find("long0")
	w.send("bad MTU, bad mode", route, newLink("bad5", u32(unix.IFLA_MTU, 1), info(9)))
	w.send("short MTU, bad mode", route, newLink("bad5", data(unix.IFLA_MTU, 1), info(9)))
	w.send("namespace of no descriptor", route, newLink("bad3", u32(unix.IFLA_NET_NS_FD, 4000), info(0)))
	w.send("namespace of no process", route, newLink("bad4", u32(unix.IFLA_NET_NS_PID, 1<<30), info(0)))
	for _, mtu := range []uint32{0, 1, 67, 68, 1500, 65451, 65452, 1 << 31} {
		name := fmt.Sprintf("mtu%d", mtu%1000)
		w.send(fmt.Sprintf("MTU %d", mtu), route, newLink(name, u32(unix.IFLA_MTU, mtu), info(0)))
		w.find(name)
	}
	return w
}

// at gives a link message an index.
func (m message) at(index int32) message {
	m.body = slices.Clone(m.body)
	ne.PutUint32(m.body[4:], uint32(index))
	return m
}

// chosenIndexes are about the index that a request for a new link names.
func chosenIndexes() *writer {
	w := newSequence("chosen index", plain)
	w.link("tun0", modeP2P)
	show := func(index int32) {
		w.send(fmt.Sprintf("show %d", index), route, linkMessage(unix.RTM_GETLINK, unix.NLM_F_REQUEST, "").at(index))
	}
	w.send("free", route, newLink("chosen0", info(modeMP)).at(200))
	w.find("chosen0")
	show(200)
	w.send("taken", route, newLink("chosen1", info(0)).at(200))
	w.send("taken, without NLM_F_EXCL", route, linkMessage(unix.RTM_NEWLINK, do|unix.NLM_F_CREATE, "",
		text(unix.IFLA_IFNAME, "chosen1"), info(0)).at(200))
	w.send("taken by another kind", route, newLink("chosen1", info(0)).at(1))
	w.send("taken by another kind, without NLM_F_EXCL", route, linkMessage(unix.RTM_NEWLINK, do|unix.NLM_F_CREATE, "",
		text(unix.IFLA_IFNAME, "chosen1"), info(0)).at(1))
	w.find("chosen1")
	w.send("free, name taken", route, newLink("chosen0", info(0)).at(201))
	w.send("free, name taken by another kind", route, newLink("lo", info(0)).at(201))
	w.send("free, name that is none", route, newLink("a/b", info(0)).at(201))
	w.send("free, no name", route, linkMessage(unix.RTM_NEWLINK, create, "", info(0)).at(201))
	w.find("ovpn0")
	show(201)
	w.send("negative", route, newLink("chosen2", info(0)).at(-1))
	w.send("without NLM_F_CREATE", route, linkMessage(unix.RTM_NEWLINK, do, "", info(0)).at(300))
	w.send("the largest", route, newLink("chosen3", info(0)).at(1<<31-1))
	w.find("chosen3")
	show(1<<31 - 1)
	w.namespace("other")
	w.netlink("route there", unix.NETLINK_ROUTE, unix.NETLINK_EXT_ACK)
	w.send("free there, taken here", "route there", newLink("chosen4", namespaceFD("home"), info(0)).at(200))
	w.send("free there, taken here, without NLM_F_EXCL", "route there", linkMessage(unix.RTM_NEWLINK, do|unix.NLM_F_CREATE, "",
		text(unix.IFLA_IFNAME, "chosen4"), namespaceFD("home"), info(0)).at(200))
	w.send("name taken here, without NLM_F_EXCL", "route there", linkMessage(unix.RTM_NEWLINK, do|unix.NLM_F_CREATE, "",
		text(unix.IFLA_IFNAME, "chosen0"), namespaceFD("home"), info(0)))
	w.send("free in both", "route there", newLink("chosen4", namespaceFD("home"), info(0)).at(250))
	w.namespace("home")
	w.find("chosen4")
	show(250)
	return w
}

// attributesOfNewLinks are about what else a request for a new link names.
func attributesOfNewLinks() *writer {
	w := newSequence("attributes of a new link", plain)
	for i, a := range []attr{
		u32(unix.IFLA_NUM_TX_QUEUES, 4), u32(unix.IFLA_NUM_RX_QUEUES, 4), u32(unix.IFLA_NUM_TX_QUEUES, 4096), u32(unix.IFLA_NUM_TX_QUEUES, 0),
		u32(unix.IFLA_NUM_RX_QUEUES, 0), u32(unix.IFLA_NUM_TX_QUEUES, 4097), u32(unix.IFLA_NUM_RX_QUEUES, 1<<31), data(unix.IFLA_NUM_TX_QUEUES, 1),
		u32(unix.IFLA_TXQLEN, 0), u32(unix.IFLA_TXQLEN, 1<<15-1), u32(unix.IFLA_TXQLEN, 1<<15), u32(unix.IFLA_TXQLEN, 1<<31),
		u8(unix.IFLA_OPERSTATE, 6), u8(unix.IFLA_OPERSTATE, 5), u8(unix.IFLA_OPERSTATE, 200), u8(unix.IFLA_LINKMODE, 1), u8(unix.IFLA_LINKMODE, 9),
		u32(unix.IFLA_GROUP, 77), u32(unix.IFLA_GSO_MAX_SIZE, 30000), u32(unix.IFLA_GSO_MAX_SIZE, 1<<30), u32(unix.IFLA_GRO_MAX_SIZE, 30000),
		u32(unix.IFLA_GSO_IPV4_MAX_SIZE, 30000), u32(unix.IFLA_GRO_IPV4_MAX_SIZE, 30000), text(unix.IFLA_IFALIAS, "alias"),
		text(unix.IFLA_ALT_IFNAME, "another"), u32(unix.IFLA_LINK, 1), u8(unix.IFLA_CARRIER, 0), u8(unix.IFLA_CARRIER, 1), u8(unix.IFLA_PROTO_DOWN, 1),
		u32(unix.IFLA_PROMISCUITY, 1), u32(unix.IFLA_MIN_MTU, 100), u32(unix.IFLA_NEW_IFINDEX, 500), u32(unix.IFLA_TARGET_NETNSID, 4000),
		u32(unix.IFLA_TARGET_NETNSID, 1<<32-1), u32(unix.IFLA_LINK_NETNSID, 4000), bytesOf(unix.IFLA_MAP, 28), nest(unix.IFLA_PROTINFO),
	} {
		name := fmt.Sprintf("new%d", i)
		w.send(fmt.Sprintf("attribute %d = %x", a.kind, a.value), route, newLink(name, a, info(modeP2P)))
		w.find(name)
		w.send("show "+name, route, linkMessage(unix.RTM_GETLINK, unix.NLM_F_REQUEST, "", text(unix.IFLA_IFNAME, name)))
	}
	return w
}

// listLinks are about lists of some of the links.
func listLinks() *writer {
	w := newSequence("lists of links", plain)
	kind := func(kind string) attr { return nest(unix.IFLA_LINKINFO, text(unix.IFLA_INFO_KIND, kind)) }
	list := func(state string) {
		for _, k := range []string{"ovpn", "tun", "none", ""} {
			w.send(fmt.Sprintf("of kind %q %s", k, state), route, linkMessage(unix.RTM_GETLINK, dumping, "", kind(k)))
		}
		w.send("of kind ovpn without NUL "+state, route, linkMessage(unix.RTM_GETLINK, dumping, "",
			nest(unix.IFLA_LINKINFO, attr{kind: unix.IFLA_INFO_KIND, value: []byte("ovpn")})))
		w.send("of a master "+state, route, linkMessage(unix.RTM_GETLINK, dumping, "", u32(unix.IFLA_MASTER, 1)))
		w.send("of kind ovpn and a master "+state, route, linkMessage(unix.RTM_GETLINK, dumping, "", kind("ovpn"), u32(unix.IFLA_MASTER, 1)))
		w.send("all "+state, route, linkMessage(unix.RTM_GETLINK, dumping, ""))
	}
	list("while there are none")
	w.link("tun0", modeP2P)
	w.link("tun1", modeMP)
	list("while there are two")
	return w
}

// announcedLinks are about what a member of the group of links is told of what it does itself.
func announcedLinks() *writer {
	w := newSequence("announced links", plain)
	w.add(script.Step{Name: "join the group of links", Action: script.Join, On: route, Number: unix.RTNLGRP_LINK})
	for _, mode := range []uint8{modeP2P, modeMP} {
		name := fmt.Sprintf("tun%d", mode)
		change := func(what string, attrs ...attr) {
			w.send(what+" "+name, route, linkMessage(unix.RTM_NEWLINK, do, name, attrs...))
		}
		w.link(name, mode)
		flags := func(what string, flags uint32) {
			m := linkMessage(unix.RTM_NEWLINK, do, name)
			ne.PutUint32(m.body[8:], flags)
			ne.PutUint32(m.body[12:], unix.IFF_UP)
			w.send(what+" "+name, route, m)
		}
		if mode == modeP2P { // an MP link would carry packets of the stack's own, which count
			flags("set up", unix.IFF_UP)
		}
		change("MTU of", u32(unix.IFLA_MTU, 1300))
		flags("set down", 0)
		change("rename", text(unix.IFLA_IFNAME, name+"new"))
		w.send("get "+name, route, linkMessage(unix.RTM_GETLINK, unix.NLM_F_REQUEST, name))
		w.send("delete "+name, route, linkMessage(unix.RTM_DELLINK, do, name))
	}
	up := newLink("up0", info(modeP2P))
	up.body[8], up.body[12] = unix.IFF_UP, unix.IFF_UP
	w.send("new and up", route, up)
	w.find("up0")
	return w
}

func showLinks() *writer {
	w := newSequence("RTM_GETLINK", plain)
	w.link("tun0", modeP2P)
	w.link("tun1", modeMP)
	w.link("tun2", modeP2P)
	show := func(name, device string) {
		w.send(name, route, linkMessage(unix.RTM_GETLINK, unix.NLM_F_REQUEST, device))
	}
	show("P2P", "tun0")
	show("MP", "tun1")
	w.send("by name", route, linkMessage(unix.RTM_GETLINK, do, "", text(unix.IFLA_IFNAME, "tun1")))
	w.send("unknown name", route, linkMessage(unix.RTM_GETLINK, do, "", text(unix.IFLA_IFNAME, "tun9")))
	w.send("all", route, linkMessage(unix.RTM_GETLINK, dumping, ""))
	w.socket("udp4", "udp", 6300)
	w.udpPeer("tun0", "udp", 1)
	show("P2P with a peer", "tun0")
	w.on("tun0", "delete", peerDel, peer(u32(peerID, 1)))
	show("P2P without its peer", "tun0")
	w.send("delete tun2", route, linkMessage(unix.RTM_DELLINK, do, "tun2"))
	show("deleted", "tun2")
	w.send("all but one", route, linkMessage(unix.RTM_GETLINK, dumping, ""))
	return w
}

func changeLinks() *writer {
	w := newSequence("changes of links", plain)
	w.link("tun0", modeP2P)
	w.link("tun1", modeMP)
	change := func(name, device string, attrs ...attr) {
		w.send(name, route, linkMessage(unix.RTM_NEWLINK, do, device, attrs...))
	}
	change("change of mode", "tun0", info(modeMP))
	change("the same mode", "tun0", info(modeP2P))
	change("another kind", "tun0", nest(unix.IFLA_LINKINFO, text(unix.IFLA_INFO_KIND, "veth")))
	for _, mtu := range []uint32{67, 68, 1400, 65451, 65452} {
		change(fmt.Sprintf("MTU %d", mtu), "tun0", u32(unix.IFLA_MTU, mtu))
	}
	change("rename", "tun0", text(unix.IFLA_IFNAME, "new0"))
	w.find("new0")
	w.on("new0", "request after the rename", peerGet, peer(u32(peerID, 1)))
	change("taken name", "tun1", text(unix.IFLA_IFNAME, "new0"))
	w.send("delete by name", route, linkMessage(unix.RTM_DELLINK, do, "", text(unix.IFLA_IFNAME, "tun1")))
	w.send("delete twice", route, linkMessage(unix.RTM_DELLINK, do, "tun1"))
	w.send("delete an unknown name", route, linkMessage(unix.RTM_DELLINK, do, "", text(unix.IFLA_IFNAME, "tun1")))
	w.link("tun1", modeP2P)
	w.on("tun1", "request after it was made again", peerGet, peer(u32(peerID, 1)))
	return w
}
