package exec

import (
	"encoding/binary"
	"errors"
	"log/slog"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"ovpn-go/tun/netns"
)

// session answers the notified calls of one client and its descendants.
type session struct {
	server server
	logger *slog.Logger
	// beforeBind is told what the client is about to bind, and connections are those that the server's answers may put pairs in
	// place of. They are set before the session starts, if they are set.
	beforeBind  func(ns netns.ID, port uint16)
	connections connections
	listener    *listener
	injector    injector

	calls    sync.WaitGroup // notified calls being answered
	sockets  sync.WaitGroup // goroutines of sockets
	unserved sync.Once      // guards the warning that a socket is the kernel's
	shortage shortage
	hidden   sync.Once // guards the warning that a client can't be looked at

	guard int // pid: the client's processes are below it
	reach Reach
	// kept is nil where descriptors can be taken from the client. It is set before the first notification.
	kept      *kept
	accepting sync.Mutex // held while a connection is accepted for the client
	replacing sync.Mutex // held while a socket is replaced: a thread can be traced by one of us only

	mu        sync.Mutex
	endpoints map[uint64]endpoint   // guarded by mu: by the cookie of the client's end
	waiting   map[int]uint64        // guarded by mu: notified calls being answered, by thread
	injected  map[int]chan<- uint64 // guarded by mu: who has a thread make a call, by thread
	closed    bool                  // guarded by mu
}

// endpoint is a socket whose calls we answer: the client holds one end of a pair, we the other.
// Its methods answer the call.
type endpoint interface {
	bind(c *call, address netlinkAddress)
	connect(c *call, address netlinkAddress, disconnect bool)
	name(c *call, peer bool)
	setOption(c *call, fd int)
	getOption(c *call)
	send(c *call, fd int)
	// hangUp ends the endpoint; its goroutine then lets go of everything.
	hangUp()
}

func newSession(server server, logger *slog.Logger) *session {
	return &session{
		server: server, logger: logger,
		connections: noConnections{}, endpoints: make(map[uint64]endpoint),
		waiting: make(map[int]uint64), injected: make(map[int]chan<- uint64),
	}
}

// start must be called before the listener's first notification is passed to notified. It takes ownership of the listener.
func (s *session) start(l *listener, w window) (err error) {
	s.listener = l
	s.injector.window = w
	if s.reach.NoDescriptors != nil {
		s.kept, err = newKept(w, s.guard)
	}
	return err
}

// close ends every socket and waits for all that the session started. The listener must have
// been shut down.
func (s *session) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.calls.Wait()
	s.mu.Lock()
	for _, e := range s.endpoints {
		e.hangUp()
	}
	s.mu.Unlock()
	s.sockets.Wait()
	if s.kept != nil {
		s.kept.close()
	}
	if s.listener != nil {
		s.listener.close()
	}
}

// begin notes that something is done for the client, until calls.Done, and reports false if the session has ended.
func (s *session) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.calls.Add(1)
	return true
}

// register makes an endpoint known by its cookie, before the client can use it.
func (s *session) register(cookie uint64, e endpoint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endpoints[cookie] = e
}

func (s *session) forget(cookie uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.endpoints, cookie)
}

func (s *session) lookup(cookie uint64) endpoint {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.endpoints[cookie]
}

// notified starts answering a notification. Each has a goroutine of its own, so that a slow
// request delays nobody but the thread that made it.
func (s *session) notified(n notification) {
	if s.isInjected(&n) {
		return
	}
	if s.isForeign(&n) {
		if err := s.listener.continues(n.id); err != nil {
			s.logger.Error("answer a client's system call", "error", err)
		}
		return
	}
	if !s.begin() {
		return
	}
	s.setWaiting(int(n.tid), n.id)
	go func() {
		defer s.calls.Done()
		defer s.notWaiting(int(n.tid), n.id)
		c := &call{session: s, nr: int(n.nr), args: n.args, id: n.id, task: s.waitingTask(int(n.tid), n.id)}
		s.dispatch(c, n)
	}()
}

