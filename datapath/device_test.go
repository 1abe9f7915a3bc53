package datapath

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ovpn-go/crypto"
	"ovpn-go/peers"
	"ovpn-go/tun/netns"
)

func TestTunnelCarriesPacketsBothWays(t *testing.T) {
	a, b := newTunnel(t)
	there := udp4("10.8.0.1", "10.8.0.2", "there")
	back := udp4("10.8.0.2", "10.8.0.1", "and back again")
	a.send(t, there)
	if diff := cmp.Diff(there, b.receive(t)); diff != "" {
		t.Errorf("a to b (-sent +received):\n%s", diff)
	}
	b.send(t, back)
	if diff := cmp.Diff(back, a.receive(t)); diff != "" {
		t.Errorf("b to a (-sent +received):\n%s", diff)
	}
	info, err := a.Peer(1)
	if err != nil {
		t.Fatal(err)
	}
	want := peers.Stats{
		VPNTxPackets: 1, VPNTxBytes: uint64(len(there)), LinkTxPackets: 1, LinkTxBytes: uint64(len(there) + 24),
		VPNRxPackets: 1, VPNRxBytes: uint64(len(back)), LinkRxPackets: 1, LinkRxBytes: uint64(len(back) + 24),
	}
	if diff := cmp.Diff(want, info.Stats); diff != "" {
		t.Errorf("counters (-want +got):\n%s", diff)
	}
}

func TestControlPacketsStayTheClients(t *testing.T) {
	a, b := newTunnel(t)
	for opcode := range byte(32) {
		if opcode == crypto.OpcodeDataV2 || opcode == crypto.OpcodeDataV1 {
			continue
		}
		sent := []byte{opcode << 3, 1, 2, 3, 4}
		if _, err := a.client.WriteToUDPAddrPort(sent, b.addr()); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		b.client.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, from, err := b.client.ReadFromUDPAddrPort(buf)
		if err != nil {
			t.Fatalf("opcode %d did not reach the client: %v", opcode, err)
		}
		if !bytes.Equal(buf[:n], sent) || from.Port() != a.addr().Port() {
			t.Errorf("opcode %d: client got %x from %v, want %x from %v", opcode, buf[:n], from, sent, a.addr())
		}
	}
	if drops := b.Stats().Drops; len(drops) != 0 {
		t.Errorf("the device saw control packets: %v", drops)
	}
}

// raw sends b a datagram from a's client socket, as a peer or an attacker could.
func (e *end) raw(t *testing.T, to *end, packet []byte) {
	t.Helper()
	if _, err := e.client.WriteToUDPAddrPort(packet, to.addr()); err != nil {
		t.Fatal(err)
	}
}

// sealed makes a DATA_V2 packet with a key of its own, so that a test chooses the packet id.
func sealed(t *testing.T, cfg crypto.KeyConfig, peerID, packetID uint32, payload []byte) []byte {
	t.Helper()
	key, err := crypto.NewKey(cfg)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, crypto.Overhead+len(payload), crypto.Overhead+len(payload)+crypto.TagSize)
	key.Seal(buf, payload, crypto.Op(cfg.ID, peerID), packetID)
	return buf
}

