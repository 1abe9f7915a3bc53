package datapath

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"ovpn-go/crypto"
	"ovpn-go/peers"
	"ovpn-go/tun/netns"
)

// refusedErrnos are what the kernel may say to a call that moves packets, and then some.
var refusedErrnos = []unix.Errno{
	unix.EPERM, unix.EINTR, unix.EIO, unix.EAGAIN, unix.ENOMEM, unix.EACCES, unix.EINVAL, unix.EMSGSIZE, unix.EADDRNOTAVAIL,
	unix.ENETDOWN, unix.ENETUNREACH, unix.ENOBUFS, unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.EOPNOTSUPP,
}

// Whatever error a call returns that packets go through, the device goes on, nothing is left behind, and once it returns
// none any more packets arrive again.
func TestRefusedCalls(t *testing.T) { runRefusing(t, "TestRefusedCallsChild") }

func TestRefusedCallsChild(t *testing.T) {
	startRefusing(t)
	for _, call := range []struct {
		name string
		nr   int
		gso  GSO
		// tunnel is newTunnel but for connected sockets.
		tunnel func(t *testing.T) (a, b *end)
		fd     func(a, b *end) int
		// errnos are those of the call that do not mean that the interface is gone.
		errnos []unix.Errno
	}{
		{"sendmsg of datagrams", unix.SYS_SENDMSG, GSOOn, newTunnel, func(a, _ *end) int { return a.lane(t).fd }, refusedErrnos},
		{"sendmmsg of datagrams", unix.SYS_SENDMMSG, GSOOff, newTunnel, func(a, _ *end) int { return a.lane(t).fd }, refusedErrnos},
		{"sendmsg without batches", unix.SYS_SENDMSG, GSOOff, newTunnel, func(a, _ *end) int { return a.lane(t).fd }, refusedErrnos},
		{"recvmmsg of datagrams", unix.SYS_RECVMMSG, GSOOn, newTunnel, func(_, b *end) int { return b.lane(t).fd }, refusedErrnos},
		{"read from the interface", unix.SYS_READ, GSOOn, newTunnel, func(a, _ *end) int { return a.link.queues[0].FD() },
			[]unix.Errno{unix.EINTR, unix.EAGAIN, unix.EINVAL}},
		{"write to the interface", unix.SYS_WRITE, GSOOn, newTunnel, func(_, b *end) int { return b.link.queues[0].FD() }, refusedErrnos},
		{"recvmmsg of a connected socket's datagrams", unix.SYS_RECVMMSG, GSOOn, connectedTunnel(0),
			func(_, b *end) int { return b.connection(t).front.fd }, refusedErrnos},
		{"recvmmsg of a raw socket", unix.SYS_RECVMMSG, GSOOn, connectedTunnel(3),
			func(_, b *end) int { return b.connection(t).raw.fd }, refusedErrnos},
		{"epoll_pwait", unix.SYS_EPOLL_PWAIT, GSOOn, newTunnel, func(_, b *end) int { return b.workers[0].epfd }, refusedErrnos},
	} {
		t.Run(call.name, func(t *testing.T) {
			a, b := call.tunnel(t)
			a.exclusively(func() { a.gso = call.gso })
			a.settled(t)
			b.settled(t)
			requireTraffic(t, a, b)
			refused := 0
			for _, errno := range call.errnos {
				left := inventory(t)
				// EINTR is asked again until it is over, so it must be over soon.
				var fd int
				a.exclusively(func() { b.exclusively(func() { fd = call.fd(a, b) }) })
				n := refusal{nr: call.nr, fd: fd, errno: errno, count: 7}.during(t, func() {
					for range 3 {
						a.send(t, udp4("10.8.0.1", "10.8.0.2", "refused"))
						if _, err := a.link.stacks[0].Write(superFrame()); err != nil {
							t.Fatal(err)
						}
						time.Sleep(2 * time.Millisecond) // a turn for each, if there is time
					}
					drain(b)
				})
				refused += n
				requireTraffic(t, a, b)
				left(errno.Error())
				for _, e := range []*end{a, b} {
					if len(e.Peers()) != 1 || len(e.events) != 0 {
						t.Errorf("%v: %d peers, %d events", errno, len(e.Peers()), len(e.events))
					}
				}
			}
			// A lone packet leaves by sendmsg only where the kernel is not asked to cut batches.
			if refused == 0 && !(call.nr == unix.SYS_SENDMSG && call.gso == GSOOff) {
				t.Error("never refused, so nothing was tested")
			}
		})
	}
}

