package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/peers"
	"ovpn-go/tun/netns"
)

const (
	// clientQueue is the size asked for the buffer from us to the client, which holds control packets.
	clientQueue = 1 << 20
	// maxClientRecord is the longest record that the client may send (kernel: 1 + 17 pages of 4 KiB).
	maxClientRecord = 73728
	// orphanTimeout is how long the other side may take to accept what a client sent before it closed.
	orphanTimeout = 10 * time.Second
)

// tcpConn is a client's TCP connection that carries one peer's packets.
//
// The connection is ours alone. In its place the client holds one end of a SEQPACKET pair, whose messages are
// whole frames, length included, as its reads and writes on the module's socket are. So data and control never
// mix inside a frame, and the client's descriptor tells it about the connection's end.
//
// When the client removes the peer it gets the connection back (restore). Otherwise that lives on without a peer until the
// client closes its end, as a plain stream: bytes pass both ways as they come.
//
// It is polled by one worker, which alone reads from both ends. What a turn of any worker seals for the peer is
// written by that worker.
type tcpConn struct {
	dev       *Device
	ns        *netns.NS
	localPort uint16
	cookies   [2]uint64 // of the connection and of the client's end
	inode     uint64    // of the client's end
	name      string    // of the client's end, taken as long as that is open
	// substitute is PeerConfig's, of the connection's first peer.
	substitute func(inode uint64, file *os.File) error
	// nonblocking is the mode of the client's descriptor. We never rely on it: the open file is shared.
	nonblocking bool

	stream source // the connection
	client source // our end of the pair

	worker  *worker       // that polls it, once there was a peer
	state   atomic.Uint32 // a tcpState
	peer    *peers.Peer   // while the state is one that has a peer; changes between turns
	partial []byte        // the worker's: what has arrived and can't be passed on yet: the beginning of a frame, or a plain record

	mu  sync.Mutex // held while writing to the connection
	out []byte     // guarded by mu: what the connection has not taken yet, the rest of one write
	// held: the client's records wait for out to go, and then come first; guarded by mu.
	held bool
}

// tcpState is what a connection does at the moment. Only carry, end, fail, reject, detach and restore change it: carry, detach
// and restore between turns, end and reject in a turn of the worker that polls the connection, fail in any worker's.
type tcpState uint8

const (
	// tcpPlain: there is no peer, yet or any more, and bytes pass both ways as they come.
	tcpPlain tcpState = iota
	// tcpCarrying: the stream is the peer's frames.
	tcpCarrying
	// tcpDeaf: there is a peer, which is sent to, but nothing more is read.
	tcpDeaf
	// tcpFailing: the peer is removed when the turn is over, and nothing passes any more.
	tcpFailing
	// tcpRejecting: the peer is removed when the turn is over, as it sent what no peer sends. The connection is well.
	tcpRejecting
	// tcpRestoring: there is no peer, and the client is given the connection back. Nothing more is read; what the client
	// has sent to the pair is passed on.
	tcpRestoring
	// tcpOver: there is no peer, nor will there be another. Nothing more is read, but what the client sends is still
	// tried.
	tcpOver
)

// openTCP takes a client's connection. client is the end of the pair that is to replace the client's descriptor.
func (s *Sockets) openTCP(d *Device, file *os.File) (*tcpConn, *os.File, error) {
	c := &tcpConn{dev: d, stream: source{fd: -1}, client: source{fd: -1}}
	client, err := c.open(file)
	if err == nil {
		err = s.register(c)
	}
	if err != nil {
		c.closeDescriptors()
		if client != nil {
			client.Close()
		}
		return nil, nil, err
	}
	return c, client, nil
}

// open fills in what there is to know about the client's connection and makes the pair.
func (c *tcpConn) open(file *os.File) (client *os.File, err error) {
	if c.cookies[0], err = socketCookie(file); err != nil {
		return nil, attachError(unix.EINVAL, err)
	}
	if err := netns.Control(file, c.inspect); err != nil {
		return nil, attachError(unix.EINVAL, err)
	}
	if c.ns, err = netns.OfSocket(file); err != nil {
		return nil, attachError(unix.EINVAL, err)
	}
	if client, err = c.pair(); err != nil {
		return nil, attachError(unix.ENOMEM, err)
	}
	if c.cookies[1], err = socketCookie(client); err != nil {
		return client, attachError(unix.EINVAL, err)
	}
	if c.inode, err = inodeOf(client); err != nil {
		return client, attachError(unix.EINVAL, err)
	}
	return client, nil
}