func TestReceiveDrops(t *testing.T) {
	ka, _ := keyPair(crypto.AESGCM, 0)
	other := ka
	other.ID = 3
	forged := ka
	forged.Encrypt.Key = bytes.Repeat([]byte{0x33}, 32)
	good := udp4("10.8.0.1", "10.8.0.2", "payload")
	tests := []struct {
		rule   string
		packet []byte
		reason DropReason
		linkRx uint64 // packets attributed to the peer
	}{
		{"runt", []byte{0x48, 0, 0}, DropRunt, 0},
		{"data v1", []byte{crypto.OpcodeDataV1 << 3, 0, 0, 0, 0, 0}, DropOpcode, 0},
		{"unknown peer id", sealed(t, ka, 5, 1, good), DropUnknownPeer, 0},
		{"key id not installed", sealed(t, other, 2, 1, good), DropUnknownKey, 1},
		{"shorter than the overhead", []byte{0x48, 0, 0, 2, 0, 0, 0, 1, 9}, DropRunt, 1},
		{"wrong key", sealed(t, forged, 2, 1, good), DropAuthentication, 1},
		{"packet id 0", sealed(t, ka, 2, 0, good), DropReplay, 1},
		{"empty payload", sealed(t, ka, 2, 50, nil), DropInner, 1},
		{"payload is no ip packet", sealed(t, ka, 2, 50, []byte("something else that is long enough")), DropInner, 1},
		{"ipv4 header cut short", sealed(t, ka, 2, 50, good[:19]), DropInner, 1},
	}
	for _, tt := range tests {
		t.Run(tt.rule, func(t *testing.T) {
			a, b := newTunnel(t)
			a.raw(t, b, tt.packet)
			b.waitDrops(t, tt.reason, 1)
			info, err := b.Peer(2)
			if err != nil {
				t.Fatal(err)
			}
			if info.Stats.LinkRxPackets != tt.linkRx || info.Stats.VPNRxPackets != 0 {
				t.Errorf("link-rx %d, vpn-rx %d; want %d, 0", info.Stats.LinkRxPackets, info.Stats.VPNRxPackets, tt.linkRx)
			}
			// The tunnel still works.
			a.send(t, good)
			if got := b.receive(t); !bytes.Equal(got, good) {
				t.Errorf("afterwards: received %x, want %x", got, good)
			}
		})
	}
}

func TestReplayIsDropped(t *testing.T) {
	a, b := newTunnel(t)
	ka, _ := keyPair(crypto.AESGCM, 0)
	packet := sealed(t, ka, 2, 7, udp4("10.8.0.1", "10.8.0.2", "once"))
	a.raw(t, b, packet)
	b.receive(t)
	a.raw(t, b, packet)
	b.waitDrops(t, DropReplay, 1)
}

func TestFloatFollowsAuthenticatedPackets(t *testing.T) {
	a, b := newTunnel(t)
	ka, _ := keyPair(crypto.AESGCM, 0)
	elsewhere, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer elsewhere.Close()
	from := elsewhere.LocalAddr().(*net.UDPAddr).AddrPort()
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())

	// Neither a forged nor a replayed packet moves the peer.
	forged := sealed(t, ka, 2, 9, udp4("10.8.0.1", "10.8.0.2", "x"))
	forged[30] ^= 1
	if _, err := elsewhere.WriteToUDPAddrPort(forged, b.addr()); err != nil {
		t.Fatal(err)
	}
	b.waitDrops(t, DropAuthentication, 1)
	good := sealed(t, ka, 2, 10, udp4("10.8.0.1", "10.8.0.2", "y"))
	a.raw(t, b, good)
	b.receive(t)
	if _, err := elsewhere.WriteToUDPAddrPort(good, b.addr()); err != nil {
		t.Fatal(err)
	}
	b.waitDrops(t, DropReplay, 1)
	if info, _ := b.Peer(2); info.Remote != a.addr() {
		t.Fatalf("peer moved to %v on a packet that proves nothing", info.Remote)
	}

	if _, err := elsewhere.WriteToUDPAddrPort(sealed(t, ka, 2, 11, crypto.Keepalive[:]), b.addr()); err != nil {
		t.Fatal(err)
	}
	want := Event{Kind: PeerFloated, Ifindex: 7, NetNS: b.link.ns.ID(), PeerID: 2, Remote: from}
	if diff := cmp.Diff(want, b.event(t), cmp.Comparer(func(x, y netip.AddrPort) bool { return x == y })); diff != "" {
		t.Errorf("event (-want +got):\n%s", diff)
	}
	b.send(t, udp4("10.8.0.2", "10.8.0.1", "to the new address"))
	elsewhere.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := elsewhere.Read(make([]byte, 2000)); err != nil {
		t.Errorf("nothing arrived at the new address: %v", err)
	}
}