// lane is the socket of the device's only peer.
func (e *end) lane(t *testing.T) *source {
	t.Helper()
	return &transportOf(e.table.Sole()).udp.lanes[0]
}

// connectedTunnel makes tunnels one end of which, b, has a connected socket, as one of connectedCases. Some packets have
// gone through it, so that it is known by which interface they come.
func connectedTunnel(which int) func(t *testing.T) (a, b *end) {
	return func(t *testing.T) (a, b *end) {
		t.Helper()
		p := newConnectedPair(t, connectedCases[which])
		p.exchange(t, "first")
		eventually(t, "the preferred socket is where the packets come", func() bool {
			p.exchange(t, "more")
			return p.front(t) != 0 || connectedCases[which].loopback
		})
		return p.a, p.b
	}
}

// connection is what the device's only peer has beside its connected socket.
func (e *end) connection(t *testing.T) *connection {
	t.Helper()
	return transportOf(e.table.Sole()).udp.conn
}

// settled waits until the device has begun to watch its namespace, which opens a descriptor.
func (e *end) settled(t *testing.T) {
	t.Helper()
	eventually(t, "the device watches its namespace", func() bool {
		e.moving.Lock()
		defer e.moving.Unlock()
		return e.leaving != nil
	})
}

// inventory notes what the process has, and returns a function that fails the test if there is more before long.
func inventory(t *testing.T) (left func(after string)) {
	t.Helper()
	fds, goroutines := descriptors(t), runtime.NumGoroutine()
	return func(after string) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); descriptors(t) > fds || runtime.NumGoroutine() > goroutines; time.Sleep(time.Millisecond) {
			if time.Now().Before(end) {
				continue
			}
			var open []string
			files, _ := filepath.Glob("/proc/self/fd/*")
			for _, file := range files {
				target, _ := os.Readlink(file)
				open = append(open, filepath.Base(file)+" "+target)
			}
			stacks := make([]byte, 1<<16)
			t.Fatalf("after %s: more than %d descriptors and %d goroutines: %q\n%s", after, fds, goroutines, open, stacks[:runtime.Stack(stacks, true)])
		}
	}
}

// requireTraffic sends packets from a to b and back until one arrives each way: what is still under way, or refused
// just before, does not count.
func requireTraffic(t *testing.T, a, b *end) {
	t.Helper()
	for i, way := range [][2]*end{{a, b}, {b, a}} {
		mark := fmt.Sprintf("traffic %d at %v", i, time.Now())
		packet := udp4("10.8.0.1", "10.8.0.2", mark)
		arrived := false
		for end := time.Now().Add(10 * time.Second); !arrived; {
			if time.Now().After(end) {
				t.Fatalf("no packet arrives any more: %+v, %+v", a.Stats(), b.Stats())
			}
			way[0].send(t, packet)
			buf := make([]byte, 70000)
			for !arrived {
				way[1].link.stacks[0].SetReadDeadline(time.Now().Add(50 * time.Millisecond))
				n, err := way[1].link.stacks[0].Read(buf)
				if err != nil {
					break
				}
				arrived = bytes.Contains(buf[:n], []byte(mark))
			}
		}
	}
}

// drain takes what a device has delivered, so that its interface has room.
func drain(e *end) {
	buf := make([]byte, 70000)
	for {
		e.link.stacks[0].SetReadDeadline(time.Now().Add(5 * time.Millisecond))
		if _, err := e.link.stacks[0].Read(buf); err != nil {
			return
		}
	}
}

// A connection that fails takes its peer along, and only that: another one serves the same device.
func TestRefusedTCPCalls(t *testing.T) { runRefusing(t, "TestRefusedTCPCallsChild") }