// register makes a connection known, so that it carries one peer only.
func (s *Sockets) register(c *tcpConn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tcp[c.cookies[0]] != nil {
		return attachError(unix.EBUSY, errors.New("the connection carries another peer"))
	}
	for _, cookie := range c.cookies {
		s.tcp[cookie] = c
	}
	return nil
}

// inspect duplicates the client's descriptor and looks at the connection.
func (c *tcpConn) inspect(fd int) (err error) {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return fmt.Errorf("state of connection: %w", err)
	}
	const established = 1 // TCP_ESTABLISHED
	if info.State != established {
		return fmt.Errorf("connection is not established (state %d): %w", info.State, unix.EINVAL)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return fmt.Errorf("address of connection: %w", err)
	}
	switch a := name.(type) {
	case *unix.SockaddrInet4:
		c.localPort = uint16(a.Port)
	case *unix.SockaddrInet6:
		c.localPort = uint16(a.Port)
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return fmt.Errorf("mode of connection: %w", err)
	}
	c.nonblocking = flags&unix.O_NONBLOCK != 0
	c.stream.fd, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("duplicate connection: %w", err)
	}
	return nil
}

// pair makes the pair of the client's records and returns the client's end.
func (c *tcpConn) pair() (*os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("create pair: %w", err)
	}
	c.client.fd = fds[0]
	// The flag belongs to the open file, so this is how the client's calls behave.
	if err := unix.SetNonblock(fds[1], c.nonblocking); err != nil {
		unix.Close(fds[1])
		return nil, fmt.Errorf("set the mode of the client's end: %w", err)
	}
	client := os.NewFile(uintptr(fds[1]), "client end of connection")
	if c.name, err = bindToAnyName(fds[1]); err != nil {
		return client, err
	}
	if unix.SetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, clientQueue) != nil {
		_ = unix.SetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_SNDBUF, clientQueue)
	}
	// What is longer gets EMSGSIZE then, and what piles up makes the client wait. The kernel doubles the value and
	// keeps 32 bytes for itself.
	_ = unix.SetsockoptInt(fds[1], unix.SOL_SOCKET, unix.SO_SNDBUF, (maxClientRecord+32)/2)
	return client, nil
}

// bindToAnyName gives a UNIX socket a name that no other has, chosen by the kernel.
func bindToAnyName(fd int) (string, error) {
	if err := unix.Bind(fd, &unix.SockaddrUnix{}); err != nil {
		return "", fmt.Errorf("name the client's end: %w", err)
	}
	address, err := unix.Getsockname(fd)
	if err != nil {
		return "", fmt.Errorf("name of the client's end: %w", err)
	}
	return address.(*unix.SockaddrUnix).Name, nil
}

// releaseTCP closes a connection, if that has not been done yet, between turns.
func (s *Sockets) releaseTCP(c *tcpConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tcp[c.cookies[0]] != c {
		return
	}
	for _, cookie := range c.cookies {
		delete(s.tcp, cookie)
	}
	delete(c.dev.conns, c)
	c.closeDescriptors()
}

func (c *tcpConn) closeDescriptors() {
	if !c.is(tcpRestoring) { // the client closes it
		c.dontLinger()
	}
	c.unpoll()
	for _, src := range []*source{&c.stream, &c.client} {
		if src.fd >= 0 {
			unix.Close(src.fd)
			src.fd = -1
		}
	}
	if c.ns != nil {
		c.ns.Close()
	}
}

// dontLinger has the close happen in the background if the client asked for one that waits: it is the worker that
// would wait. One that resets the connection does not.
func (c *tcpConn) dontLinger() {
	linger, err := unix.GetsockoptUint64(c.stream.fd, unix.SOL_SOCKET, unix.SO_LINGER)
	var raw [8]byte // struct linger
	binary.NativeEndian.PutUint64(raw[:], linger)
	if err == nil && binary.NativeEndian.Uint32(raw[:4]) != 0 && binary.NativeEndian.Uint32(raw[4:]) != 0 {
		_ = unix.SetsockoptLinger(c.stream.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{})
	}
}

