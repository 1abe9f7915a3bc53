package datapath

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"log/slog"
	"math"
	mathrand "math/rand/v2"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/crypto"
	"ovpn-go/peers"
	"ovpn-go/tun"
)

// What is in this file has gone wrong in programs and modules that do the same as this package. Each test is about one
// of those bugs and says what it was.

// In OpenVPN the counter of packet ids rolled over after 2^32 packets, which ended the server by an assertion: a peer
// that had it send so many could stop it.
func TestCVE20177479PacketIDRollover(t *testing.T) {
	const left = 4 // ids that the key still has
	one := udp4("10.8.0.1", "10.8.0.2", "one of the last")
	for _, row := range []struct {
		at     string
		frames func() [][]byte
		count  int // packets in all
	}{
		{"between packets", func() (frames [][]byte) {
			for range 10 {
				frames = append(frames, append(make([]byte, tun.VnetHdrLen), one...))
			}
			return frames
		}, 10},
		{"in the middle of a super-frame", func() [][]byte { return [][]byte{superFrame(), superFrame()} }, 2 * stageSegments},
	} {
		t.Run(row.at, func(t *testing.T) {
			a, b := newTunnel(t)
			if _, granted := a.table.ByID(1).Keys.Primary().Reserve(math.MaxUint32 - left); granted != math.MaxUint32-left {
				t.Fatalf("%d ids taken", granted)
			}
			for _, frame := range row.frames() {
				if _, err := a.link.stacks[0].Write(frame); err != nil {
					t.Fatal(err)
				}
			}
			want := Event{Kind: KeyExhausted, Ifindex: 7, NetNS: a.link.ns.ID(), PeerID: 1}
			if ev := a.event(t); ev != want {
				t.Errorf("event %+v, want %+v", ev, want)
			}
			eventually(t, "every packet had its turn", func() bool {
				drops := a.Stats().Drops
				return drops[DropExhausted.String()]+drops[DropNoKey.String()] == uint64(row.count-left)
			})
			eventually(t, "those with an id have arrived", func() bool { return b.Stats().RxPackets == left })
			// Had the counter begun anew, its nonces would have been used twice: these are refused as replays.
			if drops := b.Stats().Drops; len(drops) != 0 {
				t.Errorf("the other end dropped %v", drops)
			}
			a.noEvent(t)
			if key, err := a.Key(1, crypto.Primary); !errors.Is(err, ErrNoKey) {
				t.Errorf("the slot still has %+v (%v), want it empty", key, err)
			}
			ka, kb := keyPair(crypto.AESGCM, 1)
			if err := errors.Join(b.InstallKey(2, crypto.Primary, kb), a.InstallKey(1, crypto.Primary, ka)); err != nil {
				t.Fatal(err)
			}
			a.send(t, one)
			eventually(t, "the next key carries packets", func() bool { return b.Stats().RxPackets == left+1 })
		})
	}
}

// In OpenVPN a data packet with somebody else's peer id, sent before that peer had its keys, moved the peer to the
// sender's address, and so ended its session.
func TestCVE202011810FloatBeforeAuthentication(t *testing.T) {
	for _, keyed := range []bool{false, true} {
		t.Run(map[bool]string{false: "before the key", true: "with a key"}[keyed], func(t *testing.T) {
			sockets := newSockets(t)
			victim := newEnd(t, peers.P2P, sockets, "127.0.0.1:0")
			server := newEnd(t, peers.P2P, sockets, "127.0.0.1:0")
			attacker, _ := loopbackUDP(t)
			toServer, toVictim := keyPair(crypto.AESGCM, 0)
			victim.addPeer(t, PeerConfig{ID: 1, TxID: 2, Remote: server.addr()}, toServer)
			server.addPeer(t, PeerConfig{ID: 2, TxID: 1, Remote: victim.addr()}, toVictim)
			if !keyed {
				if err := server.DeleteKey(2, crypto.Primary); err != nil {
					t.Fatal(err)
				}
			}

			good := udp4("10.8.0.1", "10.8.0.2", "payload")
			forged := toServer
			forged.Encrypt.Key = bytes.Repeat([]byte{0x33}, 32)
			other := toServer
			other.ID = 5
			packets := [][]byte{
				sealed(t, forged, 2, 1, good), sealed(t, forged, 2, 2, crypto.Keepalive[:]), sealed(t, forged, 2, 3, nil),
				sealed(t, other, 2, 4, good), // a key id that nobody installed
				sealed(t, forged, 2, 5, good)[:crypto.Overhead-1], sealed(t, forged, 2, 6, good)[:4],
			}
			for range 20 {
				for _, p := range packets {
					if err := unix.Sendto(attacker, p, 0, sockaddr(unix.AF_INET, server.addr())); err != nil {
						t.Fatal(err)
					}
				}
			}
			eventually(t, "all of it is dropped", func() bool {
				var sum uint64
				for _, n := range server.Stats().Drops {
					sum += n
				}
				return sum == uint64(20*len(packets))
			})
			if info, _ := server.Peer(2); info.Remote != victim.addr() {
				t.Errorf("the peer is at %v now, it was at %v", info.Remote, victim.addr())
			}
			if !keyed {
				if err := server.InstallKey(2, crypto.Primary, toVictim); err != nil {
					t.Fatal(err)
				}
			}
			back := udp4("10.8.0.2", "10.8.0.1", "back")
			server.send(t, back)
			if got := victim.receive(t); !bytes.Equal(got, back) {
				t.Errorf("the peer received %x, want %x", got, back)
			}
			victim.send(t, good)
			if got := server.receive(t); !bytes.Equal(got, good) {
				t.Errorf("of the peer came %x, want %x", got, good)
			}
			server.noEvent(t)
		})
	}
}

