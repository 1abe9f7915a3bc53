package netlinksrv

import (
	"fmt"

	"golang.org/x/sys/unix"

	"ovpn-go/tun/netns"
)

// Verdict says what a door does with a datagram that a client sends on a NETLINK_ROUTE socket.
type Verdict int

const (
	// Native: nothing in it is ours, or the kernel answers it right. The client's own send goes through.
	Native Verdict = 0
	// Acknowledge: it is done, and the kernel must not see it. The client gets an acknowledgement with error 0
	// if its message has NLM_F_ACK.
	Acknowledge Verdict = 1
	// Relay: the kernel's answers may mention links of ours, and go through RewriteRoute.
	Relay Verdict = 2
)

// Refuse is the verdict that the client gets an error, and the kernel must not see the datagram. A door that
// can't deliver an error of its own making treats it as Native: the kernel refuses the message too, if with
// another errno (it does not know the kind).
func Refuse(errno unix.Errno) Verdict { return -Verdict(errno) }

// Refused returns the errno of a Refuse, and 0 for other verdicts.
func (v Verdict) Refused() unix.Errno {
	if v < 0 {
		return unix.Errno(-v)
	}
	return 0
}

// String names the verdict for logs.
func (v Verdict) String() string {
	switch v {
	case Native:
		return "native"
	case Acknowledge:
		return "acknowledge"
	case Relay:
		return "relay"
	}
	return fmt.Sprintf("refuse with %v", v.Refused())
}

// Route looks at a datagram that task is about to send on a NETLINK_ROUTE socket of namespace ns, and does what
// it asks of links of kind ovpn. A request to make such a link is carried out only if it is alone in its datagram.
func (s *Server) Route(task Task, ns *netns.NS, datagram []byte) Verdict {
	msg, rest, ok := cutMessage(datagram)
	if !ok {
		return Native
	}
	if _, _, more := cutMessage(rest); !more {
		return s.routeMessage(task, ns, msg)
	}
	verdict := Native
	for ; ok; msg, rest, ok = cutMessage(rest) {
		if parseHeader(msg).kind == unix.RTM_NEWLINK {
			continue
		}
		if s.routeMessage(task, ns, msg) == Relay {
			verdict = Relay
		}
	}
	return verdict
}

func (s *Server) routeMessage(task Task, ns *netns.NS, msg []byte) Verdict {
	h := parseHeader(msg)
	switch h.kind {
	case unix.RTM_NEWLINK, unix.RTM_SETLINK, unix.RTM_DELLINK, unix.RTM_GETLINK:
	default:
		return Native
	}
	m, ok := parseLinkMessage(msg)
	if !ok || h.flags&unix.NLM_F_REQUEST == 0 {
		// A dump may come with less than an ifinfomsg.
		if h.kind == unix.RTM_GETLINK && h.isDump() && s.hasLinks(ns.ID()) {
			return Relay
		}
		return Native
	}
	switch h.kind {
	case unix.RTM_GETLINK:
		return s.routeGet(ns, m)
	case unix.RTM_DELLINK:
		return s.routeDelete(task, ns, m)
	case unix.RTM_NEWLINK:
		if int32(m.index) >= 0 && m.header.flags&unix.NLM_F_CREATE != 0 && isLinkKind(textOf(m.info(unix.IFLA_INFO_KIND))) {
			return s.routeCreate(task, ns, m)
		}
	}
	return s.routeChange(task, ns, m)
}

// routeGet: who asks for one link by index gets no other. A list of one of our kinds must be filtered even if none are
// there, since the kernel lists all where it does not know the kind.
func (s *Server) routeGet(ns *netns.NS, m *linkMessage) Verdict {
	if !m.header.isDump() && m.index != 0 {
		if s.linkAt(ns.ID(), m.index) == nil {
			return Native
		}
		return Relay
	}
	if s.hasLinks(ns.ID()) || m.header.isDump() && isLinkKind(textOf(m.info(unix.IFLA_INFO_KIND))) {
		return Relay
	}
	return Native
}

// routeDelete announces the end of the peers; the kernel then deletes the interface and says so itself.
func (s *Server) routeDelete(task Task, ns *netns.NS, m *linkMessage) Verdict {
	l, err := s.target(ns, m)
	if l != nil {
		if err = task.MayAdmin(ns); err == nil {
			l.dev.Teardown()
		}
	}
	return unlessShort(err)
}

// routeChange keeps the limits that a TUN interface does not have.
func (s *Server) routeChange(task Task, ns *netns.NS, m *linkMessage) Verdict {
	if mtu, ok := m.u32(unix.IFLA_MTU); !ok || validMTU(mtu) || !s.hasLinks(ns.ID()) {
		return Native
	}
	l, err := s.target(ns, m)
	if l != nil {
		if err = task.MayAdmin(ns); err == nil {
			return Refuse(unix.EINVAL)
		}
	}
	return unlessShort(err)
}

// target finds the link of ours that a message names by index or name, nil if it names none.
func (s *Server) target(ns *netns.NS, m *linkMessage) (*link, error) {
	if m.index != 0 {
		return s.linkAt(ns.ID(), m.index), nil
	}
	if !s.hasLinks(ns.ID()) {
		return nil, nil
	}
	for _, number := range []uint16{unix.IFLA_IFNAME, unix.IFLA_ALT_IFNAME} {
		if _, ok := m.attrs[number]; !ok {
			continue
		}
		index, err := findByName(ns, m.text(number))
		if err != nil {
			return nil, err
		}
		if index != 0 {
			return s.linkAt(ns.ID(), index), nil
		}
	}
	return nil, nil
}

// unlessShort leaves a message to the kernel, as err says that it is none for us or nothing, unless that is not known for want of
// descriptors.
func unlessShort(err error) Verdict {
	if isShortage(err) {
		return Refuse(errnoOf(err, unix.ENOBUFS))
	}
	return Native
}