func TestLocalAddressIsLearned(t *testing.T) {
	a, b := newTunnel(t)
	a.send(t, udp4("10.8.0.1", "10.8.0.2", "x"))
	b.receive(t)
	info, err := b.Peer(2)
	if err != nil {
		t.Fatal(err)
	}
	if want := netip.MustParseAddr("127.0.0.1"); info.Local != want {
		t.Errorf("local address = %v, want %v", info.Local, want)
	}
	b.noEvent(t)
}

func TestUnusableLocalAddressIsForgotten(t *testing.T) {
	a, b := newTunnel(t)
	if err := a.SetPeer(1, PeerUpdate{Remote: b.addr(), Local: netip.MustParseAddr("192.0.2.77")}); err != nil {
		t.Fatal(err)
	}
	a.send(t, udp4("10.8.0.1", "10.8.0.2", "x"))
	b.receive(t)
	if info, _ := a.Peer(1); info.Local.IsValid() {
		t.Errorf("local address = %v, want it forgotten", info.Local)
	}
}

func TestNoPrimaryKeyDropsAndSecondaryDecrypts(t *testing.T) {
	a, b := newTunnel(t)
	ka, kb := keyPair(crypto.ChaCha20Poly1305, 1)
	if err := b.InstallKey(2, crypto.Secondary, kb); err != nil {
		t.Fatal(err)
	}
	if err := a.InstallKey(1, crypto.Primary, ka); err != nil {
		t.Fatal(err)
	}
	packet := udp4("10.8.0.1", "10.8.0.2", "under the new key")
	a.send(t, packet)
	if got := b.receive(t); !bytes.Equal(got, packet) {
		t.Errorf("received %x, want %x", got, packet)
	}
	if err := a.DeleteKey(1, crypto.Primary); err != nil {
		t.Fatal(err)
	}
	a.send(t, packet)
	a.waitDrops(t, DropNoKey, 1)
	info, _ := a.Peer(1)
	if info.Stats.VPNTxPackets != 2 || info.Stats.LinkTxPackets != 1 {
		t.Errorf("vpn-tx %d, link-tx %d; want 2, 1", info.Stats.VPNTxPackets, info.Stats.LinkTxPackets)
	}
}

func TestNewPeerOnP2PReplaces(t *testing.T) {
	a, b := newTunnel(t)
	ka, _ := keyPair(crypto.AESGCM, 0)
	a.addPeer(t, PeerConfig{ID: 9, TxID: 9, Remote: b.addr()}, ka)
	want := Event{Kind: PeerDeleted, Ifindex: 7, NetNS: a.link.ns.ID(), PeerID: 1, Reason: peers.Teardown}
	if got := a.event(t); got != want {
		t.Errorf("event = %+v, want %+v", got, want)
	}
	if _, err := a.Peer(1); !errors.Is(err, peers.ErrNotFound) {
		t.Errorf("old peer: %v, want ErrNotFound", err)
	}
	if infos := a.Peers(); len(infos) != 1 || infos[0].ID != 9 {
		t.Errorf("peers = %+v, want the new one", infos)
	}
}

func TestCarrierFollowsThePeer(t *testing.T) {
	a, _ := newTunnel(t)
	if on := <-a.link.carrier; !on {
		t.Error("carrier off when the peer was added")
	}
	if err := a.DeletePeer(1); err != nil {
		t.Fatal(err)
	}
	if on := <-a.link.carrier; on {
		t.Error("carrier on when the peer was removed")
	}
}