// dispatch answers a call.
func (s *session) dispatch(c *call, n notification) {
	switch {
	case c.nr == unix.SYS_SOCKET && int32(c.args[0]) == unix.AF_NETLINK:
		s.socket(c, n)
	case c.nr == unix.SYS_BIND:
		s.bind(c)
	case s.kept == nil:
		s.socketCall(c)
	case c.nr == unix.SYS_SOCKET:
		s.openTransport(c, n)
	case c.nr == unix.SYS_ACCEPT, c.nr == unix.SYS_ACCEPT4:
		s.accept(c, n)
	case c.nr == unix.SYS_CLOSE:
		s.closeKept(c)
	case slices.Contains(epollCreateCalls, uint32(c.nr)):
		s.openSet(c, n)
	default:
		s.socketCall(c)
	}
}

// waitingTask is the task of a thread that waits for the answer to a notification.
func (s *session) waitingTask(tid int, id uint64) *task {
	return &task{
		session: s,
		tid:     tid,
		alive:   func() bool { return s.listener.valid(id) },
		install: func(fd, number int, cloexec bool) error { return s.listener.install(id, fd, number, cloexec) },
	}
}

func (s *session) setWaiting(tid int, id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting[tid] = id
}

// notWaiting is called when a call has been answered. The thread may have made another one since.
func (s *session) notWaiting(tid int, id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting[tid] == id {
		delete(s.waiting, tid)
	}
}

// isForeign reports whether a call, which is notified for every descriptor, can't be about one of ours. That takes
// no look at the client, and no goroutine: most of these calls are such.
func (s *session) isForeign(n *notification) bool {
	return asks(int(n.nr)) && !setsMark(int(n.nr), &n.args) && !s.injector.window.contains(int(int32(n.args[0]))) && !s.connections.HasConnections()
}

// socket answers socket(AF_NETLINK, ...).
func (s *session) socket(c *call, n notification) {
	const flags = unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	kind := int(uint32(c.args[1]))
	if t := kind &^ flags; t != unix.SOCK_RAW && t != unix.SOCK_DGRAM {
		c.continues() // ESOCKTNOSUPPORT, EINVAL
		return
	}
	request := socketRequest{
		kind:     kind &^ flags,
		nonblock: kind&unix.SOCK_NONBLOCK != 0,
		cloexec:  kind&unix.SOCK_CLOEXEC != 0,
	}
	var err error
	if uint32(c.args[2]) == unix.NETLINK_GENERIC {
		err = s.openGeneric(c, n, request)
	} else {
		err = s.openRoute(c, n, request)
	}
	switch {
	case err == nil, !c.task.alive():
	case errors.Is(err, errWindowFull), errors.Is(err, unix.EBADF), errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		// The client then has a socket of the kernel's, where only ours is missing.
		s.unserved.Do(func() {
			s.logger.Warn("a netlink socket of the client is not served", "error", err, "pid", c.task.PID())
		})
		c.continues()
	case isShortage(err):
		c.failsFor(err)
	default:
		s.logger.Error("open a netlink socket for the client", "error", err)
		c.failsFor(err)
	}
}

// answerNetlink answers a socket call with a copy of fd in the window.
func (s *session) answerNetlink(c *call, n notification, fd int, cloexec bool) error {
	return s.injector.answer(s.listener, s.injector.window, n, fd, cloexec, func(number int) error {
		if s.kept == nil {
			return nil
		}
		return s.kept.add(fd, c.task.PID(), number)
	})
}

// socketRequest is what a socket call asks for.
type socketRequest struct {
	kind              int // SOCK_RAW or SOCK_DGRAM
	nonblock, cloexec bool
}

