package netlinksrv

import (
	"golang.org/x/sys/unix"

	"ovpn-go/peers"
	"ovpn-go/tun"
	"ovpn-go/tun/netns"
)

// RewriteRoute makes the kernel's messages about our links say what the kernel would say if the links were its
// own: kind "ovpn" and a mode, where it says that they are TUN interfaces, and the MTU's limit. ns is the namespace of the socket that
// the datagram was received on. What is about other links stays as it is, and if nothing has to be changed the
// result is datagram itself.
func (s *Server) RewriteRoute(ns netns.ID, datagram []byte) []byte {
	var out builder
	copied := 0 // of datagram, into out
	for rest := datagram; ; {
		msg, after, ok := cutMessage(rest)
		if !ok {
			break
		}
		at := len(datagram) - len(rest)
		rest = after
		if kind := parseHeader(msg).kind; kind != unix.RTM_NEWLINK && kind != unix.RTM_DELLINK {
			continue
		}
		m, ok := parseLinkMessage(msg)
		if !ok || !m.attrs[unix.IFLA_LINKINFO].present() {
			continue
		}
		mode, ours := s.modeAt(ns, m.index)
		if !ours {
			continue
		}
		out.buf = append(out.buf, datagram[copied:at]...)
		out.rewriteLink(m, mode)
		copied = len(datagram) - len(rest)
	}
	if copied == 0 {
		return datagram
	}
	return append(out.buf, datagram[copied:]...)
}

// rewriteLink appends a link message with the kind and mode of an ovpn link.
func (b *builder) rewriteLink(m *linkMessage, mode peers.Mode) {
	start := len(b.buf)
	b.buf = append(b.buf, m.raw[:linkAttributes]...)
	r := attributeReader{rest: m.raw[linkAttributes:], offset: linkAttributes}
	for a, ok := r.next(); ok; a, ok = r.next() {
		switch a.number() {
		case unix.IFLA_LINKINFO:
			b.linkInfo(a, mode)
		case unix.IFLA_MAX_MTU:
			// Route holds clients to this.
			b.u32(a.kind, tun.MaxMTU)
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
func (b *builder) linkInfo(old attribute, mode peers.Mode) {
	info := b.nest(old.kind)
	b.text(unix.IFLA_INFO_KIND, linkKind)
	data := b.nest(unix.IFLA_INFO_DATA)
	b.u8(attrMode, uint8(mode))
	b.endNest(data)
	eachInside(old, func(a attribute) {
		if n := a.number(); n != unix.IFLA_INFO_KIND && n != unix.IFLA_INFO_DATA {
			b.raw(a.kind, a.payload)
		}
	})
	b.endNest(info)
}
