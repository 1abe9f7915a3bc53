package datapath

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"ovpn-go/crypto"
	"ovpn-go/peers"
	"ovpn-go/tun/netns"
)

// connectedPair is a tunnel between a client, b, whose socket is connected and a, whose socket is not.
type connectedPair struct {
	a, b         *end
	keyA, keyB   crypto.KeyConfig
	addrA, addrB netip.AddrPort
}

// connectedCase says how a client's connected socket reaches its peer.
type connectedCase struct {
	name     string
	family   int
	from, to string // as the socket has them, of the client and of the peer
	loopback bool
}

var connectedCases = []connectedCase{
	{"IPv4", unix.AF_INET, "0.0.0.0:0", "198.51.100.2:1194", false},
	{"IPv6", unix.AF_INET6, "[::]:0", "[2001:db8::2]:1194", false},
	{"IPv4 on an IPv6 socket", unix.AF_INET6, "[::]:0", "[::ffff:198.51.100.2]:1194", false},
	{"loopback", unix.AF_INET, "127.0.0.1:0", "127.0.0.1:1194", true},
}

func newConnectedPair(t *testing.T, c connectedCase) *connectedPair {
	t.Helper()
	needRoot(t)
	here, there := groNet(t)
	if c.loopback {
		there = here
	}
	sockets := newSockets(t)
	pair := &connectedPair{}
	pair.keyA, pair.keyB = keyPair(crypto.AESGCM, 0)
	to := netip.MustParseAddrPort(c.to)
	peerFamily := unix.AF_INET
	if to.Addr().Unmap().Is6() {
		peerFamily = unix.AF_INET6
	}
	pair.addrA = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	server := udpConn(t, udpSocketIn(t, there, peerFamily, bound(pair.addrA.String())))
	client := udpConn(t, udpSocketIn(t, here, c.family, func(fd int) error {
		if err := bound(c.from)(fd); err != nil {
			return err
		}
		return unix.Connect(fd, sockaddr(c.family, to))
	}))
	pair.a = endOf(t, peers.P2P, sockets, server)
	pair.b = endOf(t, peers.P2P, sockets, client)
	pair.addrB = pair.b.addr()
	pair.a.addPeer(t, PeerConfig{ID: 1, TxID: 2, Remote: pair.addrB}, pair.keyA)
	pair.b.addPeer(t, PeerConfig{ID: 2, TxID: 1, Remote: pair.addrA}, pair.keyB)
	return pair
}

// udpConn takes a UDP socket over.
func udpConn(t *testing.T, file *os.File) *net.UDPConn {
	t.Helper()
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		t.Fatal(err)
	}
	return conn.(*net.UDPConn)
}

// exchange sends an inner packet each way.
func (p *connectedPair) exchange(t *testing.T, payload string) {
	t.Helper()
	for _, way := range []struct {
		name     string
		from, to *end
	}{{"to the connected client", p.a, p.b}, {"from the connected client", p.b, p.a}} {
		packet := udp4("10.8.0.1", "10.8.0.2", payload)
		way.from.send(t, packet)
		if diff := cmp.Diff(packet, way.to.receive(t)); diff != "" {
			t.Fatalf("%s (-sent +received):\n%s", way.name, diff)
		}
	}
}

// control sends a control packet each way, and no more than that arrives.
func (p *connectedPair) control(t *testing.T) {
	t.Helper()
	sent := []byte{4 << 3, 1, 2, 3, 4}
	p.a.raw(t, p.b, sent)
	if got, from := clientReceives(t, p.b); !bytes.Equal(got, sent) || from != p.addrA {
		t.Fatalf("the connected client got %x from %v, want %x from %v", got, from, sent, p.addrA)
	}
	if _, err := p.b.client.Write(sent); err != nil {
		t.Fatalf("send without an address: %v", err)
	}
	if got, from := clientReceives(t, p.a); !bytes.Equal(got, sent) || from != p.addrB {
		t.Fatalf("the peer's client got %x from %v, want %x from %v", got, from, sent, p.addrB)
	}
}

