package netlinksrv

import (
	"errors"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"ovpn-go/tun/netns"
)

// GenericSocket is a client's NETLINK_GENERIC socket. Its methods may be called concurrently.
//
// A real netlink socket in the same network namespace, the twin, has the same port id and options. It answers
// for every family but ours.
type GenericSocket struct {
	server *Server
	ns     *netns.NS
	twin   *twin

	member   [familyCount]atomic.Bool // of the families' multicast groups
	extended atomic.Bool              // NETLINK_EXT_ACK
	cap      atomic.Bool              // NETLINK_CAP_ACK
	merge    atomic.Pointer[familyMerge]

	sendMu sync.Mutex // one Send at a time, in the order of the client's calls
	closed bool       // guarded by sendMu

	outMu   sync.Mutex
	deliver func([]byte) error // guarded by outMu

	dumpMu sync.Mutex
	dump   *dump // guarded by dumpMu; the one under way, if any

	closing   chan struct{}
	closeOnce sync.Once
	pumps     sync.WaitGroup
}

// OpenGeneric makes a socket in ns, of which it keeps a reference of its own. deliver puts one datagram into the
// client's receive queue. It is called for one datagram at a time, from any goroutine, until Close returns, and
// must not block or call back; the datagram is the callee's to keep. An error from it means that the queue is
// full: an acknowledgement or notification is lost then, as it is on a netlink socket whose receive buffer is
// full, and a dump waits.
//
// The error keeps the kernel's errno.
func (s *Server) OpenGeneric(ns *netns.NS, deliver func(datagram []byte) error) (*GenericSocket, error) {
	own, err := ns.Dup()
	if err != nil {
		return nil, err
	}
	g := &GenericSocket{server: s, ns: own, deliver: deliver, closing: make(chan struct{})}
	if g.twin, err = openTwin(own, g.postRelayed); err != nil {
		own.Close()
		return nil, err
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		g.twin.close()
		own.Close()
		return nil, errServerClosed
	}
	s.clients[g] = struct{}{}
	s.mu.Unlock()
	g.pumps.Go(func() { g.twin.pump(g.closing) })
	return g, nil
}

var errServerClosed = errors.New("netlink server is closed")

// Close releases the socket and its port id. Nothing is delivered after it returns.
func (g *GenericSocket) Close() {
	g.closeOnce.Do(func() {
		g.server.mu.Lock()
		delete(g.server.clients, g)
		g.server.mu.Unlock()
		close(g.closing)
		g.twin.close()
		g.sendMu.Lock()
		g.closed = true
		g.sendMu.Unlock()
		g.pumps.Wait()
		g.outMu.Lock()
		g.deliver = func([]byte) error { return unix.EPIPE }
		g.outMu.Unlock()
		g.ns.Close()
	})
}

// Bind gives the socket a port id and joins the multicast groups 1 to 32 whose bits are set. Port 0 leaves the
// choice to the kernel, which begins with the process id. The error is the kernel's errno: EADDRINUSE, or EINVAL
// if the socket has another port already.
func (g *GenericSocket) Bind(task Task, port, groups uint32) error {
	return g.asSender(task, func() error {
		if port == 0 && g.Port() == 0 && task.PID() > 0 {
			// The kernel would begin with our own process id.
			err := g.twin.bind(uint32(task.PID()), groups)
			if !errors.Is(err, unix.EADDRINUSE) {
				return err
			}
		}
		return g.twin.bind(port, groups)
	})
}

// Port returns the port id, 0 while the socket is not bound.
func (g *GenericSocket) Port() uint32 { port, _ := g.twin.name(); return port }

// Groups returns the memberships in multicast groups 1 to 32, as getsockname shows them.
func (g *GenericSocket) Groups() uint32 {
	_, groups := g.twin.name()
	for i, ids := range g.server.ids {
		if ids.group <= 32 && g.member[i].Load() {
			groups |= 1 << (ids.group - 1)
		}
	}
	return groups
}

func (g *GenericSocket) ackOptions() ackOptions {
	return ackOptions{cap: g.cap.Load(), extended: g.extended.Load()}
}

// post delivers a datagram. What the client's queue has no room for is lost.
func (g *GenericSocket) post(datagram []byte) {
	if err := g.tryPost(datagram); err != nil {
		g.server.log.Debug("netlink receive queue overrun", "port", g.Port(), "error", err)
	}
}

func (g *GenericSocket) tryPost(datagram []byte) error {
	g.outMu.Lock()
	defer g.outMu.Unlock()
	return g.deliver(datagram)
}
