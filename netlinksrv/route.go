package netlinksrv

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"ovpn-go/datapath"
	"ovpn-go/peers"
	"ovpn-go/tun"
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
		if m.index == 0 && m.header.flags&unix.NLM_F_CREATE != 0 && textOf(m.info(unix.IFLA_INFO_KIND)) == linkKind {
			return s.routeCreate(task, ns, m)
		}
	}
	return s.routeChange(task, ns, m)
}

// routeGet: who asks for one link by index gets no other.
func (s *Server) routeGet(ns *netns.NS, m *linkMessage) Verdict {
	if !m.header.isDump() && m.index != 0 {
		if s.linkAt(ns.ID(), m.index) == nil {
			return Native
		}
		return Relay
	}
	if s.hasLinks(ns.ID()) {
		return Relay
	}
	return Native
}

// routeDelete announces the end of the peers; the kernel then deletes the interface and says so itself.
func (s *Server) routeDelete(task Task, ns *netns.NS, m *linkMessage) Verdict {
	if l := s.target(ns, m); l != nil && task.CanAdmin(ns) {
		l.dev.Teardown()
	}
	return Native
}

// routeChange keeps the limits that a TUN interface does not have.
func (s *Server) routeChange(task Task, ns *netns.NS, m *linkMessage) Verdict {
	if mtu, ok := m.attrs[unix.IFLA_MTU]; ok && len(mtu.payload) >= 4 && !validMTU(mtu.u32()) &&
		s.hasLinks(ns.ID()) && s.target(ns, m) != nil && task.CanAdmin(ns) {
		return Refuse(unix.EINVAL)
	}
	return Native
}

// target finds the link of ours that a message names by index or name.
func (s *Server) target(ns *netns.NS, m *linkMessage) *link {
	if m.index != 0 {
		return s.linkAt(ns.ID(), m.index)
	}
	if !s.hasLinks(ns.ID()) {
		return nil
	}
	for _, number := range []uint16{unix.IFLA_IFNAME, unix.IFLA_ALT_IFNAME} {
		if _, ok := m.attrs[number]; !ok {
			continue
		}
		if index, err := findByName(ns, m.text(number)); err == nil && index != 0 {
			return s.linkAt(ns.ID(), index)
		}
	}
	return nil
}

// applied are the attributes of a request to create a link that the kernel applies to a link of any kind. Those
// that createLink sees to itself are not among them, nor are hardware addresses, which the kernel takes for a new link
// but which a link of no address length does not show; of an existing TUN interface it would refuse them.
var applied = []uint16{
	unix.IFLA_TXQLEN, unix.IFLA_OPERSTATE, unix.IFLA_LINKMODE,
	unix.IFLA_GROUP, unix.IFLA_GSO_MAX_SIZE, unix.IFLA_GSO_MAX_SEGS, unix.IFLA_GRO_MAX_SIZE,
	unix.IFLA_GSO_IPV4_MAX_SIZE, unix.IFLA_GRO_IPV4_MAX_SIZE, unix.IFLA_MASTER,
}

// routeCreate carries out a request for a new link of kind ovpn. The order of the checks is the kernel's.
func (s *Server) routeCreate(task Task, ns *netns.NS, m *linkMessage) Verdict {
	if !task.CanAdmin(ns) {
		return Native // EPERM
	}
	name := linkKind + "%d"
	if a, ok := m.attrs[unix.IFLA_IFNAME]; ok {
		if name = textOf(a); len(name) >= unix.IFNAMSIZ {
			return Native // ERANGE
		}
	}
	if a, ok := m.attrs[unix.IFLA_MTU]; ok && len(a.payload) < 4 {
		return Native // ERANGE
	}
	mode, err := modeOf(m)
	if err != 0 {
		return Refuse(err)
	}
	target, foreign, err := s.targetNamespace(task, ns, m)
	if err != 0 {
		return Refuse(err)
	}
	if foreign {
		defer target.Close()
	}
	taken := Native // EEXIST, or what is asked for is done to the link that has the name
	if foreign {
		taken = Refuse(unix.EEXIST)
	}
	if index, err := findByName(target, name); err == nil && index != 0 {
		return taken
	}
	for _, number := range []uint16{unix.IFLA_MAP, unix.IFLA_PROTINFO} {
		if _, ok := m.attrs[number]; ok {
			return Refuse(unix.EOPNOTSUPP)
		}
	}
	cfg := datapath.Config{Name: name, Mode: mode, NetNS: target}
	if a, ok := m.attrs[unix.IFLA_MTU]; ok {
		if !validMTU(a.u32()) {
			return Refuse(unix.EINVAL)
		}
		cfg.MTU = int(a.u32())
	}
	if !validName(name) {
		return Refuse(unix.EINVAL)
	}
	return s.create(cfg, m, taken)
}

