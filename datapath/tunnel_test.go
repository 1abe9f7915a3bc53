package datapath_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"ovpn-go/bench"
	"ovpn-go/crypto"
	"ovpn-go/datapath"
	"ovpn-go/peers"
)

// tunnel is two devices in two namespaces that a veth pair joins: client 0 of a star and its server.
type tunnel struct {
	*bench.Star
	server, client *datapath.Device
}

var (
	vpnServer = netip.MustParseAddr("10.8.0.1")
	vpnClient = netip.MustParseAddr("10.8.0.2")
)

func newTunnel(t testing.TB, cipher crypto.Cipher, mtu int) *tunnel {
	t.Helper()
	return newTunnelWith(t, cipher, datapath.Config{MTU: mtu})
}

// newTunnelWith makes a tunnel of devices that are configured so; name and mode are set.
func newTunnelWith(t testing.TB, cipher crypto.Cipher, cfg datapath.Config) *tunnel {
	t.Helper()
	needRoot(t)
	star, err := bench.NewStar(1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { star.Close() })
	for _, node := range []*bench.Node{star.Server, star.Clients[0]} {
		// The stack's own link-local traffic has no peer, and would be among the drops.
		if err := node.DisableIPv6(); err != nil {
			t.Fatal(err)
		}
	}
	sockets, err := datapath.NewSockets(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sockets.Close)

	k1, k2 := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	toClient := crypto.KeyConfig{Cipher: cipher, Encrypt: crypto.Direction{Key: k1}, Decrypt: crypto.Direction{Key: k2}}
	toServer := crypto.KeyConfig{Cipher: cipher, Encrypt: crypto.Direction{Key: k2}, Decrypt: crypto.Direction{Key: k1}}
	tun := &tunnel{Star: star}
	cfg.Sockets = sockets
	tun.server = newDevice(t, star.Server, peers.MP, cfg, netip.PrefixFrom(vpnServer, 24))
	tun.client = newDevice(t, star.Clients[0], peers.P2P, cfg, netip.PrefixFrom(vpnClient, 24))
	addPeer(t, tun.server, star.Server, datapath.PeerConfig{
		ID: 1, TxID: 2, Remote: netip.AddrPortFrom(star.ClientAddr4(0), 1194), VPN4: vpnClient}, toClient)
	addPeer(t, tun.client, star.Clients[0], datapath.PeerConfig{
		ID: 2, TxID: 1, Remote: netip.AddrPortFrom(star.ServerAddr4(0), 1194)}, toServer)
	awaitPing(t, star.Server, vpnClient)
	return tun
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("OVPN_GO_REQUIRE") != "" {
		t.Fatal("needs root")
	}
	t.Skip("needs root: network namespaces")
}

// mishaps returns the drops of a device but those that tell a stream to slow down.
func mishaps(s datapath.DeviceStats) map[string]uint64 {
	drops := maps.Clone(s.Drops)
	delete(drops, datapath.DropStanding.String())
	return drops
}

// awaitPing waits until a tunnel is up: the stack discards what it would send until its link watcher has seen the
// carrier.
func awaitPing(t testing.TB, from *bench.Node, to netip.Addr) {
	t.Helper()
	for range 50 {
		if r, err := (bench.Ping{Node: from, To: to, Count: 1, Wait: 100 * time.Millisecond}).Run(t.Context()); err == nil && r.Lost() == 0 {
			return
		}
	}
	t.Fatalf("the tunnel to %v does not come up", to)
}

func newDevice(t testing.TB, node *bench.Node, mode peers.Mode, cfg datapath.Config, addr netip.Prefix) *datapath.Device {
	t.Helper()
	cfg.Name, cfg.Mode, cfg.NetNS, cfg.Logger = "tun0", mode, node.NS, slog.New(slog.DiscardHandler)
	cfg.Workers = datapath.WorkersUnderTest
	d, err := datapath.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	if err := node.AddAddr("tun0", addr); err != nil {
		t.Fatal(err)
	}
	if err := node.SetUp("tun0"); err != nil {
		t.Fatal(err)
	}
	return d
}

// addPeer gives the device a peer on a client's socket at port 1194 of node.
func addPeer(t testing.TB, d *datapath.Device, node *bench.Node, cfg datapath.PeerConfig, key crypto.KeyConfig) {
	t.Helper()
	cfg.Socket = socketOn(t, node)
	if err := d.NewPeer(cfg); err != nil {
		t.Fatal(err)
	}
	if err := d.InstallKey(cfg.ID, crypto.Primary, key); err != nil {
		t.Fatal(err)
	}
}

