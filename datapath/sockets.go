package datapath

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"ovpn-go/tun/netns"
)

// AttachError says why a client's socket can't carry a device's data. Errno is the code that the
// kernel module shows in its text (kernel behaviour: EOPNOTSUPP, EBUSY, EINVAL).
type AttachError struct {
	Errno unix.Errno
	cause error
}

func (e *AttachError) Error() string { return fmt.Sprintf("attach transport socket: %v", e.cause) }
func (e *AttachError) Unwrap() error { return e.Errno }

// attachError gives a cause its code, unless the cause is that this process, or the system, has no descriptor left: that is ENOBUFS.
func attachError(errno unix.Errno, cause error) *AttachError {
	if isShortage(cause) {
		errno = unix.ENOBUFS
	}
	return &AttachError{Errno: errno, cause: cause}
}

// isShortage reports whether an error says that this process, or the system, has no descriptor left. What a socket is merely better with is
// then no reason to do without it for as long as it lives.
func isShortage(err error) bool { return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) }

// SocketProtocol returns the IP protocol number of a socket: 17 for UDP, 6 for TCP. The error is
// ENOTSOCK when the file is no socket.
func SocketProtocol(file *os.File) (proto int, err error) {
	err = netns.Control(file, func(fd int) (err error) {
		proto, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
		return err
	})
	return proto, err
}

// SocketProtocol is the function of that name for a client's socket: what has replaced a connection is TCP.
func (d *Device) SocketProtocol(file *os.File) (int, error) {
	if d.sockets.connectionOf(file) != nil {
		return unix.IPPROTO_TCP, nil
	}
	return SocketProtocol(file)
}

// Sockets are the clients' transport sockets that devices have attached. There is one per process, as a
// socket belongs to at most one device. Its methods may be called concurrently.
type Sockets struct {
	log   *slog.Logger
	watch *sockWatch

	mu       sync.Mutex
	attached map[uint64]*udpSocket // by the cookie of the client's socket; guarded by mu
	tcp      map[uint64]*tcpConn   // by the cookies of the connection and of the client's end; guarded by mu
}

// NewSockets returns an empty set. Close it when no device uses it any more.
func NewSockets(log *slog.Logger) (*Sockets, error) {
	return &Sockets{
		log:      log,
		watch:    newSockWatch(log),
		attached: map[uint64]*udpSocket{},
		tcp:      map[uint64]*tcpConn{},
	}, nil
}

// Close stops watching. The devices must be gone.
func (s *Sockets) Close() { s.watch.close() }

// udpSocket is a device's own sockets beside a client's: bound to the same address, they receive the
// data packets while the client's keeps receiving the control packets. Several peers of the device
// may share them.
type udpSocket struct {
	owner   *Device
	info    udpInfo
	ns      *netns.NS
	assist  *groAssist // nil without UDP GRO
	probe   *pathProbe // nil if it can't be had
	unwatch func()
	refs    int // guarded by Sockets.mu: peers that use it, and peers about to be added

	lanes []source    // one for each of the owner's workers, which receives and sends by it
	conn  *connection // through which a connected socket's data packets are received, instead of the lanes; else nil
}

// newTransport makes d's transport of a client's socket. client is nil, or what is to replace the client's
// descriptor.
func (s *Sockets) newTransport(d *Device, socket *os.File) (tr *transport, client *os.File, err error) {
	proto, err := SocketProtocol(socket)
	if err != nil {
		return nil, nil, attachError(unix.EOPNOTSUPP, err)
	}
	tr = &transport{}
	if tr.tcp = s.connectionOf(socket); tr.tcp != nil {
		// Whether it is free again, after an earlier peer, is seen when the peer is added.
		if tr.tcp.dev != d {
			return nil, nil, attachError(unix.EBUSY, errors.New("the connection serves another device"))
		}
		tr.adopted = true
		return tr, nil, nil
	}
	switch proto {
	case unix.IPPROTO_UDP:
		tr.udp, err = s.attach(d, socket)
	case unix.IPPROTO_TCP:
		tr.tcp, client, err = s.openTCP(d, socket)
	default:
		err = attachError(unix.EOPNOTSUPP, fmt.Errorf("protocol %d is neither UDP nor TCP", proto))
	}
	return tr, client, err
}

// connectionOf returns the connection that a socket is, or that it has replaced; nil if we have no such.
func (s *Sockets) connectionOf(socket *os.File) *tcpConn {
	cookie, err := socketCookie(socket)
	if err != nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tcp[cookie]
}

// HasConnections reports whether any client's connection is replaced at the moment. It is cheap.
func (s *Sockets) HasConnections() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.tcp) > 0
}

