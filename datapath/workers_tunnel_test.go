package datapath_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ovpn-go/bench"
	"ovpn-go/crypto"
	"ovpn-go/datapath"
	"ovpn-go/peers"
)

// withWorkers makes the devices of a test have n workers.
func withWorkers(t testing.TB, n int) {
	t.Helper()
	before := datapath.WorkersUnderTest
	datapath.WorkersUnderTest = n
	t.Cleanup(func() { datapath.WorkersUnderTest = before })
}

func TestRealTunnelWithSeveralWorkers(t *testing.T) {
	withWorkers(t, 3)
	tun := newTunnel(t, crypto.AESGCM, 1416)
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
}

// newServer joins a server to clients that all use its one socket; client i has peer id i+1.
func newServer(t testing.TB, clients int) (*bench.Star, *datapath.Device) {
	t.Helper()
	needRoot(t)
	star, err := bench.NewStar(clients)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { star.Close() })
	sockets, err := datapath.NewSockets(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sockets.Close)
	for _, node := range append([]*bench.Node{star.Server}, star.Clients...) {
		if err := node.DisableIPv6(); err != nil {
			t.Fatal(err)
		}
	}
	server := newDevice(t, star.Server, peers.MP, datapath.Config{Sockets: sockets}, netip.PrefixFrom(vpnServer, 24))
	socket := socketOn(t, star.Server)
	for i, node := range star.Clients {
		k1, k2 := bytes.Repeat([]byte{byte(i + 1)}, 32), bytes.Repeat([]byte{byte(i + 101)}, 32)
		client := newDevice(t, node, peers.P2P, datapath.Config{Sockets: sockets}, netip.PrefixFrom(clientAddr(i), 24))
		for _, end := range []struct {
			device *datapath.Device
			peer   datapath.PeerConfig
			key    crypto.KeyConfig
		}{
			{server, datapath.PeerConfig{ID: uint32(i + 1), TxID: 1, VPN4: clientAddr(i), Socket: socket,
				Remote: netip.AddrPortFrom(star.ClientAddr4(i), 1194)},
				crypto.KeyConfig{Encrypt: crypto.Direction{Key: k1}, Decrypt: crypto.Direction{Key: k2}}},
			{client, datapath.PeerConfig{ID: 1, TxID: uint32(i + 1), Socket: socketOn(t, node),
				Remote: netip.AddrPortFrom(star.ServerAddr4(i), 1194)},
				crypto.KeyConfig{Encrypt: crypto.Direction{Key: k2}, Decrypt: crypto.Direction{Key: k1}}},
		} {
			end.key.Cipher = crypto.AESGCM
			if err := end.device.NewPeer(end.peer); err != nil {
				t.Fatal(err)
			}
			if err := end.device.InstallKey(end.peer.ID, crypto.Primary, end.key); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i := range star.Clients {
		awaitPing(t, star.Server, clientAddr(i))
	}
	return star, server
}

func clientAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 8, 0, byte(i + 2)}) }

// Many flows at once, to and from all clients: whatever is lost, each flow's packets arrive in order, and no packet
// is late for a replay window.
func TestManyFlowsKeepTheirOrder(t *testing.T) {
	withWorkers(t, 3)
	const clients, flows, perFlow = 4, 12, 300
	star, server := newServer(t, clients)
	var running sync.WaitGroup
	var arrived atomic.Int64
	for i, node := range star.Clients {
		for _, way := range []struct {
			from, to *bench.Node
			addr     netip.Addr
		}{{node, star.Server, vpnServer}, {star.Server, node, clientAddr(i)}} {
			sink, err := listen(way.to, netip.AddrPortFrom(way.addr, 0))
			if err != nil {
				t.Fatal(err)
			}
			_ = sink.SetReadBuffer(4 << 20)
			to := sink.LocalAddr().(*net.UDPAddr).AddrPort()
			running.Go(func() {
				defer sink.Close()
				last := map[netip.AddrPort]uint32{}
				buf := make([]byte, 2000)
				for {
					sink.SetReadDeadline(time.Now().Add(2 * time.Second))
					_, from, err := sink.ReadFromUDPAddrPort(buf)
					if err != nil {
						return
					}
					if seq := binary.BigEndian.Uint32(buf); seq <= last[from] {
						t.Errorf("flow from %v: packet %d came after %d", from, seq, last[from])
						return
					} else {
						last[from] = seq
					}
					arrived.Add(1)
				}
			})
			for range flows {
				source, err := listen(way.from, netip.AddrPort{})
				if err != nil {
					t.Fatal(err)
				}
				running.Go(func() {
					defer source.Close()
					payload := make([]byte, 700)
					for seq := range uint32(perFlow) {
						binary.BigEndian.PutUint32(payload, seq+1)
						_, _ = source.WriteToUDPAddrPort(payload, to)
						if seq%10 == 9 {
							time.Sleep(20 * time.Millisecond) // for the receivers to follow
						}
					}
				})
			}
		}
	}
	running.Wait()
	const sent = clients * flows * perFlow * 2
	if n := arrived.Load(); n < sent/4 {
		t.Errorf("%d of %d packets arrived", n, sent)
	}
	if s := server.Stats(); s.Drops["replay"] != 0 {
		t.Errorf("drops: %v", s.Drops)
	}
}

// listen opens a UDP socket in a node's namespace.
func listen(node *bench.Node, at netip.AddrPort) (conn *net.UDPConn, err error) {
	err = node.Do(func() (err error) {
		conn, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
		return err
	})
	return conn, err
}

// BenchmarkWorkers is TCP from several clients to a server with one worker, two and four; compare only within a run, on
// a machine with processors to spare for the clients' side.
func BenchmarkWorkers(b *testing.B) {
	const clients = 4
	for _, workers := range []int{1, 2, 4} {
		b.Run(fmt.Sprintf("peers=%d/workers=%d", clients, workers), func(b *testing.B) {
			withWorkers(b, workers)
			star, server := newServer(b, clients)
			var running sync.WaitGroup
			rates := make([]float64, clients)
			for i, node := range star.Clients {
				running.Go(func() {
					var err error
					rates[i], err = bench.Throughput{From: node, To: star.Server, Addr: vpnServer, Duration: 2 * time.Second}.Run(b.Context())
					if err != nil {
						b.Error(err)
					}
				})
			}
			running.Wait()
			var sum float64
			for _, rate := range rates {
				sum += rate
			}
			b.ReportMetric(sum/1e9, "Gbit/s")
			b.ReportMetric(0, "ns/op")
			b.Logf("%+v", server.Stats())
		})
	}
}
