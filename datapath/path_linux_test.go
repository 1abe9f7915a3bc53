package datapath_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/bench"
	"ovpn-go/crypto"
	"ovpn-go/datapath"
	"ovpn-go/peers"
)

// routed is a tunnel between two namespaces with a router in between, whose link to the server is what
// narrows the path. There are IPv4 and IPv6 inside it.
type routed struct {
	topology               *bench.Topology
	clientNode, serverNode *bench.Node
	router                 *bench.Node
	client, server         *datapath.Device
}

var (
	inside4 = [2]netip.Addr{netip.MustParseAddr("10.8.0.1"), netip.MustParseAddr("10.8.0.2")} // server, client
	inside6 = [2]netip.Addr{netip.MustParseAddr("fd08::1"), netip.MustParseAddr("fd08::2")}
)

// newRouted makes a tunnel whose devices have an MTU of 1500, as OpenVPN's have.
func newRouted(t *testing.T, outer6 bool, fit datapath.Fit) *routed {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("OVPN_GO_REQUIRE") != "" {
			t.Fatal("needs root")
		}
		t.Skip("needs root: network namespaces")
	}
	r := &routed{topology: bench.NewTopology()}
	t.Cleanup(func() { r.topology.Close() })
	for _, node := range []struct {
		name string
		to   **bench.Node
	}{{"client", &r.clientNode}, {"router", &r.router}, {"server", &r.serverNode}} {
		n, err := r.topology.AddNode(node.name)
		if err != nil {
			t.Fatal(err)
		}
		*node.to = n
	}
	clientAddr, serverAddr := netip.MustParseAddr("10.9.1.2"), netip.MustParseAddr("10.9.2.2")
	prefixes := func(v4, v6 string) []netip.Prefix {
		return []netip.Prefix{netip.MustParsePrefix(v4), netip.MustParsePrefix(v6)}
	}
	for _, err := range []error{
		r.topology.Connect(bench.End{Node: r.clientNode, Name: "eth0", Addrs: prefixes("10.9.1.2/24", "fd09:0:0:1::2/64")},
			bench.End{Node: r.router, Name: "eth0", Addrs: prefixes("10.9.1.1/24", "fd09:0:0:1::1/64")}),
		r.topology.Connect(bench.End{Node: r.serverNode, Name: "eth0", Addrs: prefixes("10.9.2.2/24", "fd09:0:0:2::2/64")},
			bench.End{Node: r.router, Name: "eth1", Addrs: prefixes("10.9.2.1/24", "fd09:0:0:2::1/64")}),
		r.router.Forward(),
		r.clientNode.AddRoute(netip.MustParsePrefix("10.9.2.0/24"), netip.MustParseAddr("10.9.1.1"), "eth0"),
		r.clientNode.AddRoute(netip.MustParsePrefix("fd09:0:0:2::/64"), netip.MustParseAddr("fd09:0:0:1::1"), "eth0"),
		r.serverNode.AddRoute(netip.MustParsePrefix("10.9.1.0/24"), netip.MustParseAddr("10.9.2.1"), "eth0"),
		r.serverNode.AddRoute(netip.MustParsePrefix("fd09:0:0:1::/64"), netip.MustParseAddr("fd09:0:0:2::1"), "eth0"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if outer6 {
		clientAddr, serverAddr = netip.MustParseAddr("fd09:0:0:1::2"), netip.MustParseAddr("fd09:0:0:2::2")
	}
	sockets, err := datapath.NewSockets(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sockets.Close)
	device := func(node *bench.Node, mode peers.Mode, i int) *datapath.Device {
		d, err := datapath.New(datapath.Config{Name: "tun0", Mode: mode, MTU: 1500, NetNS: node.NS, Fit: fit,
			Sockets: sockets, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		for _, err := range []error{node.AddAddr("tun0", netip.PrefixFrom(inside4[i], 24)),
			node.AddAddr("tun0", netip.PrefixFrom(inside6[i], 64)), node.SetUp("tun0")} {
			if err != nil {
				t.Fatal(err)
			}
		}
		return d
	}
	r.server, r.client = device(r.serverNode, peers.MP, 0), device(r.clientNode, peers.P2P, 1)
	k1, k2 := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	addPeer(t, r.server, r.serverNode, datapath.PeerConfig{ID: 1, TxID: 2, Remote: netip.AddrPortFrom(clientAddr, 1194), VPN4: inside4[1], VPN6: inside6[1]},
		crypto.KeyConfig{Cipher: crypto.AESGCM, Encrypt: crypto.Direction{Key: k1}, Decrypt: crypto.Direction{Key: k2}})
	addPeer(t, r.client, r.clientNode, datapath.PeerConfig{ID: 2, TxID: 1, Remote: netip.AddrPortFrom(serverAddr, 1194)},
		crypto.KeyConfig{Cipher: crypto.AESGCM, Encrypt: crypto.Direction{Key: k2}, Decrypt: crypto.Direction{Key: k1}})
	for _, to := range []netip.Addr{inside4[1], inside6[1]} {
		r.await(t, "the tunnel to come up", func() bool {
			result, err := bench.Ping{Node: r.serverNode, To: to, Count: 1, Wait: 100 * time.Millisecond}.Run(t.Context())
			return err == nil && result.Lost() == 0
		})
	}
	return r
}

// await polls for ten times as long as anything should take.
func (r *routed) await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if done() {
			return
		}
	}
	t.Fatalf("waited in vain for %s", what)
}

// narrow sets the MTU of the link between router and server.
func (r *routed) narrow(t *testing.T, mtu int) {
	t.Helper()
	if err := errors.Join(r.router.SetMTU("eth1", mtu), r.serverNode.SetMTU("eth0", mtu)); err != nil {
		t.Fatal(err)
	}
}

// udp is a sender on the client's side and a receiver on the server's, inside the tunnel.
type udp struct {
	from *net.UDPConn
	to   *net.UDPConn
}

func (r *routed) udp(t *testing.T, v6 bool, discover int) udp {
	t.Helper()
	src, dst := inside4[1], inside4[0]
	level, option := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER
	if v6 {
		src, dst, level, option = inside6[1], inside6[0], unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER
	}
	var u udp
	err := r.serverNode.Do(func() (err error) {
		u.to, err = net.ListenUDP("udp", &net.UDPAddr{IP: dst.AsSlice()})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	dialer := net.Dialer{LocalAddr: &net.UDPAddr{IP: src.AsSlice()}, Control: func(_, _ string, c syscall.RawConn) (err error) {
		ctlErr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, discover) })
		return errors.Join(ctlErr, err)
	}}
	err = r.clientNode.Do(func() error {
		conn, err := dialer.DialContext(context.Background(), "udp", u.to.LocalAddr().String())
		if err == nil {
			u.from = conn.(*net.UDPConn)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { u.from.Close(); u.to.Close() })
	return u
}

// arrives sends a datagram of size bytes and reports whether it comes out on the other side.
func (u udp) arrives(t *testing.T, size int) bool {
	t.Helper()
	payload := bytes.Repeat([]byte{byte(time.Now().UnixNano())}, size)
	if _, err := u.from.Write(payload); err != nil {
		return false
	}
	buf := make([]byte, 65536)
	u.to.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	for {
		n, err := u.to.Read(buf)
		if err != nil {
			return false
		}
		if bytes.Equal(buf[:n], payload) {
			return true
		}
	}
}

// carries proves that everything gets through: TCP both ways, and datagrams of the device's MTU, whether or not
// their senders allow fragments and listen to what they are told.
func (r *routed) carries(t *testing.T) {
	t.Helper()
	for i, addrs := range [][2]netip.Addr{inside4, inside6} {
		v6 := i == 1
		longest := 1500 - 28
		if v6 {
			longest = 1500 - 48
		}
		for name, discover := range map[string]int{"without DF": unix.IP_PMTUDISC_DONT, "with DF": unix.IP_PMTUDISC_PROBE} {
			u := r.udp(t, v6, discover)
			r.await(t, fmt.Sprintf("a datagram %s, IPv6 %v", name, v6), func() bool { return u.arrives(t, longest) })
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for _, way := range []bench.Transfer{
			{From: r.clientNode, To: r.serverNode, Addr: addrs[0]},
			{From: r.serverNode, To: r.clientNode, Addr: addrs[1]},
		} {
			way.Bytes = 4 << 20
			if err := way.Run(ctx); err != nil {
				t.Error(err)
			}
		}
	}
}

func outerName(v6 bool) string {
	if v6 {
		return "outer IPv6"
	}
	return "outer IPv4"
}

// outerHeaders is what the datagrams add to an inner packet.
func outerHeaders(v6 bool) int {
	if v6 {
		return 40 + 8 + crypto.Overhead
	}
	return 20 + 8 + crypto.Overhead
}

// A path that becomes narrower and wider again carries everything at all times, and each end learns of it: from
// ICMP and its own link, or, as IPv4 routers tell nobody what they fragment, from the fragments that arrive.
func TestNarrowPath(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		t.Run(outerName(v6), func(t *testing.T) {
			t.Parallel()
			r := newRouted(t, v6, datapath.Fit{})
			if whole, mss4, mss6 := r.client.Fits(2); whole != 1500-outerHeaders(v6) || mss4 != 1492-outerHeaders(v6)-40 || mss6 != 1492-outerHeaders(v6)-60 {
				t.Errorf("on a path of 1500: %d whole, MSS %d and %d", whole, mss4, mss6)
			}
			r.carries(t)
			for _, mtu := range []int{1400, 1320} {
				r.narrow(t, mtu)
				u := r.udp(t, false, unix.IP_PMTUDISC_PROBE)
				r.await(t, fmt.Sprintf("both ends to learn of %d", mtu), func() bool {
					u.arrives(t, 1472)
					bench.Ping{Node: r.serverNode, To: inside6[1], Count: 1, Wait: time.Millisecond, Payload: 1400}.Run(t.Context())
					c, _, _ := r.client.Fits(2)
					s, _, _ := r.server.Fits(1)
					// Fragments are multiples of 8 bytes long.
					return c <= mtu-outerHeaders(v6) && c > mtu-8-outerHeaders(v6) && s <= mtu-outerHeaders(v6) && s > mtu-8-outerHeaders(v6)
				})
				r.carries(t)
			}
			r.narrow(t, 1500)
			r.carries(t)
		})
	}
}

// Connections that are open while the path changes go on.
func TestPathChangesInMidStream(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		t.Run(outerName(v6), func(t *testing.T) {
			t.Parallel()
			r := newRouted(t, v6, datapath.Fit{})
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			done := make(chan error, 4)
			for _, addrs := range [][2]netip.Addr{inside4, inside6} {
				go func() {
					done <- bench.Transfer{From: r.clientNode, To: r.serverNode, Addr: addrs[0], Bytes: 16 << 20}.Run(ctx)
				}()
				go func() {
					done <- bench.Transfer{From: r.serverNode, To: r.clientNode, Addr: addrs[1], Bytes: 16 << 20}.Run(ctx)
				}()
			}
			changes := time.NewTicker(50 * time.Millisecond)
			defer changes.Stop()
			widths := []int{1400, 1500, 1300, 1450, 1500}
			for left, i := 4, 0; left > 0; {
				select {
				case err := <-done:
					if err != nil {
						t.Error(err)
					}
					left--
				case <-changes.C:
					r.narrow(t, widths[i%len(widths)])
					i++
				}
			}
		})
	}
}

// Who must not fragment is told, once the path is known to be too narrow, and what they sent arrives nevertheless.
func TestHints(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		t.Run(outerName(v6), func(t *testing.T) {
			for _, fit := range []datapath.Fit{{}, {Silent: true}} {
				r := newRouted(t, v6, fit)
				for _, inner6 := range []bool{false, true} {
					u := r.udp(t, inner6, unix.IP_PMTUDISC_DO)
					size, level, option := 1472, unix.IPPROTO_IP, unix.IP_MTU
					if inner6 {
						size, level, option = 1452, unix.IPPROTO_IPV6, unix.IPV6_MTU
					}
					if !u.arrives(t, size) {
						t.Errorf("%+v: the datagram does not arrive", fit)
					}
					want := 1500 - outerHeaders(v6)
					if fit.Silent {
						want = 1500
					}
					var got int
					r.await(t, fmt.Sprintf("a path MTU of %d inside", want), func() bool {
						raw, err := u.from.SyscallConn()
						if err != nil {
							t.Fatal(err)
						}
						raw.Control(func(fd uintptr) { got, err = unix.GetsockoptInt(int(fd), level, option) })
						return err == nil && got == want
					})
					if u.arrives(t, size) != fit.Silent {
						t.Errorf("%+v: a sender that was told %d sends %d again, or one that was not doesn't", fit, want, size+28)
					}
				}
				if hints := r.client.Stats().Hints; (hints == 0) != fit.Silent {
					t.Errorf("%+v: %d hints", fit, hints)
				}
			}
		})
	}
}