func TestDeletePeerGivesTheSocketBackBeforeItReturns(t *testing.T) {
	a, b := newTunnel(t)
	if err := b.DeletePeer(2); err != nil {
		t.Fatal(err)
	}
	select {
	case ev := <-b.events:
		if ev.Reason != peers.Userspace || ev.PeerID != 2 {
			t.Errorf("event = %+v, want peer 2, userspace", ev)
		}
	default:
		t.Error("DeletePeer returned before the controller was told")
	}
	// DATA_V2 is the client's again, as on a plain socket.
	a.send(t, udp4("10.8.0.1", "10.8.0.2", "x"))
	b.client.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := b.client.Read(make([]byte, 2000)); err != nil {
		t.Errorf("the plain socket got nothing: %v", err)
	}
	addr := b.addr()
	b.client.Close()
	again, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
	if err != nil {
		t.Fatalf("bind the same port again: %v", err)
	}
	again.Close()
	if err := b.DeletePeer(2); !errors.Is(err, peers.ErrNotFound) {
		t.Errorf("second DeletePeer: %v, want ErrNotFound", err)
	}
}

func TestClosedClientSocketRemovesItsPeers(t *testing.T) {
	_, b := newTunnel(t)
	b.client.Close()
	ev := b.event(t)
	if ev.Kind != PeerDeleted || ev.Reason != peers.TransportDisconnect || ev.PeerID != 2 {
		t.Errorf("event = %+v, want peer 2 deleted by transport-disconnect", ev)
	}
}

func TestBeforeBindReleasesWhatTheClientClosed(t *testing.T) {
	_, b := newTunnel(t)
	addr := b.addr()
	for range 3 {
		b.client.Close()
		b.sockets.BeforeBind(b.link.ns.ID(), addr.Port())
		again, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
		if err != nil {
			t.Fatalf("bind the port that was just closed: %v", err)
		}
		b.client = again
	}
	b.client.Close()
}

func TestNewPeerErrorsChangeNothing(t *testing.T) {
	needRoot(t)
	sockets := newSockets(t)
	d := newEnd(t, peers.MP, sockets, "127.0.0.1:0")
	remote := netip.MustParseAddrPort("127.0.0.1:9")
	vpn := netip.MustParseAddr("10.8.0.2")
	first := PeerConfig{ID: 1, TxID: 1, Remote: remote, VPN4: vpn, Socket: d.socket(t)}
	if err := d.NewPeer(first); err != nil {
		t.Fatal(err)
	}
	other := newEnd(t, peers.P2P, sockets, "127.0.0.1:0")
	file := func(fd int, err error) *os.File {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "socket")
		t.Cleanup(func() { f.Close() })
		return f
	}
	tests := []struct {
		rule string
		cfg  PeerConfig
		want error
	}{
		{"id in use", PeerConfig{ID: 1, Remote: remote, VPN4: netip.MustParseAddr("10.8.0.3"), Socket: d.socket(t)}, peers.ErrIDInUse},
		{"address in use", PeerConfig{ID: 2, Remote: remote, VPN4: vpn, Socket: d.socket(t)}, peers.ErrAddrInUse},
		{"socket of a unix family", PeerConfig{ID: 2, Remote: remote, Socket: file(unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0))}, unix.EOPNOTSUPP},
	}
	before := d.Peers()
	for _, tt := range tests {
		t.Run(tt.rule, func(t *testing.T) {
			if err := d.NewPeer(tt.cfg); !errors.Is(err, tt.want) {
				t.Errorf("error = %v, want %v", err, tt.want)
			}
			equal := cmp.Comparer(func(x, y *netns.NS) bool { return x.ID() == y.ID() })
			addr := cmp.Comparer(func(x, y netip.Addr) bool { return x == y })
			port := cmp.Comparer(func(x, y netip.AddrPort) bool { return x == y })
			if diff := cmp.Diff(before, d.Peers(), equal, addr, port); diff != "" {
				t.Errorf("peers changed (-before +after):\n%s", diff)
			}
		})
	}
	err := other.NewPeer(PeerConfig{ID: 1, Remote: remote, Socket: d.socket(t)})
	var attach *AttachError
	if !errors.As(err, &attach) || attach.Errno != unix.EBUSY {
		t.Errorf("socket of another device: %v, want an AttachError with EBUSY", err)
	}
}