// start makes a worker move the connection's frames. One that was started before stays with its worker.
func (c *tcpConn) start(w *worker) error {
	if c.worker != nil {
		return nil
	}
	c.stream.drain = func() bool { return w.rx.connection(c) }
	c.stream.writable = c.drained
	c.client.drain = func() bool { return c.forward(w) }
	if err := w.poll(&c.stream, unix.EPOLLIN|unix.EPOLLOUT|unix.EPOLLRDHUP); err != nil {
		return err
	}
	c.client.writable = func() {
		if c.is(tcpPlain) && len(c.partial) > 0 {
			w.markReadable(&c.stream)
		}
	}
	if err := w.poll(&c.client, unix.EPOLLIN|unix.EPOLLOUT|unix.EPOLLRDHUP); err != nil {
		c.stream.unpoll()
		return err
	}
	c.worker = w
	c.dev.conns[c] = struct{}{}
	return nil
}

// unpoll has the worker let go of both ends, between turns.
func (c *tcpConn) unpoll() {
	c.stream.unpoll()
	c.client.unpoll()
}

// forward takes the client's records to the connection. While that has not taken the last write they wait in the
// pair, whose buffer then makes the client wait.
func (c *tcpConn) forward(w *worker) (more bool) {
	buf := w.rx.record[:]
	for range receivesPerTurn {
		if !c.ready(w) {
			if c.clientClosed() {
				c.orphan(w)
			}
			return false
		}
		n, _, flags, _, err := unix.Recvmsg(c.client.fd, buf, nil, unix.MSG_DONTWAIT)
		switch {
		case err == unix.EAGAIN:
			return false
		case err == unix.EINTR:
			continue
		case err == nil && n == 0 && c.client.events&(unix.EPOLLHUP|unix.EPOLLRDHUP) == 0:
			// An empty record: to a connection, nothing. Should it be the end, an event is on its way.
			continue
		case err != nil || n == 0:
			c.clientEnded(w)
			return false
		case flags&unix.MSG_TRUNC != 0:
			c.fail(w) // longer than any record may be; what was cut off can't be made up for
			return false
		}
		c.push(w, buf[:n]) // another worker may have filled the connection since
	}
	return true
}

// orphan is called when the client has closed its end and the connection is still to take what it sent before. The
// peer goes at once (kernel behaviour), the rest as soon as it can, but not later than orphanTimeout from now.
func (c *tcpConn) orphan(w *worker) {
	w.later(func() { c.removePeer(peers.TransportDisconnect) })
	_ = unix.SetsockoptInt(c.stream.fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(orphanTimeout.Milliseconds()))
}

// clientClosed reports whether the client has closed its end. EPOLLHUP says that nothing passes any more in either direction,
// which shutdown brings about as well. But the name of a socket that is closed is free.
func (c *tcpConn) clientClosed() bool {
	if c.client.events&unix.EPOLLHUP == 0 {
		return false
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return true // rather than keep for ever what nobody uses
	}
	defer unix.Close(fd)
	return unix.Bind(fd, &unix.SockaddrUnix{Name: c.name}) != unix.EADDRINUSE
}

// clientEnded is called when the client has closed its end, or will send no more.
func (c *tcpConn) clientEnded(w *worker) {
	if c.clientClosed() {
		w.later(func() {
			c.removePeer(peers.TransportDisconnect)
			c.dev.sockets.releaseTCP(c)
		})
		return
	}
	// The next data packet fails, as it does in the kernel, and the close raises another event.
	how := unix.SHUT_WR
	if c.client.events&unix.EPOLLHUP != 0 && !c.is(tcpDeaf) {
		how = unix.SHUT_RDWR
	}
	_ = unix.Shutdown(c.stream.fd, how)
}

// removePeer removes the peer, if it has not been removed for another reason, between turns.
func (c *tcpConn) removePeer(reason peers.DelReason) {
	if c.peer != nil {
		c.dev.remove(c.peer, reason)
	}
}

