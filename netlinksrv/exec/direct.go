package exec

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"ovpn-go/tun/netns"
)

// Direct serves netlink sockets of programs that ask for them in so many words, and so need no filter. It may be used
// concurrently.
type Direct struct{ session *session }

// NewDirect returns one without sockets. Args and Daemon are not used.
func NewDirect(o Options) *Direct { return &Direct{o.session()} }

// Close ends all sockets and returns when they are released.
func (d *Direct) Close() { d.session.close() }

// Caller is a process that asks for something, with the rights that it had when we looked at it first. It is used by one
// goroutine at a time.
type Caller struct {
	task        *task
	pidfd       int
	credentials credentials
}

// NewCaller looks at the process that has connected a UNIX socket: at what it is now, which is what it was then unless it has executed
// another program meanwhile. Of that the user id tells something; for the rest there is Unchanged.
func NewCaller(conn int) (*Caller, error) {
	peer, err := unix.GetsockoptUcred(conn, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return nil, os.NewSyscallError("getsockopt SO_PEERCRED", err)
	}
	if peer.Pid <= 0 {
		return nil, fmt.Errorf("the process is not in a pid namespace below this one: %w", unix.ESRCH)
	}
	pidfd, err := unix.GetsockoptInt(conn, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if err != nil { // before Linux 6.5
		if pidfd, err = unix.PidfdOpen(int(peer.Pid), 0); err != nil {
			return nil, os.NewSyscallError("pidfd_open", err)
		}
	}
	unix.CloseOnExec(pidfd)
	c := &Caller{pidfd: pidfd, task: &task{tid: int(peer.Pid), alive: func() bool { return processRuns(pidfd) }}}
	c.credentials, err = c.task.credentials()
	switch {
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		err = fmt.Errorf("look into process %d, which takes its user and no more rights than this process's, or CAP_SYS_PTRACE: %w", peer.Pid, err)
	case err == nil && c.credentials.euid != peer.Uid:
		err = fmt.Errorf("the process is of another user than when it connected: %w", unix.EPERM)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Close releases the caller.
func (c *Caller) Close() { unix.Close(c.pidfd) }

// PID returns the process's id in our pid namespace.
func (c *Caller) PID() int { return c.task.tid }

// Unchanged returns an error if the process's rights are not what they were. A process that has said something which it
// could only know after NewCaller returned, and whose rights are the same before and after, had them when it spoke.
func (c *Caller) Unchanged() error {
	now, err := c.task.credentials()
	if err == nil && now != c.credentials {
		err = fmt.Errorf("the process's rights have changed since it connected: %w", unix.EPERM)
	}
	return err
}

// MayAdmin is netlinksrv.Task's for the process.
func (c *Caller) MayAdmin(ns *netns.NS) error { return c.credentials.mayAdmin(ns) }

// MayUse returns an error unless the process may use netlink in ns: because it is there, or because it has CAP_NET_ADMIN over
// it.
func (c *Caller) MayUse(ns *netns.NS) error {
	own, err := c.task.NetNS()
	if err != nil {
		return err
	}
	own.Close()
	if own.ID() == ns.ID() {
		return nil
	}
	if err := c.MayAdmin(ns); err != nil {
		return fmt.Errorf("CAP_NET_ADMIN over the network namespace: %w", err)
	}
	return nil
}

// DirectSocket is a netlink socket of a program that has one end of a pair. It lives until the program closes that, or Close
// is called.
type DirectSocket struct {
	endpoint endpoint
	task     *task
	port     uint32
	// setOption sets an option of SOL_NETLINK.
	setOption func(name int, value []byte) error
}

// Open makes a netlink socket of protocol unix.NETLINK_GENERIC or unix.NETLINK_ROUTE in ns for a caller, who must stay open as
// long as the socket. Each packet on the returned file, which is for the caller, is a datagram; what may be done by it is decided by the
// rights of the process that sends it, and by the caller's.
func (d *Direct) Open(c *Caller, protocol int, ns *netns.NS) (*DirectSocket, *os.File, error) {
	s := d.session
	if !s.begin() {
		return nil, nil, errGone
	}
	defer s.calls.Done()
	t := *c.task
	t.session, t.limit = s, &c.credentials
	socket := &DirectSocket{task: &t}
	client, err := -1, error(unix.EPROTONOSUPPORT)
	switch protocol {
	case unix.NETLINK_GENERIC:
		client, err = socket.openGeneric(s, ns)
	case unix.NETLINK_ROUTE:
		client, err = socket.openRoute(s, ns)
	}
	if err != nil {
		return nil, nil, err
	}
	return socket, os.NewFile(uintptr(client), "netlink socket"), nil
}

func (d *DirectSocket) openGeneric(s *session, ns *netns.NS) (client int, err error) {
	pair, client, cookie, err := newPair(ns, false)
	if err != nil {
		return -1, err
	}
	g := &genericSocket{session: s, pair: pair, kind: unix.SOCK_RAW, opener: *d.task.limit, released: make(chan struct{}), handover: &handover{pair: pair}}
	if g.server, err = s.server.OpenGeneric(ns, g.handover.deliver); err == nil {
		if err = g.server.Bind(d.task, 0, 0); err != nil {
			g.server.Close()
		}
	}
	if err != nil {
		pair.close()
		unix.Close(client)
		return -1, err
	}
	s.register(cookie, g)
	s.sockets.Add(1)
	go g.watch(cookie)
	d.endpoint, d.port = g, g.server.Port()
	d.setOption = func(name int, value []byte) error {
		return g.server.SetOption(d.task, unix.SOL_NETLINK, name, value)
	}
	return client, nil
}

func (d *DirectSocket) openRoute(s *session, ns *netns.NS) (client int, err error) {
	fd := -1
	err = ns.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		return os.NewSyscallError("socket", err)
	})
	if err != nil {
		return -1, err
	}
	defer unix.Close(fd)
	if err := ensureBound(d.task, fd); err != nil {
		return -1, os.NewSyscallError("bind", err)
	}
	if d.port, err = boundTo(fd); err != nil {
		return -1, os.NewSyscallError("getsockname", err)
	}
	r, client, cookie, err := s.newRelay(*d.task.limit, fd, ns, false)
	if err != nil {
		return -1, err
	}
	r.start(cookie)
	d.endpoint = r
	d.setOption = func(name int, value []byte) error {
		// Those that change what answers look like.
		if !slices.Contains([]int{unix.NETLINK_EXT_ACK, unix.NETLINK_CAP_ACK, unix.NETLINK_GET_STRICT_CHK}, name) {
			return unix.ENOPROTOOPT
		}
		r.receiving.Lock()
		defer r.receiving.Unlock()
		if r.detached { // the client has closed its end, and soon r.socket is another's number
			return unix.EBADF
		}
		return unix.SetsockoptString(r.socket, unix.SOL_NETLINK, name, string(value))
	}
	return client, nil
}

// Port returns the socket's port id.
func (d *DirectSocket) Port() uint32 { return d.port }

// SetOption sets an option of level SOL_NETLINK. The error is the kernel's errno.
func (d *DirectSocket) SetOption(name int, value []byte) error { return d.setOption(name, value) }

// Close ends the socket. What it held is released a moment later.
func (d *DirectSocket) Close() { d.endpoint.hangUp() }

// processRuns says whether the process of a pidfd has not ended.
func processRuns(pidfd int) bool {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	n, err := ignoringEINTR(func() (int, error) { return unix.Poll(fds, 0) })
	return err == nil && n == 0
}