func TestRefusedTCPCallsChild(t *testing.T) {
	startRefusing(t)
	for _, call := range []struct {
		name string
		nr   int
		fd   func(c *tcpConn) int
	}{
		{"sendmsg to the connection", unix.SYS_SENDMSG, func(c *tcpConn) int { return c.stream.fd }},
		{"recvfrom the connection", unix.SYS_RECVFROM, func(c *tcpConn) int { return c.stream.fd }},
		{"sendmsg to the client", unix.SYS_SENDMSG, func(c *tcpConn) int { return c.client.fd }},
		{"recvmsg from the client", unix.SYS_RECVMSG, func(c *tcpConn) int { return c.client.fd }},
	} {
		t.Run(call.name, func(t *testing.T) {
			sockets := newSockets(t)
			e := newEnd(t, peers.P2P, sockets, "127.0.0.1:0")
			e.settled(t)
			own, other := keyPair(crypto.AESGCM, 0)
			id := uint32(0)
			// connection makes a peer on a new connection, and checks that it works.
			connection := func() (raw *net.TCPConn, done func()) {
				t.Helper()
				ours, raw := connected(t)
				client := e.addTCP(t, PeerConfig{ID: 1, TxID: 2}, own, ours)
				packet := udp4("10.8.0.2", "10.8.0.1", fmt.Sprint("packet after ", id))
				id++
				write(t, raw, frame(sealed(t, other, 1, id, packet)))
				if got := e.receive(t); !bytes.Equal(got, packet) {
					t.Fatalf("received %x, want %x", got, packet)
				}
				write(t, client, controlFrame)
				if got := readFrame(t, raw); !bytes.Equal(got, controlFrame) {
					t.Fatalf("control frame %x, want %x", got, controlFrame)
				}
				return raw, func() { client.Close(); raw.Close() }
			}
			refused := 0
			for _, errno := range refusedErrnos {
				left := inventory(t)
				raw, done := connection()
				var fd int
				e.exclusively(func() { fd = call.fd(transportOf(e.table.Sole()).tcp) })
				n := refusal{nr: call.nr, fd: fd, errno: errno, count: 3}.during(t, func() {
					for range 3 {
						e.send(t, udp4("10.8.0.1", "10.8.0.2", "refused"))
						_, _ = raw.Write(controlFrame)
						time.Sleep(5 * time.Millisecond)
					}
				})
				refused += n
				if errno == unix.EAGAIN && len(e.events) != 0 {
					t.Error("EAGAIN removes the peer")
				}
				done()
				eventually(t, "the peer is gone with its connection", func() bool { return len(e.Peers()) == 0 && !sockets.HasConnections() })
				if ev := e.event(t); ev.Kind != PeerDeleted || ev.Reason != peers.TransportError && ev.Reason != peers.TransportDisconnect {
					t.Errorf("%v: event %+v", errno, ev)
				}
				left(errno.Error())
			}
			if refused == 0 && call.nr != unix.SYS_RECVMSG { // the client said nothing
				t.Error("never refused, so nothing was tested")
			}
			_, done := connection()
			done()
		})
	}
}

// Whichever of the calls fails that make a device, or that attach a client's socket to it: there is an error and nothing
// else, or the device does without what the call was for.
func TestRefusedPreparation(t *testing.T) { runRefusing(t, "TestRefusedPreparationChild") }

func TestRefusedPreparationChild(t *testing.T) {
	startRefusing(t)
	sockets := newSockets(t)
	refusals := []unix.Errno{unix.EMFILE, unix.EPERM}
	for _, row := range []struct {
		what   string
		errnos []unix.Errno
		// prepare returns what is tried, and what undoes it if it has succeeded.
		prepare func(t *testing.T) (try func() error, undo func())
	}{
		{"a peer over UDP", refusals, func(t *testing.T) (func() error, func()) {
			return tryPeer(t, sockets, func(e *end) *os.File { return e.socket(t) })
		}},
		{"a peer over a connected UDP socket", refusals[:1], func(t *testing.T) (func() error, func()) {
			return tryPeer(t, sockets, func(e *end) *os.File {
				return udpSocketIn(t, e.link.ns, unix.AF_INET, connectedTo9)
			})
		}},
		{"a peer over TCP", refusals[:1], func(t *testing.T) (func() error, func()) {
			return tryPeer(t, sockets, func(e *end) *os.File {
				ours, _ := connected(t)
				defer ours.Close()
				return fileOf(t, ours)
			})
		}},
		{"a device", refusals[:1], func(t *testing.T) (func() error, func()) {
			ns := freshNS(t)
			var d *Device
			return func() (err error) {
				d, err = New(Config{Name: "tun0", Mode: peers.MP, NetNS: ns, Sockets: sockets, Logger: slog.New(slog.DiscardHandler), Workers: 2})
				return err
			}, func() { d.Close() }
		}},
	} {
		t.Run(row.what, func(t *testing.T) {
			try, undo := row.prepare(t)
			if err := try(); err != nil {
				t.Fatalf("with nothing refused: %v", err)
			}
			undo()
			failed := 0
			for _, errno := range row.errnos {
				for skip := 0; ; skip++ {
					if skip == 1000 {
						t.Fatal("there is no end to it")
					}
					left := inventory(t)
					var err error
					n := refusal{nr: anyPreparing, fd: -1, errno: errno, skip: skip, count: 1}.during(t, func() { err = try() })
					if err == nil {
						undo()
					} else {
						failed++
					}
					left(fmt.Sprintf("%v of call %d, error %v", errno, skip, err))
					if n == 0 {
						if err != nil {
							t.Errorf("%v: with nothing refused any more: %v", errno, err)
						}
						break
					}
				}
			}
			if failed == 0 {
				t.Error("nothing ever failed")
			}
			if err := try(); err != nil {
				t.Errorf("afterwards: %v", err)
			}
			undo()
		})
	}
}