// multiPeer is a device for many peers on a real interface in a namespace of its own, and the address its peers send to.
type multiPeer struct {
	*Device
	at netip.AddrPort
}

// newMultiPeer makes a device with the given peers, which all have the same key; routes are as the tool ip takes them.
func newMultiPeer(t *testing.T, key crypto.KeyConfig, configs []PeerConfig, routes ...[]string) multiPeer {
	t.Helper()
	needRoot(t)
	ns := freshNS(t)
	d, err := New(Config{Name: "tun0", Mode: peers.MP, NetNS: ns, Sockets: newSockets(t), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	ip(t, ns, "addr", "add", "10.8.0.1/16", "dev", "tun0")
	ip(t, ns, "addr", "add", "fd08::1/64", "dev", "tun0", "nodad")
	ip(t, ns, "link", "set", "tun0", "up")
	for _, r := range routes {
		ip(t, ns, append([]string{"route", "add"}, r...)...)
	}
	const at = "127.0.0.1:1194"
	file := udpSocketIn(t, ns, unix.AF_INET, bound(at))
	for _, cfg := range configs {
		cfg.Socket = file
		if err := d.NewPeer(cfg); err != nil {
			t.Fatal(err)
		}
		if err := d.InstallKey(cfg.ID, crypto.Primary, key); err != nil {
			t.Fatal(err)
		}
	}
	return multiPeer{d, netip.MustParseAddrPort(at)}
}

// outcome sends the device a datagram and returns what was made of it: "delivered" or a reason to drop it.
func (m multiPeer) outcome(t *testing.T, sender *os.File, packet []byte) (what string) {
	t.Helper()
	before := m.Stats()
	if err := unix.Sendto(rawFD(t, sender), packet, 0, sockaddr(unix.AF_INET, m.at)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the packet is dealt with", func() bool {
		now := m.Stats()
		if now.RxPackets > before.RxPackets {
			what = "delivered"
			return true
		}
		for reason, n := range now.Drops {
			// What the stack itself sends over a new interface has no peer.
			if reason != DropNoPeer.String() && n > before.Drops[reason] {
				what = reason
				return true
			}
		}
		return false
	})
	return what
}

// In OpenVPN the comparison that ties a handshake to the address it came from was inverted: what it should have let pass
// was refused, and all else let pass. So each comparison here that admits a packet is asked about what is equal,
// and about everything that differs by one bit.
func TestCVE202513086InvertedCompare(t *testing.T) {
	toDevice, ofDevice := keyPair(crypto.AESGCM, 2)
	vpn4, vpn6 := netip.MustParseAddr("10.8.1.2"), netip.MustParseAddr("fd08::102")
	sender := netip.MustParseAddrPort("127.0.0.1:19001")
	m := newMultiPeer(t, ofDevice, []PeerConfig{
		{ID: 2, VPN4: vpn4, VPN6: vpn6, Remote: sender},
		{ID: crypto.PeerIDUndefined, VPN4: netip.MustParseAddr("10.8.1.77"), Remote: netip.MustParseAddrPort("127.0.0.1:19002")},
	})
	ns := m.link.NetNS()
	here := udpSocketIn(t, ns, unix.AF_INET, bound(sender.String()))
	id := uint32(0)
	packet := func(peer uint32, inner []byte) []byte { id++; return sealed(t, toDevice, peer, id, inner) }
	check := func(what string, from *os.File, packet []byte, want string) {
		t.Helper()
		if got := m.outcome(t, from, packet); got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	v6 := func(src netip.Addr) []byte {
		p := make([]byte, 48)
		p[0], p[5], p[6], p[7] = 0x60, 8, 253, 64
		a, b := src.As16(), netip.MustParseAddr("fd08::1").As16()
		copy(p[8:], a[:])
		copy(p[24:], b[:])
		return p
	}
	v4 := func(src netip.Addr) []byte { return udp4(src.String(), "10.8.0.1", "x") }

	t.Run("the source inside", func(t *testing.T) {
		check("the peer's own IPv4 address", here, packet(2, v4(vpn4)), "delivered")
		check("the peer's own IPv6 address", here, packet(2, v6(vpn6)), "delivered")
		for bit := range 32 {
			a := vpn4.As4()
			a[bit/8] ^= 0x80 >> (bit % 8)
			check(netip.AddrFrom4(a).String(), here, packet(2, v4(netip.AddrFrom4(a))), "reverse-path")
		}
		for bit := range 128 {
			a := vpn6.As16()
			a[bit/8] ^= 0x80 >> (bit % 8)
			check(netip.AddrFrom16(a).String(), here, packet(2, v6(netip.AddrFrom16(a))), "reverse-path")
		}
	})
	t.Run("the tag and all it protects", func(t *testing.T) {
		for bit := range 8 * (crypto.Overhead + 28) {
			p := packet(2, v4(vpn4))
			p[bit/8] ^= 0x80 >> (bit % 8)
			switch {
			case bit < 5: // the opcode: another is the client's, not ours
				continue
			case bit < 8:
				check("another key id", here, p, "unknown-key")
			case bit < 32:
				check("another peer id", here, p, "unknown-peer")
			default:
				check("a changed bit", here, p, "authentication")
			}
		}
		check("nothing changed", here, packet(2, v4(vpn4)), "delivered")
	})
	t.Run("the address of a peer without an id", func(t *testing.T) {
		p := func() []byte { return packet(crypto.PeerIDUndefined, v4(netip.MustParseAddr("10.8.1.77"))) }
		own := udpSocketIn(t, ns, unix.AF_INET, bound("127.0.0.1:19002"))
		check("its own", own, p(), "delivered")
		for bit := range 16 {
			port := uint16(19002 ^ 1<<bit)
			if port < 1024 {
				continue
			}
			from := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)
			check(from.String(), udpSocketIn(t, ns, unix.AF_INET, bound(from.String())), p(), "unknown-peer")
		}
		for bit := 8; bit < 32; bit++ {
			a := [4]byte{127, 0, 0, 1}
			a[bit/8] ^= 0x80 >> (bit % 8)
			if a == [4]byte{127, 0, 0, 0} {
				continue // nobody can send from there
			}
			from := netip.AddrPortFrom(netip.AddrFrom4(a), 19002)
			check(from.String(), udpSocketIn(t, ns, unix.AF_INET, bound(from.String())), p(), "unknown-peer")
		}
	})
	t.Run("the packet id", func(t *testing.T) {
		p := packet(2, v4(vpn4))
		check("new", here, p, "delivered")
		check("the same again", here, p, "replay")
	})
}

// In the kernel's module frames that TCP had put together were lost when they lay more than 64 KiB into a buffer, or at
// an odd place.
func TestCVE202643254TCPCoalescing(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := mathrand.New(mathrand.NewPCG(seed, 0))
	e, client, raw, key := tcpPeer(t)
	var stream []byte
	var want, records [][]byte
	for id := uint32(1); len(want) < 2000; id++ {
		if random.IntN(40) == 0 {
			record := frame(append([]byte{4 << 3, 1, 2, 3}, make([]byte, random.IntN(300))...))
			stream, records = append(stream, record...), append(records, record)
			continue
		}
		// Of no protocol that is joined on the way to the stack.
		inner := make([]byte, 20+random.IntN(1400))
		_, _ = rand.Read(inner[20:])
		inner[0], inner[8], inner[9] = 0x45, 64, 253
		binary.BigEndian.PutUint16(inner[2:], uint16(len(inner)))
		want = append(want, inner)
		stream = append(stream, frame(sealed(t, key, 1, id, inner))...)
	}
	go func() {
		for i := 0; i < len(stream); i += 300_000 {
			if _, err := raw.Write(stream[i:min(i+300_000, len(stream))]); err != nil {
				t.Error(err)
			}
		}
	}()
	arrived := make(chan error, 1)
	go func() {
		for i, record := range records {
			buf := make([]byte, maxFrame)
			client.SetReadDeadline(time.Now().Add(20 * time.Second))
			if n, err := client.Read(buf); err != nil || !bytes.Equal(buf[:n], record) {
				arrived <- errors.Join(err, errors.New("control record is not what was sent"))
				t.Logf("record %d of %d", i, len(records))
				return
			}
		}
		arrived <- nil
	}()
	for i := range want {
		if got := e.receive(t); !bytes.Equal(got, want[i]) {
			t.Fatalf("seed %d: packet %d of %d is %d bytes and not the %d that were sent; drops %v", seed, i, len(want), len(got), len(want[i]), e.Stats().Drops)
		}
	}
	if err := <-arrived; err != nil {
		t.Error(err)
	}
	if drops := e.Stats().Drops; len(drops) != 0 {
		t.Errorf("drops: %v", drops)
	}
	// They did come together, or this would be a test of something else.
	if s := e.Stats(); s.Receives > uint64(len(want))/10 {
		t.Errorf("%d reads for %d frames", s.Receives, len(want))
	}
}

// In GotaTun a datagram that was longer than a buffer, or of which GRO had made something longer, ended the task that
// received: nobody had to have a key for it.
func TestGotaTunGROSizePanic(t *testing.T) {
	a, b := newTunnel(t)
	attacker, _ := loopbackUDP(t)
	good := udp4("10.8.0.1", "10.8.0.2", "still there")
	for _, size := range []int{1, 3, 4, crypto.Overhead, 1500, 8000, 9001, 32753, 65506, maxUDPPayload} {
		for _, stride := range []int{0, size, 700, 1472, size/2 + 1} {
			data := bytes.Repeat([]byte{0xab}, size)
			for at := 0; at < size; at += max(stride, 1) {
				data[at] = crypto.OpcodeDataV2 << 3
				if stride == 0 {
					break
				}
			}
			var control []byte
			if stride > 0 && stride < size && (size+stride-1)/stride <= maxSegments {
				control = make([]byte, unix.CmsgSpace(2))
				h := (*unix.Cmsghdr)(ptr(&control[0]))
				h.Level, h.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
				h.SetLen(unix.CmsgLen(2))
				binary.NativeEndian.PutUint16(control[unix.CmsgLen(0):], uint16(stride))
			}
			if _, err := unix.SendmsgN(attacker, data, control, sockaddr(unix.AF_INET, b.addr()), 0); err != nil {
				t.Fatalf("%d bytes in pieces of %d: %v", size, stride, err)
			}
		}
		a.send(t, good)
		if got := b.receive(t); !bytes.Equal(got, good) {
			t.Fatalf("after %d bytes: received %x, want %x", size, got, good)
		}
	}
	b.noEvent(t)
}

// In GotaTun a peer could send from an address of another one's, where that one's network was a part of its own: each
// peer's networks were looked at alone, and not which of all is the narrowest.
func TestGotaTunSubsetSourceCheck(t *testing.T) {
	toDevice, ofDevice := keyPair(crypto.ChaCha20Poly1305, 0)
	wide, narrow := netip.MustParseAddr("10.8.1.1"), netip.MustParseAddr("10.8.1.2")
	m := newMultiPeer(t, ofDevice, []PeerConfig{
		{ID: 1, VPN4: wide, Remote: netip.MustParseAddrPort("127.0.0.1:9")},
		{ID: 2, VPN4: narrow, Remote: netip.MustParseAddrPort("127.0.0.1:9")},
	},
		[]string{"10.0.0.0/8", "via", wide.String()},
		[]string{"10.9.0.0/16", "via", narrow.String()},
		[]string{"10.9.7.7/32", "via", wide.String()},
	)
	eventually(t, "the routes are followed", func() bool {
		return m.routes.Load().SourceHop(netip.MustParseAddr("10.9.7.7")) == wide
	})
	here := udpSocketIn(t, m.link.NetNS(), unix.AF_INET, bound("127.0.0.1:0"))
	id := uint32(0)
	for _, row := range []struct {
		source string
		owner  uint32
	}{
		{"10.7.0.1", 1}, {"10.9.0.1", 2}, {"10.9.255.255", 2}, {"10.9.7.7", 1}, {"10.9.7.6", 2}, {"10.10.0.0", 1},
		{"10.8.1.1", 1}, {"10.8.1.2", 2}, // each one's own address lies in the other's network
	} {
		for peer := range uint32(2) {
			id++
			want := "reverse-path"
			if peer+1 == row.owner {
				want = "delivered"
			}
			got := m.outcome(t, here, sealed(t, toDevice, peer+1, id, udp4(row.source, "10.8.0.1", "x")))
			if got != want {
				t.Errorf("from %s by peer %d: %s, want %s", row.source, peer+1, got, want)
			}
		}
	}
}