func clientReceives(t *testing.T, e *end) (data []byte, from netip.AddrPort) {
	t.Helper()
	e.client.SetReadDeadline(time.Now().Add(5 * time.Second))
	buf := make([]byte, 2000)
	n, from, err := e.client.ReadFromUDPAddrPort(buf)
	if err != nil {
		t.Fatalf("no control packet: %v", err)
	}
	return buf[:n], netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}

// front returns the interface that the connected socket's data packets are received on in batches, 0 if none.
func (p *connectedPair) front(t *testing.T) (ifindex uint32) {
	t.Helper()
	if err := p.b.do(func() { ifindex = transportOf(p.b.table.Sole()).udp.conn.ifindex }); err != nil {
		t.Fatal(err)
	}
	return ifindex
}

func TestConnectedClientKeepsItsSocket(t *testing.T) {
	for _, c := range connectedCases {
		t.Run(c.name, func(t *testing.T) {
			p := newConnectedPair(t, c)
			p.control(t)
			for i := range 20 {
				p.exchange(t, fmt.Sprintf("packet %d", i))
				p.control(t)
			}
			if front := p.front(t); (front == 0) != c.loopback {
				t.Errorf("data packets are received in batches on interface %d", front)
			}
			drops := p.b.Stats().Drops
			twice := drops[DropReplay.String()] // seen by both sockets while one stepped aside
			if delete(drops, DropReplay.String()); len(drops) != 0 {
				t.Errorf("drops at the connected end: %v", drops)
			}
			info, err := p.b.Peer(2)
			if err != nil {
				t.Fatal(err)
			}
			if info.Remote != p.addrA || info.Stats.LinkRxPackets != 20+twice || info.Stats.LinkTxPackets != 20 {
				t.Errorf("peer at %v, %d packets received and %d sent, want it at %v, 20 and 20",
					info.Remote, info.Stats.LinkRxPackets, info.Stats.LinkTxPackets, p.addrA)
			}
		})
	}
}

// What comes in one burst is merged; the control packet at its end is the client's.
func TestConnectedClientGetsControlOutOfABurst(t *testing.T) {
	p := newConnectedPair(t, connectedCases[0])
	p.exchange(t, "so that the interface is known")
	for range 10 {
		sendBurst(t, p.a.socket(t), p.addrB, 20, crypto.OpcodeDataV2, 4)
		if got, _ := clientReceives(t, p.b); len(got) != 50 || got[0] != 4<<3 {
			t.Fatalf("the connected client got %d bytes that begin with %#x", len(got), got[0])
		}
	}
	if s := p.b.Stats(); s.Receives > 100 {
		t.Errorf("200 data packets in %d receives: they are not merged", s.Receives)
	}
}

func TestConnectedPeerDoesNotFloat(t *testing.T) {
	p := newConnectedPair(t, connectedCases[3])
	ns, err := netns.OfSocket(p.b.socket(t))
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	sendUDP(t, ns, p.addrB, sealed(t, p.keyA, 2, 100, udp4("10.8.0.1", "10.8.0.2", "from elsewhere")))
	p.exchange(t, "from the peer")
	info, err := p.b.Peer(2)
	if err != nil {
		t.Fatal(err)
	}
	if info.Remote != p.addrA || info.Stats.LinkRxPackets != 1 {
		t.Errorf("peer at %v after %d packets, want it at %v after 1", info.Remote, info.Stats.LinkRxPackets, p.addrA)
	}
}

func TestConnectedClientComesAndGoes(t *testing.T) {
	p := newConnectedPair(t, connectedCases[0])
	for range 3 {
		p.exchange(t, "with a peer")
		if err := p.b.DeletePeer(2); err != nil {
			t.Fatal(err)
		}
		if ev := p.b.event(t); ev.Kind != PeerDeleted || ev.Reason != peers.Userspace {
			t.Fatalf("event = %+v, want the peer deleted by userspace", ev)
		}
		p.control(t)
		p.b.addPeer(t, PeerConfig{ID: 2, TxID: 1, Remote: p.addrA}, p.keyB)
		p.a.addPeer(t, PeerConfig{ID: 1, TxID: 2, Remote: p.addrB}, p.keyA)
	}
	p.b.client.Close()
	if ev := p.b.event(t); ev.Kind != PeerDeleted || ev.Reason != peers.TransportDisconnect {
		t.Errorf("event = %+v, want the peer deleted by transport-disconnect", ev)
	}
}