// deliver gives the client one record, and reports false if its queue is full.
func (c *tcpConn) deliver(record []byte) bool {
	_, err := unix.SendmsgN(c.client.fd, record, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	return err != unix.EAGAIN
}

// carry makes the connection carry a peer's frames: tcpPlain becomes tcpCarrying.
func (c *tcpConn) carry(p *peers.Peer) {
	c.peer, c.partial = p, nil
	c.become(tcpPlain, tcpCarrying)
}

func (c *tcpConn) is(s tcpState) bool { return tcpState(c.state.Load()) == s }

// become changes the state and reports whether it was the one to change from.
func (c *tcpConn) become(from, to tcpState) bool {
	return c.state.CompareAndSwap(uint32(from), uint32(to))
}

// end is called when nothing more comes from the connection: the other side closed or reset it, or its stream is
// out of step. The client reads what is queued and then the end. The peer stays until a send fails (kernel
// behaviour): tcpCarrying becomes tcpDeaf, tcpPlain becomes tcpOver.
func (c *tcpConn) end() {
	if !c.become(tcpCarrying, tcpDeaf) && !c.become(tcpPlain, tcpOver) {
		return
	}
	c.partial = nil
	_ = unix.Shutdown(c.client.fd, unix.SHUT_WR)
}

// fail has the peer removed once the turn, which is w's, is over: tcpCarrying and tcpDeaf become tcpFailing, and so does
// tcpRejecting, where the removal is under way. Where there is no peer, and so no worker but its own that uses the
// connection, that was the end: tcpPlain becomes tcpOver.
func (c *tcpConn) fail(w *worker) {
	switch {
	case c.become(tcpCarrying, tcpFailing), c.become(tcpDeaf, tcpFailing):
		w.later(func() { c.removePeer(peers.TransportError) })
	case c.become(tcpRejecting, tcpFailing):
	case c.is(tcpPlain):
		c.end()
	}
}

// reject has the peer removed once the turn, which is w's, is over: tcpCarrying becomes tcpRejecting.
func (c *tcpConn) reject(w *worker) {
	if c.become(tcpCarrying, tcpRejecting) {
		w.later(func() { c.removePeer(peers.TransportError) })
	}
}

// detach is called when the peer has been removed. Where the connection is well, what comes now passes on as plain bytes:
// tcpCarrying and tcpRejecting become tcpPlain. Otherwise nothing more comes: tcpDeaf and tcpFailing become tcpOver.
func (c *tcpConn) detach() {
	c.peer, c.partial = nil, nil
	switch tcpState(c.state.Swap(uint32(tcpPlain))) {
	case tcpCarrying:
	case tcpRejecting:
		// What had arrived by then was left unread.
		c.worker.markReadable(&c.stream)
	default:
		c.end()
	}
}

// shrink lets go of the memory that a long frame took, once nothing is left of it.
func (c *tcpConn) shrink() {
	if len(c.partial) == 0 && cap(c.partial) > 2*copyLimit {
		c.partial = nil
	}
}

// passLen is how much of a detached connection's stream one record for the client holds.
const passLen = 16 << 10

// pass takes the bytes of a detached connection to the client, as they come. While the client's queue is full they
// wait in the connection.
func (c *tcpConn) pass(buf []byte) (more bool) {
	for range receivesPerTurn {
		if len(c.partial) > 0 {
			if !c.deliver(c.partial) {
				return false // goes on when the client has read (client.writable)
			}
			c.partial = c.partial[:0]
		}
		n := c.read(buf)
		if n == 0 {
			return false
		}
		c.partial = append(c.partial, buf[:n]...)
	}
	return true
}

// read takes what has arrived. 0 means that there is nothing now, or that this was the end.
func (c *tcpConn) read(buf []byte) int {
	for {
		n, err := receiveFrom(c.stream.fd, buf)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return 0
		case err != nil || n == 0:
			c.end()
			return 0
		}
		return n
	}
}

// receiveFrom reads from a socket of unknown mode without waiting, and without an allocation, which unix.Recvfrom
// makes for the address. The error is a bare errno.
func receiveFrom(fd int, buf []byte) (int, error) {
	n, _, errno := syscall.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(ptr(&buf[0])), uintptr(len(buf)), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
