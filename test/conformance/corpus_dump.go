package conformance

import (
	"fmt"

	"golang.org/x/sys/unix"

	"ovpn-go/test/conformance/script"
)

// dumpSequences are about dumps of peers.
func dumpSequences(p profile) []*writer {
	return []*writer{dumps(p), longDumps(p)}
}

func dumps(p profile) *writer {
	w := newSequence("dumps", p)
	w.link("tun0", modeMP)
	w.link("tun1", modeP2P)
	w.socket("udp6", "udp", 6200)
	w.socket("udp4", "udp1", 6201)
	ask := func(name string, attrs ...attr) {
		w.send(name, control, request(peerGet, attrs...).with(dumping))
	}
	ask("I1: dump")
	ask("I2: dump", u32(attrIfindex, 9999))
	ask("I2: dump, ifindex 0", u32(attrIfindex, 0))
	ask("I3: dump", u32(attrIfindex, 1))
	ask("V1: dump with a peer", ifindexOf("tun0"), peer())
	ask("V1: dump with a keyconf", ifindexOf("tun0"), keyconf())
	ask("V1: dump with attribute 0", ifindexOf("tun0"), data(0))
	ask("V2: dump", bytesOf(attrIfindex, 3))
	ask("V4: dump", bytesOf(attrIfindex|nested, 4))
	ask("V10: dump", ifindexOf("tun0"), junk(0, 0))
	ask("V10: dump, short length", ifindexOf("tun0"), attr{kind: 1, size: 3})
	ask("the last of two interfaces counts", u32(attrIfindex, 9999), ifindexOf("tun0"))
	w.dump("empty dump", "tun0")
	w.dump("empty dump, P2P", "tun1")
	w.udpPeer("tun1", "udp1", 7)
	w.dump("dump, P2P", "tun1")
	for id := uint32(1); id <= 12; id++ {
		w.udpPeer("tun0", "udp", id, addr(peerVPN4, fmt.Sprintf("10.8.0.%d", id)))
	}
	w.dump("dump of 12", "tun0")
	w.send("dump with NLM_F_ACK", control, request(peerGet, ifindexOf("tun0")).with(dumping|unix.NLM_F_ACK))
	w.send("dump with NLM_F_ECHO", control, request(peerGet, ifindexOf("tun0")).with(dumping|unix.NLM_F_ECHO))
	w.send("two dumps in one datagram", control, request(peerGet, ifindexOf("tun0")).with(dumping),
		request(peerGet, ifindexOf("tun1")).with(dumping))
	w.send("do behind a dump", control, request(peerGet, ifindexOf("tun0")).with(dumping), harmless)
	w.send("broken dump, then a dump", control, request(peerGet, data(0)).with(dumping),
		request(peerGet, ifindexOf("tun0")).with(dumping))
	w.send("dump of no interface, then a dump", control, request(peerGet).with(dumping),
		request(peerGet, ifindexOf("tun0")).with(dumping))
	w.on("tun0", "delete 3", peerDel, peer(u32(peerID, 3)))
	w.dump("dump of 11", "tun0")
	return w
}

// longDumps need several datagrams.
func longDumps(p profile) *writer {
	w := newSequence("long dumps", p)
	w.link("tun0", modeMP)
	w.socket("udp6", "udp", 6210)
	for i := range uint32(150) {
		id := i * i * 31 & 0xffffff
		more := []attr{addr(peerVPN4, fmt.Sprintf("10.8.%d.%d", i/200, i%200+1))}
		if i%3 == 0 {
			more = append(more, addr(peerVPN6, fmt.Sprintf("fd00::%x", i+1)))
		}
		w.udpPeer("tun0", "udp", id, more...)
	}
	w.dump("dump of 150", "tun0")
	w.dump("the same again", "tun0")
	again := request(peerGet, ifindexOf("tun0")).with(dumping)
	w.sendAs(script.Unread, "a dump that is not read", control, again)
	w.send("EBUSY: a second dump meanwhile", control, again)
	w.on("tun0", "do after a dump", peerGet, peer(u32(peerID, 0)))
	for i := range uint32(4) {
		gone, back := i*i*31&0xffffff, 500+i
		w.send("peers deleted behind a dump", control, again, request(peerDel, ifindexOf("tun0"), peer(u32(peerID, gone))))
		w.send("peers made behind a dump", control, again, request(peerNew, ifindexOf("tun0"), peer(u32(peerID, back),
			addr(peerRemote4, "127.0.0.1"), be16(peerPort, 9), fdOf(peerSocket, "udp"), addr(peerVPN4, fmt.Sprintf("10.9.0.%d", i+1)))))
		w.send("peers changed behind a dump", control, again,
			request(peerSet, ifindexOf("tun0"), peer(u32(peerID, 31*100&0xffffff), u32(peerTxID, i))),
			request(peerSet, ifindexOf("tun0"), peer(u32(peerID, back), u32(peerTxID, i))))
	}
	return w
}