// A peer may be elsewhere than the socket's connection: it is sent to, and only the connection is heard.
func TestConnectedSocketWithAPeerElsewhere(t *testing.T) {
	p := newConnectedPair(t, connectedCase{"", unix.AF_INET, "127.0.0.1:0", "127.0.0.1:1194", true})
	if err := p.b.SetPeer(2, PeerUpdate{Remote: netip.MustParseAddrPort("127.0.0.1:9")}); err != nil {
		t.Fatal(err)
	}
	packet := udp4("10.8.0.1", "10.8.0.2", "to where the peer was")
	p.a.send(t, packet)
	if diff := cmp.Diff(packet, p.b.receive(t)); diff != "" {
		t.Errorf("(-sent +received):\n%s", diff)
	}
	if ev := p.b.event(t); ev.Kind != PeerFloated || ev.Remote != p.addrA {
		t.Errorf("event = %+v, want the peer to float to %v", ev, p.addrA)
	}
}

func TestHideDataKeepsTheClientsFilter(t *testing.T) {
	ns := freshNS(t)
	addAddr(t, nlHandle(t, ns), "lo", "198.51.100.1/32")
	peer := udpSocketIn(t, ns, unix.AF_INET, bound("127.0.0.1:1194"))
	client := udpSocketIn(t, ns, unix.AF_INET, func(fd int) error {
		if err := bound("127.0.0.1:1195")(fd); err != nil {
			return err
		}
		// It wants no packets of 20 bytes.
		if err := attachFilter(fd, []bpf.Instruction{
			bpf.LoadExtension{Num: bpf.ExtLen},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: udpHeaderLen + 20, SkipTrue: 1},
			bpf.RetConstant{Val: 1 << 18},
			bpf.RetConstant{Val: 0},
		}); err != nil {
			return err
		}
		return unix.Connect(fd, sockaddr(unix.AF_INET, netip.MustParseAddrPort("127.0.0.1:1194")))
	})
	for range 2 { // the second time it is found there
		out, conn, _, err := connectUDP(client, 1)
		if err != nil {
			t.Fatal(err)
		}
		closeAll(&out)
		conn.close()
	}
	send := func(payload []byte) {
		if err := netns.Control(peer, func(fd int) error {
			return unix.Sendto(fd, payload, 0, sockaddr(unix.AF_INET, netip.MustParseAddrPort("127.0.0.1:1195")))
		}); err != nil {
			t.Fatal(err)
		}
	}
	var got [30]int
	for size := range 30 {
		for opcode := range byte(32) {
			packet := make([]byte, size)
			if size > 0 {
				packet[0] = opcode << 3
			}
			send(packet)
			err := netns.Control(client, func(fd int) error {
				_, _, err := unix.Recvfrom(fd, make([]byte, 100), unix.MSG_DONTWAIT)
				return err
			})
			if err == nil {
				got[size]++
			}
		}
	}
	var want [30]int
	for size := 4; size < 30; size++ {
		want[size] = 30 // all opcodes but the two of data packets
	}
	want[20] = 0
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("packets that the client got, by size (-want +got):\n%s", diff)
	}
}

func TestConnectUDPLeavesNothing(t *testing.T) {
	ns := freshNS(t)
	client := udpSocketIn(t, ns, unix.AF_INET, func(fd int) error {
		return unix.Connect(fd, sockaddr(unix.AF_INET, netip.MustParseAddrPort("127.0.0.1:1194")))
	})
	before := descriptors(t)
	out, conn, info, err := connectUDP(client, 3)
	if err != nil {
		t.Fatal(err)
	}
	closeAll(&out)
	conn.close()
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
	if _, _, err := shareUDP(client, 1); err == nil || info.LocalPort == 0 {
		t.Errorf("shareUDP of a connected socket: %v, port %d", err, info.LocalPort)
	}
	for name, option := range map[string]int{"SO_REUSEADDR": unix.SO_REUSEADDR, "SO_REUSEPORT": unix.SO_REUSEPORT} {
		if value, err := unix.GetsockoptInt(rawFD(t, client), unix.SOL_SOCKET, option); err != nil || value != 0 {
			t.Errorf("%s of the client's socket is %d, %v, want 0", name, value, err)
		}
	}
}
