package exec

import (
	"os"

	"golang.org/x/sys/unix"
)

// openRoute answers socket(AF_NETLINK, ..., NETLINK_ROUTE) with a real socket of the client's
// network namespace. We keep no duplicate: a send is notified and takes one for its time, so the
// socket ends when the client closes it.
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
	err = s.enter(ns)(func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, kind, unix.NETLINK_ROUTE)
		return os.NewSyscallError("socket", err)
	})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return s.injector.answerSocket(s.listener, n, fd, r.cloexec)
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

// sendRoute answers a send on a real route socket, of which fd is a duplicate.
func (s *session) sendRoute(c *call, fd int) {
	c.continues()
}
