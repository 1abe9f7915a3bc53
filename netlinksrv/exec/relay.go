package exec

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv"
	"ovpn-go/tun/netns"
)

// relay is a client's route socket whose answers must be rewritten: the client holds one end of a
// pair, we the other and the real socket behind it, the twin.
//
// It lasts until the client closes it or, if it is no member of the group of links, sends something
// that is not a question. The kernel must then see the client's own rights and descriptors, so the
// real socket takes its place again.
type relay struct {
	session *session
	pair    *pair
	opener  credentials
	twin    *os.File // epoll set that watches the real socket; see newTwin
	socket  int      // the real socket
	ns      *netns.NS

	sending sync.Mutex // held while a datagram is processed, which keeps the socket's order

	receiving sync.Mutex           // held while datagrams are moved from the socket to the pair
	detached  bool                 // guarded by receiving: the client reads the real socket itself
	dumps     netlinksrv.LinkDumps // guarded by receiving
	stuck     []byte               // guarded by receiving: a datagram that the pair has no room for
}

// relay puts a pair in front of a client's real socket, of which fd is a duplicate, in the midst
// of sending a first request, which the verdict says what to do with.
func (s *session) relay(c *call, fd int, ns *netns.NS, request []byte, verdict netlinksrv.Verdict) error {
	r, err := s.openRelay(c, fd, ns)
	if err != nil {
		return err
	}
	r.sending.Lock()
	defer r.sending.Unlock()
	if errno := verdict.Refused(); errno != 0 {
		return r.refuse(c.task, request, errno)
	}
	return r.forward(c.task, request)
}

// openRelay puts a pair in front of a client's real socket, of which fd is a duplicate.
func (s *session) openRelay(c *call, fd int, ns *netns.NS) (*relay, error) {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	opener, err := c.task.credentials()
	if err != nil {
		return nil, err
	}
	r, client, cookie, err := s.newRelay(opener, fd, ns, flags&unix.O_NONBLOCK != 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(client)
	copyTimeouts(fd, client)
	done, err := c.task.replace(c.fd(), fd, client)
	if !done {
		s.forget(cookie)
		r.release()
		return nil, err
	}
	if err != nil {
		s.logger.Warn("a route client may miss events", "error", err)
	}
	r.start(cookie)
	return r, nil
}

// newRelay makes a pair in front of a real socket, of which fd is a duplicate, and returns the client's end, which is the caller's to close, with its
// cookie, by which the relay is registered. Nothing happens on it before start.
func (s *session) newRelay(opener credentials, fd int, ns *netns.NS, nonblock bool) (_ *relay, client int, cookie uint64, err error) {
	pair, end, cookie, err := newPair(ns, nonblock)
	if err != nil {
		return nil, -1, 0, err
	}
	r := &relay{session: s, pair: pair, opener: opener, socket: -1}
	defer func() {
		if err != nil {
			unix.Close(end)
			r.release()
		}
	}()
	if r.ns, err = ns.Dup(); err != nil {
		return nil, -1, 0, err
	}
	if r.socket, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		return nil, -1, 0, os.NewSyscallError("fcntl", err)
	}
	if r.twin, err = watchable(r.socket); err != nil {
		return nil, -1, 0, err
	}
	s.register(cookie, r)
	return r, end, cookie, nil
}

// start begins to serve the client's end.
func (r *relay) start(cookie uint64) {
	r.session.sockets.Add(2)
	go r.watch(cookie)
	go r.pump()
}

// watchable returns an epoll set with a socket in it. The Go runtime's poller can wait for the
// set, where it could wait for the socket only if that did not block, and whether it does is the
// client's affair.
func watchable(socket int) (*os.File, error) {
	set, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	err = unix.EpollCtl(set, unix.EPOLL_CTL_ADD, socket, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(socket)})
	if err == nil {
		err = unix.SetNonblock(set, true)
	}
	if err != nil {
		unix.Close(set)
		return nil, os.NewSyscallError("epoll_ctl", err)
	}
	return os.NewFile(uintptr(set), "route socket"), nil
}

// copyTimeouts lets receiving from one socket wait as long as receiving from the other.
func copyTimeouts(from, to int) {
	for _, option := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if tv, err := unix.GetsockoptTimeval(from, unix.SOL_SOCKET, option); err == nil {
			unix.SetsockoptTimeval(to, unix.SOL_SOCKET, option, tv)
		}
	}
}

func (r *relay) hangUp() { r.pair.close() }

// release closes everything; the goroutines have ended or never started.
func (r *relay) release() {
	r.pair.close()
	if r.twin != nil {
		r.twin.Close()
	}
	if r.socket >= 0 {
		unix.Close(r.socket)
	}
	if r.ns != nil {
		r.ns.Close()
	}
}

