package netlinksrv

import (
	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv/uapi"
)

// LinkDumps are the dumps of the links of one kind that a route socket has asked the kernel for. The kernel can't
// filter them: it knows none of our kinds, and takes our links for TUN interfaces. The zero value is a socket that has
// asked for none. It is not safe for concurrent use.
type LinkDumps struct {
	kinds map[uint32]string // by sequence number
}

// Ask notes what a datagram asks for that is about to be passed to the kernel.
func (d *LinkDumps) Ask(datagram []byte) {
	// The kernel works on one dump of a socket at a time, so more are not under way but lost.
	const enough = 64
	for msg, rest, ok := cutMessage(datagram); ok; msg, rest, ok = cutMessage(rest) {
		h := parseHeader(msg)
		if h.kind != unix.RTM_GETLINK || !h.isDump() {
			continue
		}
		kind := ""
		if m, ok := parseLinkMessage(msg); ok {
			kind = textOf(m.info(unix.IFLA_INFO_KIND))
		}
		switch kind {
		case uapi.LinkKind, uapi.DCOLinkKind, tunKind:
			if d.kinds == nil || len(d.kinds) >= enough {
				d.kinds = map[uint32]string{}
			}
			d.kinds[h.seq] = kind
		default:
			delete(d.kinds, h.seq)
		}
	}
}

// answered returns the kind that a message's dump is limited to, "" if it is not part of such a dump. It forgets a
// dump with its last message.
func (d *LinkDumps) answered(h header) string {
	kind := d.kinds[h.seq]
	switch h.kind {
	case unix.NLMSG_DONE, unix.NLMSG_ERROR:
		delete(d.kinds, h.seq)
	}
	if h.flags&unix.NLM_F_MULTI == 0 {
		return ""
	}
	return kind
}