// Connection returns a duplicate of the TCP connection in whose place a client holds the socket with the given
// cookie, nil if there is none. The caller closes it soon: the connection ends no earlier.
func (s *Sockets) Connection(cookie uint64) (*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.tcp[cookie]
	if c == nil || c.cookies[1] != cookie {
		return nil, nil
	}
	fd, err := unix.FcntlInt(uintptr(c.stream.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate a client's connection: %w", err)
	}
	return os.NewFile(uintptr(fd), "connection of a client"), nil
}

// SetMark sets SO_MARK on what sends in the stead of the client's UDP socket with the cookie, as the module reads the mark
// for each packet. It reports false if nothing does.
func (s *Sockets) SetMark(cookie uint64, mark int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	sock := s.attached[cookie]
	if sock == nil {
		return false
	}
	for i := range sock.lanes {
		if err := unix.SetsockoptInt(sock.lanes[i].fd, unix.SOL_SOCKET, unix.SO_MARK, mark); err != nil {
			s.log.Warn("follow the mark of a client's socket", "port", sock.info.LocalPort, "error", err)
		}
	}
	sock.probe.setMark(mark)
	return true
}

// attach returns d's socket beside the client's socket, made on first use. Every call is to be paired
// with release.
func (s *Sockets) attach(d *Device, client *os.File) (*udpSocket, error) {
	cookie, err := socketCookie(client)
	if err != nil {
		return nil, attachError(unix.EINVAL, err)
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	if sock := s.attached[cookie]; sock != nil {
		if sock.owner != d {
			return nil, attachError(unix.EBUSY, errors.New("the socket serves another device"))
		}
		sock.refs++
		return sock, nil
	}
	ns, err := netns.OfSocket(client)
	if err != nil {
		return nil, attachError(unix.EINVAL, err)
	}
	fds, info, err := shareUDP(client, len(d.workers))
	var conn *connection
	if errors.Is(err, errConnected) {
		fds, conn, info, err = connectUDP(client, len(d.workers))
	}
	if err != nil {
		ns.Close()
		var errno unix.Errno
		if !errors.As(err, &errno) {
			errno = unix.EOPNOTSUPP
		}
		return nil, attachError(errno, err)
	}
	assist, assistErr := assistGRO(client, info)
	if assistErr != nil {
		// Slower, but the client's control packets are safe.
		s.log.Warn("receive without UDP GRO", "port", info.LocalPort, "error", assistErr)
		for _, fd := range fds {
			_ = setGRO(fd, false)
		}
		if conn != nil {
			conn.abandonFront()
		}
	}
	sock := &udpSocket{owner: d, info: info, ns: ns, assist: assist, refs: 1, conn: conn}
	for i, fd := range fds {
		w := d.workers[i]
		sock.lanes = append(sock.lanes, source{fd: fd, drain: func() bool { return w.rx.socket(sock, fd) }})
	}
	if conn != nil {
		w := d.workers[int(info.LocalPort)%len(d.workers)]
		conn.raw.drain = func() bool { return w.rx.connected(sock) }
		conn.front.drain = func() bool { return w.rx.socket(sock, conn.front.fd) }
	}
	sock.probe, err = newPathProbe(ns, info)
	if isShortage(assistErr) || isShortage(err) {
		sock.close()
		return nil, attachError(unix.ENOBUFS, errors.Join(assistErr, err))
	}
	if err != nil {
		s.log.Warn("no path MTU will be known", "port", info.LocalPort, "error", err)
	}
	sock.unwatch, err = s.watch.watch(ns, unix.IPPROTO_UDP, cookie, func() {
		// The watch may be waiting for this call, in unwatch, between turns.
		go d.do(func() { d.socketGone(sock) })
	})
	if err != nil {
		sock.close()
		return nil, attachError(unix.EINVAL, err)
	}
	s.attached[cookie] = sock
	return sock, nil
}

// poll has the owner's workers receive, which may do so already. It runs between turns.
func (sock *udpSocket) poll() error {
	workers := sock.owner.workers
	if sock.conn != nil {
		w := workers[int(sock.info.LocalPort)%len(workers)]
		return sock.conn.poll(w)
	}
	for i, w := range workers {
		if err := w.poll(&sock.lanes[i], unix.EPOLLIN); err != nil {
			return err
		}
	}
	return nil
}

// release drops one use of sock, between turns. After the last one the address belongs to the client alone.
func (s *Sockets) release(sock *udpSocket) {
	// Held to the end: an attach of the same client socket must not find ours half released.
	s.mu.Lock()
	defer s.mu.Unlock()
	sock.refs--
	if sock.refs > 0 {
		return
	}
	delete(s.attached, sock.info.Cookie)
	sock.unwatch()
	sock.close()
}

func (sock *udpSocket) close() {
	if sock.assist != nil {
		sock.assist.close()
	}
	sock.probe.close()
	for i := range sock.lanes {
		sock.lanes[i].unpoll()
		unix.Close(sock.lanes[i].fd)
	}
	if sock.conn != nil {
		sock.conn.close()
	}
	sock.ns.Close()
}

// BeforeBind is called when a process is about to bind a socket to port in namespace ns. Where the port
// belongs to a client's socket that was closed meanwhile, its peers are removed first (reason
// transport-disconnect), so that the bind succeeds although nobody deleted them.
func (s *Sockets) BeforeBind(ns netns.ID, port uint16) {
	var stale []*udpSocket
	s.mu.Lock()
	for _, sock := range s.attached {
		if sock.ns.ID() == ns && sock.info.LocalPort == port {
			stale = append(stale, sock)
			sock.refs++ // keeps ns open while it is looked at
		}
	}
	s.mu.Unlock()
	for _, sock := range stale {
		there, err := s.watch.exists(sock.ns, unix.IPPROTO_UDP, sock.info.Family, sock.info.Cookie, port)
		if err != nil {
			s.log.Warn("look up a client's socket", "port", port, "error", err)
		}
		gone := err == nil && !there
		sock.owner.exclusively(func() {
			if gone {
				sock.owner.socketGone(sock)
			}
			s.release(sock)
		})
	}
}
