package netlinksrv

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"ovpn-go/datapath"
	"ovpn-go/netlinksrv/uapi"
	"ovpn-go/peers"
	"ovpn-go/tun"
	"ovpn-go/tun/netns"
)

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
	if err := task.MayAdmin(ns); err != nil {
		return unlessShort(err) // EPERM
	}
	kind := textOf(m.info(unix.IFLA_INFO_KIND))
	name := kind + "%d"
	if a, ok := m.attrs[unix.IFLA_IFNAME]; ok {
		if name = textOf(a); len(name) >= unix.IFNAMSIZ {
			return Native // ERANGE
		}
	}
	if m.malformed() {
		return Native // ERANGE, with the kernel's reasons
	}
	if m.longQueue() {
		return Refuse(unix.ERANGE)
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
	if id, ok := m.u32(unix.IFLA_LINK_NETNSID); ok && !namespaceIDExists(ns, id) {
		return Refuse(unix.EINVAL)
	}
	// Only who excludes that the link exists makes the kernel look for it where it is to be.
	in, found := ns, Native // EEXIST, or what is asked for is done to the link that is found
	if foreign && m.header.flags&unix.NLM_F_EXCL != 0 {
		in, found = target, Refuse(unix.EEXIST)
	}
	if exists(in, m.index, name) {
		return found
	}
	for _, number := range []uint16{unix.IFLA_MAP, unix.IFLA_PROTINFO} {
		if _, ok := m.attrs[number]; ok {
			return Refuse(unix.EOPNOTSUPP)
		}
	}
	queues, bad := queuesOf(m)
	if bad != "" {
		return Refuse(unix.EINVAL)
	}
	cfg := datapath.Config{Name: name, Index: int(m.index), Mode: mode, NetNS: target}
	if mtu, ok := m.u32(unix.IFLA_MTU); ok {
		if !validMTU(mtu) {
			return Refuse(unix.EINVAL)
		}
		cfg.MTU = int(mtu)
	}
	if m.badSegmentSize() || !validName(name) {
		return Refuse(unix.EINVAL)
	}
	taken := Refuse(unix.EEXIST)
	if !foreign && m.index == 0 {
		taken = found // since exists looked
	}
	return s.create(task, cfg, kind, queues, m, taken)
}

// exists reports whether a namespace has the link that a request specifies: by its index, if it has one, or else by its
// name.
func exists(ns *netns.NS, index uint32, name string) bool {
	if index != 0 {
		return indexExists(ns, index)
	}
	found, err := findByName(ns, name)
	return err == nil && found != 0
}

// leastLengths are those that the kernel demands of attributes before it looks at anything else, as far as we would look at
// them or pass them on (ifla_policy). IFLA_MAP is a struct rtnl_link_ifmap.
var leastLengths = map[uint16]int{
	unix.IFLA_MTU: 4, unix.IFLA_MAP: 32, unix.IFLA_MASTER: 4, unix.IFLA_TXQLEN: 4, unix.IFLA_OPERSTATE: 1, unix.IFLA_LINKMODE: 1,
	unix.IFLA_GROUP: 4, unix.IFLA_NUM_TX_QUEUES: 4, unix.IFLA_NUM_RX_QUEUES: 4, unix.IFLA_NET_NS_FD: 4, unix.IFLA_NET_NS_PID: 4,
	unix.IFLA_TARGET_NETNSID: 4, unix.IFLA_LINK_NETNSID: 4, unix.IFLA_GSO_MAX_SIZE: 4, unix.IFLA_GSO_MAX_SEGS: 4,
	unix.IFLA_GRO_MAX_SIZE: 4, unix.IFLA_GSO_IPV4_MAX_SIZE: 4, unix.IFLA_GRO_IPV4_MAX_SIZE: 4,
}

// malformed reports whether an attribute is too short.
func (m *linkMessage) malformed() bool {
	for number, length := range leastLengths {
		if a, ok := m.attrs[number]; ok && len(a.payload) < length {
			return true
		}
	}
	return false
}

// longQueue reports whether a request wants a longer transmit queue than there can be.
func (m *linkMessage) longQueue() bool {
	length, ok := m.u32(unix.IFLA_TXQLEN)
	return ok && uint64(length) > txQueuePolicy.max
}

// create makes the link and applies what else the request asks for; the verdict is taken if the name is.
func (s *Server) create(task Task, cfg datapath.Config, kind string, queues queueCounts, m *linkMessage, taken Verdict) Verdict {
	l, err := s.createLink(cfg, kind, queues)
	if errors.Is(err, unix.EEXIST) {
		return taken
	}
	if err != nil {
		s.log.Warn("create link", "iface", cfg.Name, "error", err)
		return Refuse(errnoOf(err, unix.EIO))
	}
	if body, any := m.settings(uint32(l.dev.Ifindex())); any {
		err = s.configureLink(cfg.NetNS, body)
	}
	if err == nil && !task.Waits() {
		// The kernel lets nobody die in the midst of this: who is killed has its link by the time that it is gone, or
		// never. A link that appears later is one that nobody looks for.
		err = errSenderGone
	}
	if err != nil {
		s.log.Warn("configure link", "iface", cfg.Name, "error", err)
		if err := l.dev.Close(); err != nil {
			s.log.Warn("delete link", "iface", cfg.Name, "error", err)
		}
		return Refuse(errnoOf(err, unix.EIO))
	}
	return Acknowledge
}

// errSenderGone says that a request's sender did not live to see it carried out.
var errSenderGone = fmt.Errorf("its creator is gone: %w", unix.ESRCH)

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
			if a.number() == uapi.LinkMode {
				mode = peers.Mode(a.payload[0])
			}
		})
	}
	return mode, 0
}

// badSegmentSize reports whether a request wants larger super-frames than the interface takes.
func (m *linkMessage) badSegmentSize() bool {
	const largest = 65536 // TSO_LEGACY_MAX_SIZE, of an interface that says nothing else
	size, ok := m.u32(unix.IFLA_GSO_MAX_SIZE)
	return ok && size > largest
}

// maxQueues is the largest number of queues that a request may name (rtnl_create_link).
const maxQueues = 4096

// queuesOf reads the numbers of queues. The link shows them, as the kernel's does, and has no use for them. bad says of
// which sort there can't be so many, "" if there can.
func queuesOf(m *linkMessage) (queues queueCounts, bad string) {
	queues = queueCounts{tx: 1, rx: 1}
	for _, q := range []struct {
		number uint16
		count  *uint32
		sort   string
	}{
		{unix.IFLA_NUM_TX_QUEUES, &queues.tx, "transmit"},
		{unix.IFLA_NUM_RX_QUEUES, &queues.rx, "receive"},
	} {
		if n, ok := m.u32(q.number); ok {
			*q.count = n
		}
		if *q.count < 1 || *q.count > maxQueues {
			return queues, q.sort
		}
	}
	return queues, ""
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
