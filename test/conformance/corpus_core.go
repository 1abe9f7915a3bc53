package conformance

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Requests that shall change nothing, whose answer shows how far they came.
var (
	harmless = request(peerGet, ifindexOf("tun0"), peer(u32(peerID, 1)))
	unknown  = request(peerGet, ifindexOf("tun0"), peer(u32(peerID, 77)))
)

const (
	do      = unix.NLM_F_REQUEST | unix.NLM_F_ACK
	dumping = unix.NLM_F_REQUEST | unix.NLM_F_DUMP
)

// unusedFamily is an id that no kernel gives out soon.
const unusedFamily = 0x2f0

// coreSequences are about what happens to a message before anybody looks at its attributes.
func coreSequences(p profile) []*writer {
	w := newSequence("core", p)
	w.link("tun0", modeP2P)
	w.socket("udp4", "udp", 6001)
	w.udpPeer("tun0", "udp", 1)
	w.send("valid", control, harmless)
	w.send("valid, without NLM_F_ACK", control, harmless.with(unix.NLM_F_REQUEST))
	w.send("refused, without NLM_F_ACK", control, unknown.with(unix.NLM_F_REQUEST))

	// 1: lengths that end the datagram.
	for _, length := range []uint32{1, 15, 200, 1 << 31, 1<<32 - 1} {
		m := harmless
		m.length = length
		w.send(fmt.Sprintf("core 1: nlmsg_len %d", length), control, m)
		w.send(fmt.Sprintf("core 1: valid, then nlmsg_len %d, then valid", length), control, harmless, m, harmless)
	}
	for _, n := range []int{1, 4, 15} {
		w.raw(fmt.Sprintf("core 1: datagram of %d bytes", n), control, encoder{data: make([]byte, n)})
	}
	w.raw("datagram of 0 bytes", control, encoder{})
	w.raw("core 1: nlmsg_len 0", control, encoder{data: make([]byte, 32)})

	// 2: not a request.
	w.send("core 2: no NLM_F_REQUEST", control, harmless.with(0))
	w.send("core 2: no NLM_F_REQUEST, NLM_F_ACK", control, harmless.with(unix.NLM_F_ACK))
	w.send("core 2: no NLM_F_REQUEST, dump", control, harmless.with(unix.NLM_F_ACK|unix.NLM_F_DUMP))
	for _, kind := range []uint16{unix.NLMSG_NOOP, unix.NLMSG_ERROR, unix.NLMSG_DONE, unix.NLMSG_OVERRUN, 5, 0xf} {
		m := message{kind: kind, flags: unix.NLM_F_REQUEST}
		w.send(fmt.Sprintf("core 2: type %d", kind), control, m)
		w.send(fmt.Sprintf("core 2: type %d, NLM_F_ACK", kind), control, m.with(do))
	}

	// 3: unknown family.
	m := harmless
	m.kind = unusedFamily
	w.send("core 3: unknown family", control, m)
	w.send("core 3: unknown family, without NLM_F_ACK", control, m.with(unix.NLM_F_REQUEST))
	w.send("core 3: unknown family, dump", control, m.with(dumping))
	w.send("core 3: unknown family, header only", control, message{kind: unusedFamily, flags: do})
	w.send("core 3: unknown family, then valid", control, m, harmless)

	// 4: no room for genlmsghdr.
	for n := range genericSize {
		w.send(fmt.Sprintf("core 4: nlmsg_len %d", headerSize+n), control,
			message{flags: do, body: make([]byte, n)})
	}

	// 5: reserved bytes.
	for _, body := range [][]byte{{peerGet, 1, 1, 0}, {peerGet, 1, 0, 1}, {99, 1, 255, 255}} {
		m := harmless
		m.body = body
		w.send(fmt.Sprintf("core 5: reserved %x", body[2:]), control, m)
	}

	// 6: flags, one by one, and those that are allowed together.
	for bit := range 16 {
		flag := uint16(1) << bit
		w.send(fmt.Sprintf("core 6: flag %#x", flag), control, harmless.with(do|flag))
		w.send(fmt.Sprintf("core 6: flag %#x of a dump", flag), control,
			request(peerGet, ifindexOf("tun0")).with(dumping|flag))
	}
	w.send("core 6: all flags", control, harmless.with(0xffff))
	w.send("core 6: reserved byte and flag", control, message{flags: do | unix.NLM_F_CREATE, body: []byte{3, 1, 1, 0}})
	w.send("core 6: NLM_F_ECHO", control, harmless.with(do|unix.NLM_F_ECHO))
	w.send("core 6: NLM_F_ACK of a dump", control, request(peerGet, ifindexOf("tun0")).with(dumping|unix.NLM_F_ACK))

	// 7: commands.
	for _, cmd := range []uint8{0, peerDelNtf, keySwapNtf, peerFloatNtf, 12, 13, 127, 255} {
		w.do(fmt.Sprintf("core 7: command %d", cmd), cmd, ifindexOf("tun0"))
	}
	for cmd := range uint8(14) {
		w.send(fmt.Sprintf("core 7: dump of command %d", cmd), control, request(cmd, ifindexOf("tun0")).with(dumping))
	}
	for _, version := range []uint8{0, 2, 255} {
		m := harmless
		m.body = []byte{peerGet, version, 0, 0}
		w.send(fmt.Sprintf("version %d", version), control, m)
	}
	m = harmless
	m.port = 4711
	w.send("nlmsg_pid in a request", control, m)
	m = unknown
	m.port = 4711
	w.send("nlmsg_pid in a refused request", control, m)
	return []*writer{w, severalMessages(p)}
}

// severalMessages are datagrams of more than one message.
func severalMessages(p profile) *writer {
	w := newSequence("several messages", p)
	w.link("tun0", modeMP)
	w.socket("udp4", "udp", 6002)
	w.udpPeer("tun0", "udp", 1, addr(peerVPN4, "10.8.0.1"))
	new2 := request(peerNew, ifindexOf("tun0"), peer(u32(peerID, 2), addr(peerRemote4, "127.0.0.1"),
		be16(peerPort, 10), fdOf(peerSocket, "udp"), addr(peerVPN4, "10.8.0.2")))
	get2 := request(peerGet, ifindexOf("tun0"), peer(u32(peerID, 2)))
	del2 := request(peerDel, ifindexOf("tun0"), peer(u32(peerID, 2)))
	w.send("several: new, get, del, get", control, new2, get2, del2, get2)
	w.send("several: valid, refused, valid", control, harmless, unknown, harmless)
	w.send("several: without NLM_F_ACK", control, harmless.with(1), unknown.with(1), harmless.with(1))
	bad := harmless
	bad.kind = unusedFamily
	w.send("several: foreign family in the middle", control, harmless, bad, harmless)
	w.send("several: controller in the middle", control, harmless, getFamily(do, text(2, "ovpn")), harmless)
	w.send("several: NOOP in the middle", control, harmless, message{kind: unix.NLMSG_NOOP, flags: do}, harmless)
	dump := request(peerGet, ifindexOf("tun0")).with(dumping)
	w.send("several: do, dump, do", control, harmless, dump, harmless)
	w.send("several: two dumps of one peer", control, dump, dump)
	var e encoder
	e.message(harmless, 1)
	e.data = append(e.data, 1, 2, 3)
	w.raw("several: valid, then bytes that are no message", control, e)
	e = encoder{}
	m := request(peerGet, ifindexOf("tun0"), peer(u32(peerID, 1)), junk(0))
	e.message(m, 1)
	e.message(harmless, 2)
	w.raw("several: nlmsg_len that needs padding", control, e)
	return w
}