// bind answers bind, which is notified for every descriptor.
func (s *session) bind(c *call) {
	address, err := c.socketAddress(c.args[1], int32(c.args[2]))
	if err != nil || len(address) < 2 {
		c.continuesUnless(err) // the kernel knows best what is wrong
		return
	}
	switch binary.NativeEndian.Uint16(address) {
	case unix.AF_INET, unix.AF_INET6:
		s.announceBind(c, address)
		c.continues()
	case unix.AF_NETLINK:
		s.socketCall(c)
	default:
		if s.injector.window.contains(c.fd()) {
			s.socketCall(c)
			return
		}
		c.continues()
	}
}

// announceBind tells the datapath that a client takes a port: a client that restarts does so
// microseconds after it closed its previous socket, of which we may still hold a duplicate.
func (s *session) announceBind(c *call, address []byte) {
	if s.beforeBind == nil || len(address) < 4 {
		return
	}
	port := binary.BigEndian.Uint16(address[2:])
	if port == 0 {
		return
	}
	ns, err := netns.IDOfThread(c.task.tid)
	if err == nil && c.task.alive() {
		s.beforeBind(ns, port)
	}
}

// socketCall answers a call on a descriptor that may be one of ours.
func (s *session) socketCall(c *call) {
	fd, err := c.task.take(c.fd())
	if err != nil {
		if isShortage(err) && c.onSocket() {
			c.failsFor(err)
			return
		}
		if !errors.Is(err, unix.EBADF) && !errors.Is(err, errNotKept) && s.injector.window.contains(c.fd()) && c.task.alive() {
			s.hidden.Do(func() {
				s.logger.Warn("can't look at a client's descriptors: is CAP_SYS_PTRACE missing?", "error", err, "pid", c.task.PID())
			})
		}
		// Should it be one of ours, a send reaches us all the same, if a moment later.
		c.continues()
		return
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		c.continues() // not a socket
		return
	}
	if e := s.lookup(cookie); e != nil {
		s.endpointCall(c, e, fd)
		return
	}
	if asks(c.nr) {
		conn, err := s.connections.Connection(cookie)
		if err != nil {
			c.failsFor(err)
			return
		}
		if conn != nil {
			c.connectionCall(conn)
			conn.Close()
			return
		}
	}
	if isRoute(fd) {
		s.routeCall(c, fd)
		return
	}
	if setsMark(c.nr, &c.args) {
		c.markSocket(fd, cookie)
		return
	}
	c.continues()
}

// sends says whether the call is one of those that send.
func (c *call) sends() bool {
	switch c.nr {
	case unix.SYS_SENDTO, unix.SYS_SENDMSG, unix.SYS_SENDMMSG, unix.SYS_WRITE, unix.SYS_WRITEV:
		return true
	}
	return false
}

// endpointCall answers a call on a pair's client end, of which fd is a duplicate.
func (s *session) endpointCall(c *call, e endpoint, fd int) {
	switch c.nr {
	case unix.SYS_BIND:
		address, err := c.socketAddress(c.args[1], int32(c.args[2]))
		if err == nil {
			var parsed netlinkAddress
			if parsed, err = parseNetlinkAddress(address); err == nil {
				e.bind(c, parsed)
				return
			}
		}
		c.failsFor(err)
	case unix.SYS_CONNECT:
		address, err := c.socketAddress(c.args[1], int32(c.args[2]))
		if err == nil && len(address) < 2 {
			err = unix.EINVAL
		}
		if err == nil {
			if binary.NativeEndian.Uint16(address) == unix.AF_UNSPEC {
				e.connect(c, netlinkAddress{}, true)
				return
			}
			var parsed netlinkAddress
			if parsed, err = parseNetlinkAddress(address); err == nil {
				e.connect(c, parsed, false)
				return
			}
		}
		c.failsFor(err)
	case unix.SYS_GETSOCKNAME:
		e.name(c, false)
	case unix.SYS_GETPEERNAME:
		e.name(c, true)
	case unix.SYS_SETSOCKOPT:
		e.setOption(c, fd)
	case unix.SYS_GETSOCKOPT:
		e.getOption(c)
	default:
		e.send(c, fd)
	}
}