// watch processes what the client sends without our being notified and lets go of the socket
// when the client has closed it.
func (r *relay) watch(cookie uint64) {
	defer r.session.sockets.Done()
	for {
		datagram, from, err := r.pair.receive()
		if err != nil {
			if !errors.Is(err, os.ErrClosed) {
				r.session.logger.Error("receive from a route client", "error", err)
			}
			break
		}
		t, done := senderTask(r.session, from)
		t.limit = &r.opener // who has only been given the socket must not lend it rights by becoming another program
		r.sending.Lock()
		r.unnotified(t, datagram)
		r.sending.Unlock()
		done()
	}
	r.session.forget(cookie)
	r.twin.Close() // ends pump
	r.sending.Lock()
	r.setDetached(true)
	r.sending.Unlock()
	r.release()
}

// pump moves what the kernel sends of itself, to the members of a group, to the client.
func (r *relay) pump() {
	defer r.session.sockets.Done()
	conn, err := r.twin.SyscallConn()
	if err != nil {
		return
	}
	conn.Read(func(set uintptr) bool {
		r.drain()
		// Taking the event makes the next datagram a new one.
		unix.EpollWait(int(set), make([]unix.EpollEvent, 1), 0)
		r.receiving.Lock()
		defer r.receiving.Unlock()
		return r.detached
	})
}

// drain moves all that the real socket has to the client, as long as there is room. The kernel
// then holds the rest, of a dump too, as it would for a client that does not read.
func (r *relay) drain() {
	r.receiving.Lock()
	defer r.receiving.Unlock()
	if r.stuck == nil && !r.drainSome() {
		r.session.sockets.Add(1)
		go func() {
			defer r.session.sockets.Done()
			r.pair.whenWritable(func() bool {
				r.receiving.Lock()
				defer r.receiving.Unlock()
				return r.drainSome()
			})
		}()
	}
}

// drainSome returns false if there is no room, and has then set a datagram aside. The caller
// holds receiving.
func (r *relay) drainSome() bool {
	for !r.detached {
		b := r.stuck
		if b == nil {
			var from uint32
			var err error
			b, from, err = receiveNetlink(r.socket)
			switch {
			case err == unix.ENOBUFS:
				r.session.logger.Warn("a route client lost messages of the kernel")
				continue
			case err != nil:
				return true // EAGAIN: that was all
			case from != 0:
				continue // not the kernel, which is whom the client takes us for
			}
			if b = r.session.server.RewriteRoute(r.ns.ID(), &r.dumps, b); len(b) == 0 {
				continue
			}
		}
		r.stuck = nil
		if r.pair.deliver(b) == errOverrun {
			r.stuck = b
			return false
		}
	}
	return true
}

// receiveNetlink receives a datagram of any size, if there is one, and its sender's port.
func receiveNetlink(fd int) ([]byte, uint32, error) {
	size, _, err := unix.Recvfrom(fd, nil, unix.MSG_PEEK|unix.MSG_TRUNC|unix.MSG_DONTWAIT)
	if err != nil {
		return nil, 0, err
	}
	b := make([]byte, size)
	n, from, err := unix.Recvfrom(fd, b, unix.MSG_DONTWAIT)
	if err != nil {
		return nil, 0, err
	}
	address, ok := from.(*unix.SockaddrNetlink)
	if !ok {
		return nil, 0, fmt.Errorf("netlink sender %v: %w", from, syscall.EAFNOSUPPORT)
	}
	return b[:n], address.Pid, nil
}

