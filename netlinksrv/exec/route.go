package exec

import (
	"encoding/binary"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv"
	"ovpn-go/tun/netns"
)

// openRoute answers socket(AF_NETLINK, ..., NETLINK_ROUTE) with a real socket of the client's
// network namespace. We keep no duplicate, unless there is no other way to have one (kept.go): a send is
// notified and takes one for its time, so the socket ends when the client closes it.
func (s *session) openRoute(c *call, n notification, r socketRequest) error {
	ns, err := c.task.NetNS()
	if err != nil {
		return err
	}
	defer ns.Close()
	kind := r.kind | unix.SOCK_CLOEXEC
	if r.nonblock {
		kind |= unix.SOCK_NONBLOCK
	}
	fd := -1
	err = ns.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, kind, unix.NETLINK_ROUTE)
		return os.NewSyscallError("socket", err)
	})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return s.answerNetlink(c, n, fd, r.cloexec)
}

// isRoute says whether a descriptor is a real route socket.
func isRoute(fd int) bool {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil || domain != unix.AF_NETLINK {
		return false
	}
	protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	return err == nil && protocol == unix.NETLINK_ROUTE
}

// routeCall answers a call on a real route socket, of which fd is a duplicate.
func (s *session) routeCall(c *call, fd int) {
	join := c.joinsLinks()
	switch {
	case c.sends():
		s.sendRoute(c, fd)
	case join != nil && s.injector.window.contains(c.fd()) && !wantsControl(fd):
		s.joinLinks(c, fd, join)
	default:
		c.continues()
	}
}

// sendRoute answers a send on a real route socket, of which fd is a duplicate. Most sends are the
// kernel's to execute, with the client's own rights and descriptors, and so are all that we can't
// make sense of.
//
// Of several datagrams in one sendmmsg only the first is looked at: if it is ours, it alone is
// sent, and the client comes again with the rest. No known client does that here.
func (s *session) sendRoute(c *call, fd int) {
	list, err := c.datagrams()
	if err != nil || len(list) == 0 {
		c.continuesUnless(err)
		return
	}
	d := list[0]
	b, err := c.readDatagram(fd, d, netlinkAddress{})
	if err != nil {
		c.continuesUnless(err)
		return
	}
	ns, err := socketNetNS(c.task, fd)
	if err != nil {
		c.continuesUnless(err)
		return
	}
	defer ns.Close()
	switch verdict := s.server.Route(c.task, ns, b); {
	case verdict == netlinksrv.Acknowledge:
		err = acknowledge(c.task, fd, b)
	case verdict == netlinksrv.Relay, verdict.Refused() != 0:
		// The kernel has no error of our making, so a refusal needs a pair as well.
		err = s.relay(c, fd, ns, b, verdict)
	default:
		c.continues()
		return
	}
	if err == nil && d.sentLength != 0 {
		err = c.writeLength(d.sentLength, len(b))
	}
	sent := len(b)
	if c.nr == unix.SYS_SENDMMSG {
		sent = 1
	}
	c.finish(int64(sent), err)
}

// socketNetNS opens the network namespace that a socket of the client's belongs to.
func socketNetNS(t *task, fd int) (*netns.NS, error) {
	nsfd, err := unix.IoctlRetInt(fd, unix.SIOCGSKNS)
	if isShortage(err) {
		return nil, os.NewSyscallError("ioctl SIOCGSKNS", err)
	}
	if err != nil {
		return t.NetNS() // without privilege the socket does not say
	}
	return netns.New(os.NewFile(uintptr(nsfd), "netns"))
}

// acknowledge makes the kernel queue the acknowledgement of a request that it never sees: a
// no-operation with the same header is acknowledged as anything is, if the client asked for that.
// The header is echoed, so everything in it but the type is the client's.
func acknowledge(t *task, fd int, request []byte) error {
	if err := ensureBound(t, fd); err != nil {
		return err
	}
	noop := slices.Clone(request)
	for m := range messages(noop) {
		binary.NativeEndian.PutUint16(m[4:], unix.NLMSG_NOOP)
	}
	return unix.Sendto(fd, noop, unix.MSG_DONTWAIT, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

// bindRoute is bind on a route socket of the client's, of which fd is a duplicate.
func bindRoute(t *task, fd int, address netlinkAddress) error {
	if address.port == 0 {
		bound, err := boundTo(fd)
		if err != nil {
			return err
		}
		if bound == 0 {
			if err := ensureBound(t, fd); err != nil {
				return err
			}
			if address.port, err = boundTo(fd); err != nil {
				return err
			}
		}
	}
	return unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: address.port, Groups: address.groups})
}

// boundTo returns the port of a netlink socket, 0 if it has none yet.
func boundTo(fd int) (uint32, error) {
	name, err := unix.Getsockname(fd)
	if nl, ok := name.(*unix.SockaddrNetlink); ok {
		return nl.Pid, err
	}
	return 0, err
}

// ensureBound binds a socket that the client has not bound, as its own send would have: to its
// process id, which the kernel would otherwise take from us.
func ensureBound(t *task, fd int) error {
	name, err := unix.Getsockname(fd)
	if err != nil {
		return err
	}
	nl, ok := name.(*unix.SockaddrNetlink)
	if !ok || nl.Pid != 0 {
		return nil
	}
	pid, err := t.process()
	if isShortage(err) {
		return err
	}
	// Without its groups it would leave them.
	err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: uint32(pid), Groups: nl.Groups})
	if err == unix.EADDRINUSE {
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: nl.Groups})
	}
	return err
}