// tryPeer is about a peer of a new device, on a socket.
func tryPeer(t *testing.T, sockets *Sockets, socketOf func(e *end) *os.File) (try func() error, undo func()) {
	t.Helper()
	e := newEnd(t, peers.MP, sockets, "127.0.0.1:0")
	e.settled(t)
	cfg := PeerConfig{ID: 1, TxID: 1, VPN4: netip.MustParseAddr("10.8.0.2"), Socket: socketOf(e)}
	var held *os.File // what the client has in place of its connection
	letGo := func() {
		if held != nil {
			held.Close()
		}
	}
	cfg.Substitute = func(_ uint64, f *os.File) error {
		return netns.Control(f, func(fd int) error {
			dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
			if err == nil {
				letGo()
				held = os.NewFile(uintptr(dup), "client")
			}
			return err
		})
	}
	proto, err := SocketProtocol(cfg.Socket)
	if err != nil {
		t.Fatal(err)
	}
	if proto == unix.IPPROTO_UDP {
		cfg.Remote = netip.MustParseAddrPort("127.0.0.1:9")
	}
	try = func() error {
		err := e.NewPeer(cfg)
		if len(e.Peers()) != 0 == (err != nil) {
			t.Errorf("%d peers after error %v", len(e.Peers()), err)
		}
		if err != nil {
			letGo() // the connection again, of which cfg.Socket is another descriptor
		}
		return err
	}
	undo = func() {
		if err := e.DeletePeer(1); err != nil {
			t.Error(err)
		}
		e.event(t)
		noConnections(t, sockets)
		letGo()
		sockets.mu.Lock()
		defer sockets.mu.Unlock()
		if len(sockets.attached) != 0 {
			t.Errorf("%d sockets are still attached", len(sockets.attached))
		}
	}
	return try, undo
}

// Whatever the kernel says instead of an announcement, what was not announced is asked for, and those that follow are heard.
func TestRefusedAnnouncements(t *testing.T) { runRefusing(t, "TestRefusedAnnouncementsChild") }

func TestRefusedAnnouncementsChild(t *testing.T) {
	startRefusing(t)
	n := newRouteNet(t)
	routes := followRoutes(t, n.ns)
	var fd int
	if err := netns.Control(routes.listener.file, func(listener int) error {
		fd = listener
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for i, errno := range []unix.Errno{unix.ENOBUFS, unix.EINTR, unix.ENOMEM, unix.EMSGSIZE, unix.EPERM} {
		left := inventory(t)
		route := func(to string) (dst netip.Addr) {
			dst = netip.MustParseAddr(to)
			if err := n.h.RouteAdd(&netlink.Route{
				Dst: ipNet(netip.PrefixFrom(dst, 32)), LinkIndex: n.links[0].Attrs().Index, Gw: net.IPv4(172, 16, 0, 2),
			}); err != nil {
				t.Fatal(err)
			}
			return dst
		}
		var dst netip.Addr
		refused := refusal{nr: unix.SYS_RECVFROM, fd: fd, errno: errno, count: 3}.during(t, func() {
			dst = route(fmt.Sprintf("192.0.2.%d", 2*i))
			n.settled(t, routes, errno.Error(), []netip.Addr{dst})
		})
		if refused != 3 {
			t.Errorf("%v: %d receives were refused, want 3", errno, refused)
		}
		n.settled(t, routes, "after "+errno.Error(), []netip.Addr{dst, route(fmt.Sprintf("192.0.2.%d", 2*i+1))})
		left(errno.Error())
	}
}
