package main

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"ovpn-go/bench"
)

// A relay stands between the client and the server as an address translator does: the client knows only its inside,
// the server only one of its outsides.
type relay struct {
	inside  netip.AddrPort
	outside [2]netip.AddrPort // before and after it has moved
	target  netip.AddrPort    // the server

	node    *bench.Node
	down    *net.UDPConn
	up      atomic.Pointer[net.UDPConn] // replaced when the relay moves
	source  atomic.Pointer[netip.AddrPort]
	readers sync.WaitGroup
}

// addRelay makes a namespace with a relay in it, joined to both of the pair's.
func (p *pair) addRelay(over transport) (*relay, error) {
	near, far, mask := "10.10.0.", "10.11.0.", "/24"
	if over.outer6 {
		near, far, mask = "fd10::", "fd11::", "/64"
	}
	prefix := func(net, host string) netip.Prefix { return netip.MustParsePrefix(net + host + mask) }
	node, err := p.star.AddNode("relay")
	if err != nil {
		return nil, err
	}
	err = errors.Join(
		p.star.Connect(bench.End{Node: p.nodes[client], Name: "relay", Addrs: []netip.Prefix{prefix(near, "2")}},
			bench.End{Node: node, Name: "near", Addrs: []netip.Prefix{prefix(near, "1")}}),
		p.star.Connect(bench.End{Node: p.nodes[server], Name: "relay", Addrs: []netip.Prefix{prefix(far, "1")}},
			bench.End{Node: node, Name: "far", Addrs: []netip.Prefix{prefix(far, "2"), prefix(far, "3")}}))
	if err != nil {
		return nil, err
	}
	r := &relay{
		node:    node,
		inside:  netip.AddrPortFrom(prefix(near, "1").Addr(), port),
		outside: [2]netip.AddrPort{netip.AddrPortFrom(prefix(far, "2").Addr(), 4000), netip.AddrPortFrom(prefix(far, "3").Addr(), 5000)},
		target:  netip.AddrPortFrom(prefix(far, "1").Addr(), port),
	}
	if r.down, err = r.bind(r.inside); err != nil {
		return nil, err
	}
	up, err := r.bind(r.outside[0])
	if err != nil {
		return nil, errors.Join(err, r.down.Close())
	}
	r.use(up)
	r.readers.Go(func() {
		buf := make([]byte, 64<<10)
		for {
			n, from, err := r.down.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			r.source.Store(&from)
			// A network loses packets, too.
			_, _ = r.up.Load().WriteToUDPAddrPort(buf[:n], r.target)
		}
	})
	return r, nil
}

func (r *relay) bind(at netip.AddrPort) (conn *net.UDPConn, err error) {
	err = r.node.Do(func() (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	})
	if err != nil {
		return nil, err
	}
	// On a busy machine the relay may not run for a while.
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var forced error
	err = raw.Control(func(fd uintptr) {
		forced = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
	})
	return conn, errors.Join(err, forced)
}

// use makes conn the outside.
func (r *relay) use(conn *net.UDPConn) {
	if old := r.up.Swap(conn); old != nil {
		old.Close()
	}
	r.readers.Go(func() {
		buf := make([]byte, 64<<10)
		for {
			n, _, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			if to := r.source.Load(); to != nil {
				_, _ = r.down.WriteToUDPAddrPort(buf[:n], *to)
			}
		}
	})
}

// move changes the outside from the first address to the second.
func (r *relay) move() error {
	conn, err := r.bind(r.outside[1])
	if err == nil {
		r.use(conn)
	}
	return err
}

func (r *relay) close() {
	r.down.Close()
	r.up.Load().Close()
	r.readers.Wait()
}
