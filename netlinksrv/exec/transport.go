package exec

import (
	"os"

	"golang.org/x/sys/unix"
)

// What is notified besides where descriptors are kept (kept.go): the client's making of TCP and UDP sockets and of epoll sets,
// its accepting, and its closing of what it got then. What can't be done in the client's stead the kernel does as always;
// a socket that it makes then can't become a device's.

// openTransport answers socket(AF_INET, ...) and socket(AF_INET6, ...).
func (s *session) openTransport(c *call, n notification) {
	const flags = unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	domain, kind, protocol := int(int32(c.args[0])), int(int32(c.args[1])), int(int32(c.args[2]))
	switch kind &^ flags {
	case unix.SOCK_STREAM, unix.SOCK_DGRAM:
	default:
		c.continues()
		return
	}
	switch protocol {
	case 0, unix.IPPROTO_TCP, unix.IPPROTO_UDP:
	default:
		c.continues()
		return
	}
	ns, err := c.task.NetNS()
	if err != nil {
		c.continues()
		return
	}
	defer ns.Close()
	fd := -1
	err = ns.Do(func() (err error) {
		fd, err = unix.Socket(domain, kind|unix.SOCK_CLOEXEC, protocol)
		return err
	})
	if err != nil {
		c.continues() // the kernel says what is wrong
		return
	}
	defer unix.Close(fd)
	s.finishMade(c, s.answerKept(c, n, fd, kind&unix.SOCK_CLOEXEC != 0, s.kept.add))
}

// answerKept answers a call with a copy of a descriptor of ours, of which a duplicate is kept.
func (s *session) answerKept(c *call, n notification, fd int, cloexec bool, keep func(fd, pid, number int) error) error {
	return s.injector.answer(s.listener, s.kept.window, n, fd, cloexec, func(number int) error {
		return keep(fd, c.task.PID(), number)
	})
}

// finishMade lets the kernel do what we could not.
func (s *session) finishMade(c *call, err error) {
	if err == nil || !c.task.alive() {
		return
	}
	s.unserved.Do(func() {
		s.logger.Warn("a socket of the client can't be kept", "error", err, "pid", c.task.PID())
	})
	c.continues()
}

// openSet answers epoll_create and epoll_create1.
func (s *session) openSet(c *call, n notification) {
	flags, err := setFlags(c)
	if err != nil {
		c.continues() // the kernel says what is wrong
		return
	}
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		c.continues()
		return
	}
	defer unix.Close(fd)
	s.finishMade(c, s.answerKept(c, n, fd, flags&unix.EPOLL_CLOEXEC != 0, s.kept.addSet))
}

// setFlags returns the flags for the epoll set that a call makes.
func setFlags(c *call) (flags int32, err error) {
	argument := int32(c.args[0])
	if c.nr != unix.SYS_EPOLL_CREATE1 { // epoll_create: a size, which means nothing
		if argument <= 0 {
			return 0, unix.EINVAL
		}
		return 0, nil
	}
	if argument&^unix.EPOLL_CLOEXEC != 0 {
		return 0, unix.EINVAL
	}
	return argument, nil
}

// accept answers accept and accept4 on a listening socket that is kept, when a connection waits. A call that would
// block is the kernel's, as only there signals interrupt it; the connection that it returns is not kept.
func (s *session) accept(c *call, n notification) {
	listening, err := c.task.take(c.fd())
	if err != nil {
		c.continues()
		return
	}
	defer unix.Close(listening)
	flags := 0
	if c.nr == unix.SYS_ACCEPT4 {
		flags = int(int32(c.args[3]))
	}
	if !s.injector.hasFree(s.kept.window, int(n.tid)) {
		c.continues()
		return
	}
	fd, err := s.acceptReady(listening, flags)
	if err != nil {
		c.continues() // nothing waits, or the kernel says what is wrong
		return
	}
	defer unix.Close(fd)
	if c.args[1] != 0 {
		if err := c.acceptedFrom(fd); err != nil {
			c.failsFor(err) // the connection is lost, as it is in the kernel
			return
		}
	}
	if err := s.answerKept(c, n, fd, flags&unix.SOCK_CLOEXEC != 0, s.kept.add); err != nil && c.task.alive() {
		c.fails(unix.EMFILE)
	}
}

// acceptReady accepts a connection if one waits, and does not block: only while it looks, the client's descriptor does not
// block either.
func (s *session) acceptReady(listening, flags int) (int, error) {
	s.accepting.Lock()
	defer s.accepting.Unlock()
	if eventsOf(listening)&unix.POLLIN == 0 {
		return -1, unix.EAGAIN
	}
	mode, err := unix.FcntlInt(uintptr(listening), unix.F_GETFL, 0)
	if err != nil {
		return -1, os.NewSyscallError("fcntl", err)
	}
	if mode&unix.O_NONBLOCK == 0 {
		if err := unix.SetNonblock(listening, true); err != nil {
			return -1, os.NewSyscallError("fcntl", err)
		}
		defer unix.SetNonblock(listening, false)
	}
	fd, _, err := unix.Accept4(listening, flags|unix.SOCK_CLOEXEC)
	return fd, err
}

// acceptedFrom writes the address of a new connection's peer to where accept's arguments say.
func (c *call) acceptedFrom(fd int) error {
	name, err := nameOfSocket(fd, true)
	if err != nil {
		return unix.ECONNABORTED // it has ended already
	}
	return c.writeAddress(name)
}

// closeKept lets the kernel close a descriptor, after us.
func (s *session) closeKept(c *call) {
	s.kept.closing(c.task.tid, c.task.PID(), c.fd())
	c.continues()
}