// A peer that moves to where the path is narrower takes the limits with it, and those of its old place are
// forgotten.
func TestFloatToANarrowerPath(t *testing.T) {
	tun := newTunnel(t, crypto.AESGCM, 1500)
	for _, link := range []struct {
		mtu          int
		server, self netip.Prefix
	}{
		{1300, netip.MustParsePrefix("10.77.1.1/24"), netip.MustParsePrefix("10.77.1.2/24")},
		{1600, netip.MustParsePrefix("10.77.2.1/24"), netip.MustParsePrefix("10.77.2.2/24")},
	} {
		name := fmt.Sprintf("w%d", link.mtu)
		err := tun.Connect(bench.End{Node: tun.Server, Name: name, Addrs: []netip.Prefix{link.server}},
			bench.End{Node: tun.Clients[0], Name: name, Addrs: []netip.Prefix{link.self}})
		if err := errors.Join(err, tun.Server.SetMTU(name, link.mtu), tun.Clients[0].SetMTU(name, link.mtu)); err != nil {
			t.Fatal(err)
		}
		// What the server sent before the move brings the client's peer back to the old place, so one move may not last.
		settled := false
		for end := time.Now().Add(10 * time.Second); !settled; {
			if time.Now().After(end) {
				t.Fatalf("mtu %d: the peers stay where they were", link.mtu)
			}
			server, self := netip.AddrPortFrom(link.server.Addr(), 1194), netip.AddrPortFrom(link.self.Addr(), 1194)
			if err := tun.client.SetPeer(2, datapath.PeerUpdate{Remote: server}); err != nil {
				t.Fatal(err)
			}
			awaitPing(t, tun.Clients[0], vpnServer)
			onServer, _ := tun.server.Peer(1)
			onClient, _ := tun.client.Peer(2)
			settled = onServer.Remote == self && onClient.Remote == server
		}
		ping := bench.Ping{Node: tun.Clients[0], To: vpnServer, Count: 20, Interval: 2 * time.Millisecond, Payload: 1500 - 28}
		if r, err := ping.Run(t.Context()); err != nil || r.Lost() != 0 {
			t.Errorf("mtu %d: %d of %d lost, %v", link.mtu, r.Lost(), r.Sent, err)
		}
		want := link.mtu - outerHeaders(false)
		if whole, mss4, _ := tun.server.Fits(1); whole != want || mss4 != want-40 {
			t.Errorf("mtu %d: the server fits %d, MSS %d; want %d, %d", link.mtu, whole, mss4, want, want-40)
		}
		if whole, _, _ := tun.client.Fits(2); whole != want {
			t.Errorf("mtu %d: the client fits %d, want %d", link.mtu, whole, want)
		}
		if err := (bench.Transfer{From: tun.Server, To: tun.Clients[0], Addr: vpnClient, Bytes: 8 << 20}).Run(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// What Fit.MSS says is what a connection's segments are.
func TestMSSLimit(t *testing.T) {
	for _, row := range []struct {
		mss  int
		want int // the segment size that the server's SYN is seen with
	}{
		{datapath.MSSAuto, 1492 - 52 - 40},
		{datapath.MSSOff, 1460},
		{1200, 1200 - 52 - 40},
		{9000, 1500 - 52 - 40},
	} {
		r := newRouted(t, false, datapath.Fit{MSS: row.mss})
		var listener net.Listener
		err := r.serverNode.Do(func() (err error) {
			listener, err = net.Listen("tcp", inside4[0].String()+":0")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		var conn net.Conn
		if err := r.clientNode.Do(func() (err error) {
			conn, err = net.Dial("tcp", listener.Addr().String())
			return err
		}); err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		accepted, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer accepted.Close()
		for side, c := range map[string]net.Conn{"connecting": conn, "accepting": accepted} {
			raw, err := c.(*net.TCPConn).SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			var info *unix.TCPInfo
			raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
			// Timestamps take 12 bytes of each segment.
			if err != nil || int(info.Snd_mss) != row.want-12 && int(info.Snd_mss) != row.want {
				t.Errorf("mss %d: the %s side sends segments of %d, want %d (%v)", row.mss, side, info.Snd_mss, row.want, err)
			}
		}
	}
}