// socketOn is a client's socket at port 1194 of node.
func socketOn(t testing.TB, node *bench.Node) *os.File {
	t.Helper()
	var conn *net.UDPConn
	err := node.Do(func() (err error) {
		conn, err = net.ListenUDP("udp", &net.UDPAddr{Port: 1194})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	file, err := conn.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file
}

func TestRealTunnel(t *testing.T) {
	for _, cipher := range []crypto.Cipher{crypto.AESGCM, crypto.ChaCha20Poly1305} {
		// 1416 leaves room for the outer headers. With 1500 only TCP fits, thanks to the clamp, and a long
		// ping is fragmented outside.
		for _, mtu := range []int{1416, 1500} {
			t.Run(fmt.Sprintf("%v mtu %d", cipher, mtu), func(t *testing.T) {
				tun := newTunnel(t, cipher, mtu)
				ping := bench.Ping{Node: tun.Server, To: vpnClient, Count: 50, Interval: 2 * time.Millisecond, Payload: mtu - 28}
				if r, err := ping.Run(t.Context()); err != nil || r.Lost() != 0 {
					t.Errorf("ping: %d of %d lost, %v", r.Lost(), r.Sent, err)
				}
				for _, way := range []bench.Transfer{
					{From: tun.Clients[0], To: tun.Server, Addr: vpnServer},
					{From: tun.Server, To: tun.Clients[0], Addr: vpnClient},
				} {
					way.Bytes = 32 << 20
					if err := way.Run(t.Context()); err != nil {
						t.Error(err)
					}
				}
				s := tun.server.Stats()
				if s.TxPackets < 5*s.Sends || s.RxPackets < 5*s.TunReads/2 {
					t.Errorf("packets travel one by one: %+v", s)
				}
				if drops := mishaps(s); len(drops) != 0 {
					t.Errorf("drops: %v", drops)
				}
			})
		}
	}
}

// A device that is moved to another namespace keeps its peers, and finds them by the routes there.
func TestMovedDeviceFollowsTheRoutesOfItsNewNamespace(t *testing.T) {
	tun := newTunnel(t, crypto.AESGCM, 1416)
	elsewhere, err := tun.AddNode("elsewhere")
	if err != nil {
		t.Fatal(err)
	}
	before, _ := tun.server.Place()
	if err := tun.Server.MoveLink("tun0", elsewhere); err != nil {
		t.Fatal(err)
	}
	ns, ifindex := tun.server.Place()
	if ns != elsewhere.NS.ID() || ns == before || ifindex == 0 {
		t.Errorf("place = %v, %d; want the new namespace %v", ns, ifindex, elsewhere.NS.ID())
	}
	lan := netip.MustParseAddr("192.168.77.1")
	for _, step := range []error{
		elsewhere.AddAddr("tun0", netip.PrefixFrom(vpnServer, 24)),
		elsewhere.SetUp("tun0"),
		elsewhere.AddRoute(netip.PrefixFrom(lan, 24).Masked(), vpnClient, "tun0"),
		tun.Clients[0].AddDummy("lan", netip.PrefixFrom(lan, 24)),
	} {
		if step != nil {
			t.Fatal(step)
		}
	}
	// The mirror follows within a second.
	for range 50 {
		r, err := (bench.Ping{Node: elsewhere, To: lan, Count: 1, Wait: 100 * time.Millisecond}).Run(t.Context())
		if err == nil && r.Lost() == 0 {
			return
		}
	}
	t.Error("a network behind the peer can't be reached by the new namespace's route")
}

// BenchmarkTunnel is one TCP stream through two devices in this process; compare its Gbit/s only within a run.
func BenchmarkTunnel(b *testing.B) {
	for _, mtu := range []int{1416, 1500} {
		b.Run(fmt.Sprintf("mtu=%d", mtu), func(b *testing.B) {
			tun := newTunnel(b, crypto.AESGCM, mtu)
			rate, err := bench.Throughput{From: tun.Clients[0], To: tun.Server, Addr: vpnServer,
				Duration: 2 * time.Second}.Run(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(rate/1e9, "Gbit/s")
			b.ReportMetric(0, "ns/op")
			b.Logf("%+v", tun.client.Stats())
			b.Logf("%+v", tun.server.Stats())
		})
	}
}