// forward sends a datagram on the real socket, with no more rights than the client has; the
// kernel's answers are delivered before it returns.
func (r *relay) forward(t *task, datagram []byte) error {
	send := func() error {
		return unix.Sendto(r.socket, datagram, unix.MSG_DONTWAIT, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	}
	r.receiving.Lock()
	r.dumps.Ask(datagram)
	r.receiving.Unlock()
	if err := ensureBound(t, r.socket); err != nil {
		return err
	}
	err := t.withoutMore(r.ns, send)
	r.drain()
	return err
}

// forwardAs forwards a datagram that takes CAP_NET_ADMIN, or refuses it.
func (r *relay) forwardAs(t *task, datagram []byte) error {
	if err := t.MayAdmin(r.ns); err != nil {
		return r.refuse(t, datagram, errnoFor(err))
	}
	return r.forward(t, datagram)
}

// refuse answers a request that the kernel does not get to see.
func (r *relay) refuse(t *task, request []byte, errno unix.Errno) error {
	if err := ensureBound(t, r.socket); err != nil {
		return err
	}
	option := func(name int) bool {
		value, err := unix.GetsockoptInt(r.socket, unix.SOL_NETLINK, name)
		return err == nil && value != 0
	}
	form := netlinksrv.AnswerForm{Cap: option(unix.NETLINK_CAP_ACK), Extended: option(unix.NETLINK_EXT_ACK)}
	port, err := boundTo(r.socket)
	if err != nil {
		return err
	}
	if b := netlinksrv.RouteAnswer(request, port, errno, form); b != nil {
		r.drain() // what the kernel said before comes first
		r.pair.deliver(b)
	}
	return nil
}

// unnotified processes a datagram whose sender runs on: what would need its rights or descriptors
// is refused. The caller holds sending.
func (r *relay) unnotified(t *task, datagram []byte) {
	var err error
	switch verdict := r.session.server.Route(t, r.ns, datagram); {
	case verdict.Refused() != 0:
		err = r.refuse(t, datagram, verdict.Refused())
	case verdict == netlinksrv.Acknowledge:
		err = acknowledge(t, r.socket, datagram)
		r.drain()
	case onlyGets(datagram):
		err = r.forward(t, datagram)
	case namesProcess(datagram):
		err = r.refuse(t, datagram, unix.EPERM)
	default:
		err = r.forwardAs(t, datagram)
	}
	if isShortage(err) { // its send has succeeded, so it waits for an answer
		r.session.shortage.say(r.session.logger, err)
		r.refuse(t, datagram, errnoFor(err))
	}
}

// send answers a send call. fd is a duplicate of the client's end.
func (r *relay) send(c *call, fd int) {
	r.sending.Lock()
	defer r.sending.Unlock()
	sendAll(c, fd, netlinkAddress{}, func(b []byte, first bool) error {
		switch verdict := r.session.server.Route(c.task, r.ns, b); {
		case verdict.Refused() != 0:
			return r.refuse(c.task, b, verdict.Refused())
		case verdict == netlinksrv.Acknowledge:
			err := acknowledge(c.task, r.socket, b)
			r.drain()
			return err
		case onlyGets(b):
			return r.forward(c.task, b)
		case (r.hearsOfLinks() || r.pair.unread()) && !namesProcess(b):
			// Nothing that the client has not read yet may be lost with the pair.
			return r.forwardAs(c.task, b)
		case !first:
			return unix.EAGAIN // the client comes again with this one
		}
		if err := r.restore(c, fd); err != nil {
			return err
		}
		c.continues()
		return nil
	})
}

// restore puts the real socket in the place of the pair, of whose client end fd is a duplicate.
func (r *relay) restore(c *call, fd int) error {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err == nil {
		err = unix.SetNonblock(r.socket, flags&unix.O_NONBLOCK != 0)
	}
	if err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	r.drain()
	r.setDetached(true)
	done, err := c.task.replace(c.fd(), fd, r.socket)
	if !done {
		r.setDetached(false)
		return err
	}
	if err != nil {
		r.session.logger.Warn("a route client may miss events", "error", err)
	}
	return nil
}

func (r *relay) setDetached(detached bool) {
	r.receiving.Lock()
	defer r.receiving.Unlock()
	r.detached = detached
}

func (r *relay) bind(c *call, address netlinkAddress) {
	c.finish(0, c.task.withoutMore(r.ns, func() error { return bindRoute(c.task, r.socket, address) }))
}

func (r *relay) connect(c *call, address netlinkAddress, disconnect bool) {
	switch {
	case disconnect:
		c.returns(0) // it is not connected, as all it is connected to is the kernel
	case address.port != 0:
		c.fails(unix.EPERM)
	default:
		c.finish(0, unix.Connect(r.socket, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: address.groups}))
	}
}

func (r *relay) name(c *call, peer bool) {
	name, err := unix.Getsockname(r.socket)
	if peer {
		name, err = unix.Getpeername(r.socket)
	}
	nl, ok := name.(*unix.SockaddrNetlink)
	if err != nil || !ok {
		c.failsFor(err)
		return
	}
	c.answerAddress(netlinkAddress{nl.Pid, nl.Groups}.encode())
}

func (r *relay) setOption(c *call, fd int) {
	level, name := c.optionLevel(), c.optionName()
	value, err := c.optionValue()
	if err != nil {
		c.failsFor(err)
		return
	}
	if level == unix.SOL_SOCKET {
		// Receiving is the pair's; sizes count for both.
		if (name == unix.SO_RCVBUF || name == unix.SO_SNDBUF) && len(value) >= 4 {
			unix.SetsockoptInt(r.socket, level, name, int(int32(binary.NativeEndian.Uint32(value))))
		}
		if name == unix.SO_PASSCRED {
			c.returns(0) // as for a generic socket
			return
		}
		c.continues()
		return
	}
	if level == unix.SOL_NETLINK && controlOptions[name] && !r.pair.unread() {
		// What the client asks for comes beside the messages, where a pair has no room.
		r.sending.Lock()
		defer r.sending.Unlock()
		if err := r.restore(c, fd); err != nil {
			c.failsFor(err)
			return
		}
		c.continues()
		return
	}
	c.finish(0, c.task.withoutMore(r.ns, func() error {
		return unix.SetsockoptString(r.socket, level, name, string(value))
	}))
}

func (r *relay) getOption(c *call) {
	if c.optionLevel() == unix.SOL_SOCKET {
		kind, err := unix.GetsockoptInt(r.socket, unix.SOL_SOCKET, unix.SO_TYPE)
		if value := socketOption(c.optionName(), kind, unix.NETLINK_ROUTE, false); err == nil && value != nil {
			c.answerOption(func(size int) ([]byte, error) { return value[:min(size, len(value))], nil })
			return
		}
		c.continues()
		return
	}
	c.answerOption(func(size int) ([]byte, error) {
		const largest = 4096
		return socketOptionBytes(r.socket, c.optionLevel(), c.optionName(), min(size, largest))
	})
}
