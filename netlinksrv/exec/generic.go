package exec

import (
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// genericSocket is a client's NETLINK_GENERIC socket.
type genericSocket struct {
	session  *session
	pair     *pair
	server   genericServer
	kind     int // SOCK_RAW or SOCK_DGRAM
	opener   credentials
	released chan struct{} // closed when the server has let go of it
	handover *handover     // nil for a program under a filter

	sending sync.Mutex // held while a datagram is processed, which keeps the socket's order

	mu       sync.Mutex
	peer     netlinkAddress // guarded by mu
	passCred bool           // guarded by mu
}

// openGeneric answers socket(AF_NETLINK, ..., NETLINK_GENERIC).
func (s *session) openGeneric(c *call, n notification, r socketRequest) error {
	ns, err := c.task.NetNS()
	if err != nil {
		return err
	}
	defer ns.Close()
	g := &genericSocket{session: s, kind: r.kind, released: make(chan struct{})}
	if g.opener, err = c.task.credentials(); err != nil {
		return err
	}
	pair, client, cookie, err := newPair(ns, r.nonblock)
	if err != nil {
		return err
	}
	defer unix.Close(client)
	g.pair = pair
	if g.server, err = s.server.OpenGeneric(ns, pair.deliver); err != nil {
		pair.close()
		return err
	}
	s.register(cookie, g)
	if err := s.answerNetlink(c, n, client, r.cloexec); err != nil {
		s.forget(cookie)
		g.server.Close()
		pair.close()
		return err
	}
	s.sockets.Add(1)
	go g.watch(cookie)
	return nil
}

// watch processes what the client sends without our being notified and lets go of the socket
// when the client has closed it.
func (g *genericSocket) watch(cookie uint64) {
	defer g.session.sockets.Done()
	for {
		datagram, from, err := g.pair.receive()
		if err != nil {
			if !errors.Is(err, os.ErrClosed) {
				g.session.logger.Error("receive from a netlink client", "error", err)
			}
			break
		}
		t, done := senderTask(g.session, from)
		t.limit = &g.opener
		g.process(t, datagram)
		done()
	}
	g.pair.close()
	g.server.Close()
	close(g.released)
	g.session.forget(cookie)
}

func (g *genericSocket) hangUp() { g.pair.close() }

// process passes a request on; its answers are delivered before it returns.
func (g *genericSocket) process(t *task, datagram []byte) {
	if len(datagram) == 0 {
		return
	}
	g.sending.Lock()
	defer g.sending.Unlock()
	if g.handover != nil {
		g.handover.begin(t)
		defer g.handover.end()
	}
	g.server.Send(t, datagram)
}

func (g *genericSocket) bind(c *call, address netlinkAddress) {
	c.task.limit = &g.opener
	err := g.server.Bind(c.task, address.port, address.groups)
	if errors.Is(err, unix.EADDRINUSE) {
		// A port is free as soon as close returns; we may not have noticed the close yet.
		g.session.awaitClosed()
		err = g.server.Bind(c.task, address.port, address.groups)
	}
	c.finish(0, err)
}

// awaitClosed waits until the sockets that clients have closed by now are let go of.
func (s *session) awaitClosed() {
	s.mu.Lock()
	var closed []*genericSocket
	for _, e := range s.endpoints {
		if g, ok := e.(*genericSocket); ok && g.pair.hungUp() {
			closed = append(closed, g)
		}
	}
	s.mu.Unlock()
	for _, g := range closed {
		<-g.released
	}
}

func (g *genericSocket) connect(c *call, address netlinkAddress, disconnect bool) {
	if !disconnect && g.server.Port() == 0 {
		if err := g.server.Bind(c.task, 0, 0); err != nil {
			c.finish(0, err)
			return
		}
	}
	g.mu.Lock()
	g.peer = address
	g.mu.Unlock()
	c.returns(0)
}

func (g *genericSocket) name(c *call, peer bool) {
	address := netlinkAddress{g.server.Port(), g.server.Groups()}
	if peer {
		g.mu.Lock()
		address = g.peer
		g.mu.Unlock()
	}
	c.answerAddress(address.encode())
}

func (g *genericSocket) setOption(c *call, fd int) {
	switch c.optionLevel() {
	case unix.SOL_SOCKET:
	case unix.SOL_NETLINK:
		value, err := c.intOptionValue()
		if err == nil {
			c.task.limit = &g.opener
			err = g.server.SetOption(c.task, c.optionLevel(), c.optionName(), value)
		}
		c.finish(0, err)
		return
	default:
		c.fails(unix.ENOPROTOOPT)
		return
	}
	switch c.optionName() {
	case unix.SO_RCVBUF, unix.SO_RCVBUFFORCE:
		// The client's end remembers it; what counts for a pair is the sender's buffer.
		if value, err := c.intOptionValue(); err == nil && len(value) >= 4 {
			g.pair.grow(int(int32(binary.NativeEndian.Uint32(value))))
		}
		c.continues()
	case unix.SO_PASSCRED, unix.SO_PASSSEC, unix.SO_PASSPIDFD:
		// The kernel's messages have no sender; ours would name the supervisor.
		value, err := c.intOptionValue()
		if err == nil && len(value) < 4 {
			err = unix.EINVAL
		}
		if err == nil && c.optionName() == unix.SO_PASSCRED {
			g.mu.Lock()
			g.passCred = binary.NativeEndian.Uint32(value) != 0
			g.mu.Unlock()
		}
		c.finish(0, err)
	default:
		c.continues()
	}
}

func (g *genericSocket) getOption(c *call) {
	switch c.optionLevel() {
	case unix.SOL_NETLINK:
		c.answerOption(func(size int) ([]byte, error) {
			return g.server.GetOption(c.optionLevel(), c.optionName(), size)
		})
	case unix.SOL_SOCKET:
		g.mu.Lock()
		passCred := g.passCred
		g.mu.Unlock()
		if value := socketOption(c.optionName(), g.kind, unix.NETLINK_GENERIC, passCred); value != nil {
			c.answerOption(func(size int) ([]byte, error) { return value[:min(size, len(value))], nil })
			return
		}
		c.continues()
	default:
		c.fails(unix.ENOPROTOOPT)
	}
}

// socketOption returns the SOL_SOCKET options in which a pair differs from a netlink socket, or
// nil for those in which it does not.
func socketOption(name, kind, protocol int, passCred bool) []byte {
	number := func(n int) []byte { return binary.NativeEndian.AppendUint32(nil, uint32(n)) }
	switch name {
	case unix.SO_DOMAIN:
		return number(unix.AF_NETLINK)
	case unix.SO_TYPE:
		return number(kind)
	case unix.SO_PROTOCOL:
		return number(protocol)
	case unix.SO_PASSCRED:
		if passCred {
			return number(1)
		}
		return number(0)
	case unix.SO_PEERCRED:
		return slices.Concat(number(0), number(-1), number(-1)) // no peer
	}
	return nil
}

func (g *genericSocket) send(c *call, fd int) {
	g.mu.Lock()
	peer := g.peer
	g.mu.Unlock()
	sendAll(c, fd, peer, func(b []byte, _ bool) error {
		// Who names the destination in the call has meant a netlink socket, so the opener's rights don't matter
		// (NETLINK_SKB_DST in netlink_sendmsg).
		c.task.limit = nil
		if !c.addressed {
			c.task.limit = &g.opener
		}
		g.process(c.task, b)
		return nil
	})
}

// sendAll answers a send call: every datagram is checked as netlink_sendmsg does, read and passed
// to process. Like sendmmsg it stops at an error, which counts only if it is the first. process
// may answer the call itself, if it is at the first.
func sendAll(c *call, fd int, peer netlinkAddress, process func(b []byte, first bool) error) {
	list, err := c.datagrams()
	if err != nil {
		c.failsFor(err)
		return
	}
	if c.nr == unix.SYS_WRITEV && list[0].length == 0 {
		c.returns(0) // no socket ever hears of it (vfs_writev)
		return
	}
	var sent int
	for i, d := range list {
		c.addressed = d.named()
		b, err := c.readDatagram(fd, d, peer)
		if err == nil {
			err = process(b, i == 0)
		}
		if c.answered {
			return
		}
		if err == nil && d.sentLength != 0 {
			err = c.writeLength(d.sentLength, len(b))
		}
		if err != nil {
			if i == 0 {
				c.failsFor(err)
				return
			}
			break
		}
		if sent = len(b); c.nr == unix.SYS_SENDMMSG {
			sent = i + 1
		}
	}
	c.returns(int64(sent))
}

// readDatagram checks a datagram and copies it, in netlink_sendmsg's order. fd is a duplicate of the socket.
func (c *call) readDatagram(fd int, d datagram, peer netlinkAddress) ([]byte, error) {
	if d.flags&unix.MSG_OOB != 0 {
		return nil, unix.EOPNOTSUPP
	}
	if d.length == 0 {
		return nil, unix.ENODATA
	}
	if d.named() {
		var err error
		if peer, err = parseNetlinkAddress(d.name); err != nil {
			return nil, err
		}
	}
	const overhead = 32 // what netlink_sendmsg takes off the send buffer
	if buffer, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF); err == nil && d.length > buffer-overhead {
		return nil, unix.EMSGSIZE
	}
	b, err := d.bytes(c.task)
	if err == nil && peer.port != 0 {
		err = unix.ECONNREFUSED // only the kernel listens here
	}
	return b, err
}