// create makes the link and applies what else the request asks for; the verdict is taken if the name is.
func (s *Server) create(cfg datapath.Config, m *linkMessage, taken Verdict) Verdict {
	l, err := s.createLink(cfg)
	if errors.Is(err, unix.EEXIST) {
		return taken
	}
	if err != nil {
		s.log.Warn("create link", "iface", cfg.Name, "err", err)
		return Refuse(errnoOf(err, unix.EIO))
	}
	body, any := m.settings(uint32(l.dev.Ifindex()))
	if !any {
		return Acknowledge
	}
	if err := s.configureLink(cfg.NetNS, body); err != nil {
		s.log.Warn("configure link", "iface", cfg.Name, "err", err)
		if err := l.dev.Close(); err != nil {
			s.log.Warn("delete link", "iface", cfg.Name, "err", err)
		}
		return Refuse(errnoOf(err, unix.EIO))
	}
	return Acknowledge
}

// settings makes the request, without its header, that applies the flags and attributes of m to the new link. It
// returns false if there are none.
func (m *linkMessage) settings(index uint32) (body []byte, any bool) {
	b := builder{buf: append([]byte(nil), m.raw[headerSize:linkAttributes]...)}
	nativeEndian.PutUint32(b.buf[4:], index)
	any = m.flags != 0 || m.change != 0
	for _, number := range applied {
		if a, ok := m.attrs[number]; ok {
			b.raw(a.kind, a.payload)
			any = true
		}
	}
	return b.buf, any
}

// modeOf reads IFLA_OVPN_MODE. The kernel is lenient here: what it does not know it ignores.
func modeOf(m *linkMessage) (peers.Mode, unix.Errno) {
	mode := peers.P2P
	if bad := m.badMode(); bad.present() {
		return mode, unix.ERANGE
	}
	if data := m.info(unix.IFLA_INFO_DATA); data.present() {
		eachInside(data, func(a attribute) {
			if a.number() == attrMode {
				mode = peers.Mode(a.payload[0])
			}
		})
	}
	return mode, 0
}

// targetNamespace finds where a link is to be made: in ns, or in another namespace, which then is the caller's to
// close.
func (s *Server) targetNamespace(task Task, ns *netns.NS, m *linkMessage) (target *netns.NS, foreign bool, errno unix.Errno) {
	var err error
	if a, ok := m.attrs[unix.IFLA_NET_NS_FD]; ok && len(a.payload) == 4 {
		var file *os.File
		if file, err = task.File(int(int32(a.u32()))); err == nil {
			target, err = netns.New(file)
		}
	} else if a, ok := m.attrs[unix.IFLA_NET_NS_PID]; ok && len(a.payload) == 4 {
		target, err = namespaceOfPID(task, a.u32())
	} else if _, ok := m.attrs[unix.IFLA_TARGET_NETNSID]; ok {
		// Nothing leads from a namespace id to the namespace.
		return nil, false, unix.EOPNOTSUPP
	} else {
		return ns, false, 0
	}
	if err != nil {
		return nil, false, errnoOf(err, unix.EINVAL)
	}
	if err := checkNetworkNamespace(target); err != nil {
		target.Close()
		return nil, false, unix.EINVAL
	}
	if !task.CanAdmin(target) {
		target.Close()
		return nil, false, unix.EPERM
	}
	return target, true, 0
}

// checkNetworkNamespace makes sure that a client's descriptor is of the right type before it is entered.
func checkNetworkNamespace(ns *netns.NS) error {
	return controlFile(ns.File(), func(fd int) error {
		kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
		if err == nil && kind != unix.CLONE_NEWNET {
			err = unix.EINVAL
		}
		return err
	})
}

// namespaceOfPID opens the network namespace of a process, whose number is one of the task's pid namespace.
func namespaceOfPID(task Task, pid uint32) (*netns.NS, error) {
	ours, err := os.Stat("/proc/self/ns/pid")
	if err != nil {
		return nil, err
	}
	theirs, err := os.Stat(fmt.Sprintf("/proc/%d/ns/pid", task.PID()))
	if err != nil {
		return nil, err
	}
	if !os.SameFile(ours, theirs) {
		return nil, unix.ESRCH
	}
	ns, err := netns.OfThread(int(pid))
	if errors.Is(err, unix.ENOENT) {
		return nil, unix.ESRCH
	}
	return ns, err
}

func validMTU(mtu uint32) bool { return mtu >= tun.MinMTU && mtu <= tun.MaxMTU }

// validName holds the kernel's rules for interface names; one %d stands for a free number.
func validName(name string) bool {
	if name == "" || name == "." || name == ".." {
		return false
	}
	for i := range len(name) {
		switch name[i] {
		case '/', ':', ' ', '\t', '\n', '\v', '\f', '\r', 0xa0: // isspace goes by Latin-1
			return false
		}
	}
	_, after, pattern := strings.Cut(name, "%")
	if !pattern {
		return true
	}
	return strings.HasPrefix(after, "d") && !strings.Contains(after, "%")
}