func TestKeepaliveAndExpiry(t *testing.T) {
	a, b := newTunnel(t)
	if err := b.SetPeer(2, PeerUpdate{Keepalive: &peers.Keepalive{Interval: 1, Timeout: 100}}); err != nil {
		t.Fatal(err)
	}
	// a hears nothing but b's keepalives; once those stop, a's timeout runs out.
	if err := a.SetPeer(1, PeerUpdate{Keepalive: &peers.Keepalive{Interval: 100, Timeout: 3}}); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		info, err := a.Peer(1)
		if err != nil {
			t.Fatalf("peer expired although keepalives arrive: %v", err)
		}
		if info.Stats.LinkRxPackets >= 4 {
			if info.Stats.VPNRxPackets != 0 {
				t.Errorf("keepalives counted as %d tunnel packets", info.Stats.VPNRxPackets)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d keepalives in 20 s, want 4", info.Stats.LinkRxPackets)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := b.SetPeer(2, PeerUpdate{Keepalive: &peers.Keepalive{}}); err != nil {
		t.Fatal(err)
	}
	if ev := a.event(t); ev.Reason != peers.Expired {
		t.Errorf("event = %+v, want expired", ev)
	}
}

func TestCloseAnnouncesEveryPeerInOrder(t *testing.T) {
	needRoot(t)
	d := newEnd(t, peers.MP, newSockets(t), "127.0.0.1:0")
	for id := uint32(1); id <= 6; id++ {
		cfg := PeerConfig{
			ID: id, TxID: id, Remote: netip.MustParseAddrPort("127.0.0.1:9"),
			VPN4: netip.MustParseAddr(fmt.Sprintf("10.8.0.%d", id+1)), Socket: d.socket(t),
		}
		if err := d.NewPeer(cfg); err != nil {
			t.Fatal(err)
		}
	}
	d.Close()
	var got []uint32
	for range 6 {
		ev := d.event(t)
		if ev.Reason != peers.Teardown {
			t.Errorf("event = %+v, want teardown", ev)
		}
		got = append(got, ev.PeerID)
	}
	// The kernel's hash order of these ids.
	if diff := cmp.Diff([]uint32{4, 3, 5, 1, 6, 2}, got); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
	if err := d.DeletePeer(1); !errors.Is(err, ErrDeviceGone) {
		t.Errorf("after Close: %v, want ErrDeviceGone", err)
	}
}

func TestDeletedInterfaceEndsTheDevice(t *testing.T) {
	a, _ := newTunnel(t)
	a.link.stacks[len(a.link.stacks)-1].Close() // all queues end then, but not at once
	select {
	case <-a.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the device outlived its interface")
	}
	if ev := a.event(t); ev.Reason != peers.Teardown {
		t.Errorf("event = %+v, want teardown", ev)
	}
}

// A peer that is added while the device goes leaves nothing behind.
func TestPeerAddedWhileTheDeviceEnds(t *testing.T) {
	needRoot(t)
	sockets := newSockets(t)
	for range 30 {
		d := newEnd(t, peers.MP, sockets, "127.0.0.1:0")
		cfg := PeerConfig{ID: 1, Remote: netip.MustParseAddrPort("127.0.0.1:9"), VPN4: netip.MustParseAddr("10.8.0.2"), Socket: d.socket(t)}
		added := make(chan error)
		go func() { added <- d.NewPeer(cfg) }()
		d.Close()
		if err := <-added; err == nil {
			if ev := d.event(t); ev.Kind != PeerDeleted || ev.Reason != peers.Teardown {
				t.Errorf("event = %+v, want teardown", ev)
			}
		}
		sockets.mu.Lock()
		left := len(sockets.attached)
		sockets.mu.Unlock()
		if left != 0 {
			t.Fatalf("%d sockets of a device that is gone", left)
		}
	}
}
