package netlinksrv

import (
	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv/uapi"
	"ovpn-go/peers"
	"ovpn-go/tun"
	"ovpn-go/tun/netns"
)

// tunKind is the kind of our links as the kernel knows them.
const tunKind = "tun"

// looks are what a link of ours shows that its TUN interface does not have.
type looks struct {
	mode peers.Mode
	kind string
	// queues are the numbers of transmit and receive queues that it was created with.
	queues queueCounts
}

// queueCounts are IFLA_NUM_TX_QUEUES and IFLA_NUM_RX_QUEUES.
type queueCounts struct{ tx, rx uint32 }

// RewriteRoute makes the kernel's messages about our links say what the kernel would say if the links were its
// own: kind "ovpn" or "ovpn-dco" and a mode, where it says that they are TUN interfaces, and what goes with that. From dumps of the
// links of one kind it takes what is of another. ns is the namespace of the socket that the datagram was received on, and
// dumps what was asked for there. What is about other links stays as it is, and if nothing has to be changed the
// result is datagram itself. It is empty if nothing is left.
func (s *Server) RewriteRoute(ns netns.ID, dumps *LinkDumps, datagram []byte) []byte {
	var out builder
	copied := 0 // of datagram, into out
	changed := false
	for rest := datagram; ; {
		msg, after, ok := cutMessage(rest)
		if !ok {
			break
		}
		at := len(datagram) - len(rest)
		rest = after
		h := parseHeader(msg)
		filter := dumps.answered(h)
		if h.kind != unix.RTM_NEWLINK && h.kind != unix.RTM_DELLINK {
			continue
		}
		m, ok := parseLinkMessage(msg)
		if !ok {
			continue
		}
		var look looks
		ours := textOf(m.info(unix.IFLA_INFO_KIND)) == tunKind
		if ours {
			look, ours = s.looksAt(ns, m.index)
		}
		drop := isLinkKind(filter) && (!ours || look.kind != filter) || filter == tunKind && ours
		stage := stageMade
		if ours && h.kind == unix.RTM_NEWLINK && h.seq == 0 {
			stage = m.stage()
			drop = drop || stage == stageBeingMade
		}
		if !ours && !drop {
			continue
		}
		out.buf = append(out.buf, datagram[copied:at]...)
		copied = len(datagram) - len(rest)
		changed = true
		if drop {
			continue
		}
		start := len(out.buf)
		out.rewriteLink(m, look)
		if stage == stageJustMade {
			nativeEndian.PutUint32(out.buf[start+changeAt:], ^uint32(0))
		}
		if isLinkKind(filter) {
			nativeEndian.PutUint16(out.buf[start+6:], h.flags|unix.NLM_F_DUMP_FILTERED)
		}
	}
	if !changed {
		return datagram
	}
	return append(out.buf, datagram[copied:]...)
}

// Where ifi_flags and ifi_change are in a link message.
const (
	flagsAt  = headerSize + 8
	changeAt = headerSize + 12
)

// operDown is IF_OPER_DOWN (include/uapi/linux/if.h).
const operDown = 2

// stage says how far a link has come that is announced.
type stage int

const (
	stageMade stage = iota
	// stageJustMade: this is what the kernel would announce of a new link.
	stageJustMade
	// stageBeingMade: a TUN interface that is yet to be made look like a link of kind ovpn. The kernel would say nothing.
	stageBeingMade
)

// stage tells from an announcement how far the link has come: a fresh TUN interface has a queue length that
// package tun changes as the last thing that the kernel announces, before it limits the segments of a super-frame.
func (m *linkMessage) stage() stage {
	const freshLength, unlimited = 500, 65535
	if segments, ok := m.u32(unix.IFLA_GSO_MAX_SEGS); !ok || segments != unlimited || m.flags&unix.IFF_UP != 0 {
		return stageMade
	}
	switch length, ok := m.u32(unix.IFLA_TXQLEN); {
	case !ok:
		return stageMade
	case length == freshLength:
		return stageBeingMade
	}
	return stageJustMade
}

// down reports whether a P2P link that is up has no carrier. The kernel finds out up to a second after a TUN interface
// has lost it, and says until then that it is in an unknown state and running; of its own device it knows from the start.
func (m *linkMessage) down() bool {
	carrier := m.attrs[unix.IFLA_CARRIER]
	return len(carrier.payload) == 1 && carrier.payload[0] == 0
}

// rewriteLink appends a message about a TUN interface as one about an ovpn link.
func (b *builder) rewriteLink(m *linkMessage, look looks) {
	start := len(b.buf)
	b.buf = append(b.buf, m.raw[:linkAttributes]...)
	down := look.mode == peers.P2P && m.down()
	if down {
		nativeEndian.PutUint32(b.buf[start+flagsAt:], m.flags&^unix.IFF_RUNNING)
	}
	r := attributeReader{rest: m.raw[linkAttributes:], offset: linkAttributes}
	for a, ok := r.next(); ok; a, ok = r.next() {
		switch number := a.number(); {
		case number == unix.IFLA_LINKINFO:
			b.linkInfo(a, look)
		case down && number == unix.IFLA_OPERSTATE && len(a.payload) == 1:
			b.u8(a.kind, operDown)
		case len(a.payload) != 4:
			b.raw(a.kind, a.payload)
		case number == unix.IFLA_MAX_MTU:
			// Route holds clients to this.
			b.u32(a.kind, tun.MaxMTU)
		case number == unix.IFLA_NUM_TX_QUEUES:
			b.u32(a.kind, look.queues.tx)
		case number == unix.IFLA_NUM_RX_QUEUES:
			b.u32(a.kind, look.queues.rx)
		case look.mode == peers.P2P && a.u32() > 0 && (number == unix.IFLA_CARRIER_CHANGES || number == unix.IFLA_CARRIER_DOWN_COUNT):
			// A TUN interface comes with its carrier on, which is then taken off (IFF_NO_CARRIER does no other). The
			// kernel's ovpn device comes without.
			b.u32(a.kind, a.u32()-1)
		default:
			b.raw(a.kind, a.payload)
		}
	}
	// Bytes that are no attribute keep their place at the end.
	b.buf = append(b.buf, r.rest...)
	b.endMessage(start)
	b.pad()
}

// linkInfo appends an IFLA_LINKINFO whose other members, such as those of a bridge port, are those of old.
func (b *builder) linkInfo(old attribute, look looks) {
	info := b.nest(old.kind)
	b.text(unix.IFLA_INFO_KIND, look.kind)
	data := b.nest(unix.IFLA_INFO_DATA)
	b.u8(uapi.LinkMode, uint8(look.mode))
	b.endNest(data)
	eachInside(old, func(a attribute) {
		if n := a.number(); n != unix.IFLA_INFO_KIND && n != unix.IFLA_INFO_DATA {
			b.raw(a.kind, a.payload)
		}
	})
	b.endNest(info)
}
