package test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ovpn-go/bench"
)

// Where a path stands between a scenario's first client and its server. No queueing discipline of the kernel's is needed, as the path is a
// program of the tests' own.
var (
	pathToClient = netip.MustParseAddrPort("10.98.0.1:1194") // the server, as the client sees it
	pathToServer = netip.MustParseAddrPort("10.99.0.1:0")    // the client, as the server sees it
	pathServer   = netip.MustParseAddrPort("10.99.0.2:1194")
)

// newPathNode makes the namespace in the middle.
func (s *scenario) newPathNode() *bench.Node {
	s.Helper()
	node, err := s.AddNode("path")
	if err != nil {
		s.Fatal(err)
	}
	end := func(node *bench.Node, name, addr string) bench.End {
		return bench.End{Node: node, Name: name, Addrs: []netip.Prefix{netip.MustParsePrefix(addr)}}
	}
	if err := errors.Join(
		s.Connect(end(s.Clients[0], "path", "10.98.0.2/24"), end(node, "client", "10.98.0.1/24")),
		s.Connect(end(s.Server, "path", "10.99.0.2/24"), end(node, "server", "10.99.0.1/24")),
	); err != nil {
		s.Fatal(err)
	}
	return node
}

// pathFaults are the parts of the datagrams, from 0 to 1, that something happens to.
type pathFaults struct{ lose, double, delay, alter, cut float64 }

// pathDelay is by how much a datagram is delayed at most, so that others overtake it.
const pathDelay = 30 * time.Millisecond

// A udpPath relays datagrams between a client and a server, and has them suffer.
type udpPath struct {
	near, far *net.UDPConn
	running   sync.WaitGroup

	mu     sync.Mutex
	faults pathFaults     // guarded by mu
	client netip.AddrPort // guarded by mu
	random *rand.Rand     // guarded by mu
}

func newUDPPath(t *testing.T, node *bench.Node, seed uint64) *udpPath {
	t.Helper()
	p := &udpPath{random: rand.New(rand.NewPCG(seed, 0))}
	if err := node.Do(func() (err error) {
		if p.near, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(pathToClient)); err != nil {
			return err
		}
		p.far, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(pathToServer))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.near.Close()
		p.far.Close()
		p.running.Wait()
	})
	p.running.Go(func() { p.carry(p.near, p.far) })
	p.running.Go(func() { p.carry(p.far, p.near) })
	return p
}

// suffer changes what happens to datagrams from now on.
func (p *udpPath) suffer(faults pathFaults) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults = faults
}

func (p *udpPath) carry(from, to *net.UDPConn) {
	buf := make([]byte, 1<<16)
	for {
		n, sender, err := from.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP message of somebody who has gone
		}
		p.mu.Lock()
		if from == p.near {
			p.client = sender
		}
		receiver := pathServer
		if to == p.near {
			receiver = p.client
		}
		for _, d := range p.befall(buf[:n]) {
			// What can't be sent is lost.
			send := func() { _, _ = to.WriteToUDPAddrPort(d.data, receiver) }
			if d.delay == 0 {
				send()
			} else {
				time.AfterFunc(d.delay, send)
			}
		}
		p.mu.Unlock()
	}
}

type delayed struct {
	data  []byte
	delay time.Duration
}

// befall returns what becomes of a datagram; p.mu is held.
func (p *udpPath) befall(data []byte) (out []delayed) {
	happens := func(part float64) bool { return p.random.Float64() < part }
	leave := func(data []byte) {
		d := delayed{data: bytes.Clone(data)}
		if happens(p.faults.delay) {
			d.delay = time.Duration(p.random.Int64N(int64(pathDelay)))
		}
		out = append(out, d)
	}
	if happens(p.faults.double) {
		leave(data)
	}
	switch {
	case happens(p.faults.lose) || len(data) == 0:
	case happens(p.faults.alter):
		data[p.random.IntN(len(data))] ^= 1 << p.random.IntN(8)
		leave(data)
	case happens(p.faults.cut):
		leave(data[:p.random.IntN(len(data))])
	default:
		leave(data)
	}
	return out
}

// A tcpPath relays connections from a client to a server in pieces of any size.
type tcpPath struct {
	node     *bench.Node
	listener net.Listener
	running  sync.WaitGroup
	stalled  sync.RWMutex // held by who lets nothing pass
	alter    atomic.Int32 // so many pieces get a bit changed

	mu     sync.Mutex
	pairs  []relayed  // guarded by mu: those that were accepted
	random *rand.Rand // guarded by mu
	closed bool       // guarded by mu
}

type relayed struct{ near, far *net.TCPConn }

func newTCPPath(t *testing.T, node *bench.Node, seed uint64) *tcpPath {
	t.Helper()
	p := &tcpPath{node: node, random: rand.New(rand.NewPCG(seed, 0))}
	if err := node.Do(func() (err error) {
		p.listener, err = net.Listen("tcp4", pathToClient.String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.listener.Close()
		p.mu.Lock()
		p.closed = true
		p.mu.Unlock()
		p.reset()
		p.running.Wait()
	})
	p.running.Go(p.accept)
	return p
}

func (p *tcpPath) accept() {
	for {
		conn, err := p.listener.Accept()
		if err != nil {
			return
		}
		near := conn.(*net.TCPConn)
		var far *net.TCPConn
		if err := p.node.Do(func() (err error) {
			far, err = net.DialTCP("tcp4", nil, net.TCPAddrFromAddrPort(pathServer))
			return err
		}); err != nil {
			near.Close()
			continue
		}
		pair := relayed{near, far}
		p.mu.Lock()
		p.pairs = append(p.pairs, pair)
		closed := p.closed
		p.mu.Unlock()
		if closed {
			p.reset()
		}
		p.running.Go(func() { p.carry(far, near) })
		p.running.Go(func() { p.carry(near, far) })
	}
}

// carry hands on one direction of a connection until it ends, and the end with it.
func (p *tcpPath) carry(to, from *net.TCPConn) {
	defer to.CloseWrite()
	buf := make([]byte, 1<<16)
	for {
		n, err := from.Read(buf)
		for rest := buf[:n]; len(rest) > 0; {
			piece := rest[:min(p.piece(), len(rest))]
			rest = rest[len(piece):]
			if p.alter.Load() > 0 && p.alter.Add(-1) >= 0 {
				piece[len(piece)/2] ^= 0x10
			}
			p.stalled.RLock()
			_, err := to.Write(piece) // a segment, as Go sets TCP_NODELAY
			p.stalled.RUnlock()
			if err != nil {
				from.CloseRead()
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// piece returns the size in bytes of the next piece: of all orders of magnitude, a byte, part of a header or a packet, several packets.
func (p *tcpPath) piece() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	size := 1 << p.random.IntN(16)
	return size + p.random.IntN(size)
}

// stall lets nothing pass until the returned function is called.
func (p *tcpPath) stall() (resume func()) {
	p.stalled.Lock()
	return p.stalled.Unlock
}

// reset breaks the connections, to either side.
func (p *tcpPath) reset() {
	p.each(func(c relayed) {
		for _, conn := range []*net.TCPConn{c.near, c.far} {
			conn.SetLinger(0)
			conn.Close()
		}
	})
}

// endHalf ends what comes from the client, which may go on listening.
func (p *tcpPath) endHalf() { p.each(func(c relayed) { c.near.CloseRead(); c.far.CloseWrite() }) }

func (p *tcpPath) each(do func(relayed)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.pairs {
		do(c)
	}
}
