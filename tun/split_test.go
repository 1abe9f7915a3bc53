package tun_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ovpn-go/tun"
	"ovpn-go/tun/tuntest"
)

// split returns copies of all packets of a frame, each taken before the following Next. The packet's
// memory is destroyed afterwards, as a caller may.
func split(t testing.TB, s *tun.Splitter, frame []byte) [][]byte {
	t.Helper()
	if err := s.Reset(frame); err != nil {
		t.Fatalf("Reset: %v", err)
	}
	count, size := s.Packets(), s.SegmentSize()
	var packets [][]byte
	for {
		left := s.Packets()
		p, ok := s.Next()
		if !ok {
			break
		}
		if want := count - len(packets); left != want {
			t.Errorf("Packets before packet %d = %d, want %d", len(packets), left, want)
		}
		if last := len(packets) == count-1; len(p) > size || len(p) < size && !last {
			t.Errorf("packet %d of %d has %d bytes, SegmentSize is %d", len(packets), count, len(p), size)
		}
		packets = append(packets, bytes.Clone(p))
		for i := range p {
			p[i] = 0xdb
		}
	}
	if len(packets) != count {
		t.Errorf("%d packets, Packets announced %d", len(packets), count)
	}
	if p, ok := s.Next(); ok || p != nil {
		t.Errorf("Next after the last packet = %d bytes, %v", len(p), ok)
	}
	return packets
}

// superFrame is a frame and the packets that it must yield, made one by one from the same values.
type superFrame struct {
	frame   []byte
	packets [][]byte
}

// randomSuper makes a super-frame of random shape and its packets.
func randomSuper(random *rand.Rand) superFrame {
	ip := randomIP(random)
	size := 1 + random.IntN([]int{3, 100, 1460, 9000}[random.IntN(4)])
	length := 1 + random.IntN(min(size*64, 65000-len(ip.Extensions)-len(ip.Options)-100))
	payload := randomBytes(random, length)

	var f superFrame
	if random.IntN(3) > 0 {
		tcp := tuntest.TCP{
			Src: uint16(random.Uint32()), Dst: uint16(random.Uint32()),
			Seq: random.Uint32(), Ack: random.Uint32(),
			Flags:   uint8(random.Uint32()),
			Window:  uint16(random.Uint32()),
			Urgent:  uint16(random.Uint32()),
			Options: randomBytes(random, 4*random.IntN(11)),
		}
		f.frame = tuntest.SuperTCP(ip, tcp, payload, size)
		for len(payload) > 0 {
			data := payload[:min(size, len(payload))]
			payload = payload[len(data):]
			segment := tcp
			if len(payload) > 0 {
				segment.Flags &^= tuntest.FIN | tuntest.PSH
			}
			if len(f.packets) > 0 {
				segment.Flags &^= tuntest.CWR
			}
			f.packets = append(f.packets, ip.TCP(segment, data))
			tcp.Seq += uint32(len(data))
			ip.ID++
		}
		return f
	}
	udp := tuntest.UDP{Src: uint16(random.Uint32()), Dst: uint16(random.Uint32())}
	f.frame = tuntest.SuperUDP(ip, udp, payload, size)
	for len(payload) > 0 {
		data := payload[:min(size, len(payload))]
		payload = payload[len(data):]
		f.packets = append(f.packets, ip.UDP(udp, data))
		ip.ID++
	}
	return f
}

func randomIP(random *rand.Rand) tuntest.IP {
	ip := tuntest.IP{TOS: uint8(random.Uint32()), TTL: uint8(1 + random.IntN(255)), ID: uint16(random.Uint32())}
	if random.IntN(2) == 0 {
		ip.Src, ip.Dst = netip.AddrFrom4([4]byte(randomBytes(random, 4))), server4
		ip.Fragment = []uint16{0, tuntest.DontFragment}[random.IntN(2)]
		ip.Options = randomBytes(random, 4*random.IntN(11)*random.IntN(2))
		return ip
	}
	ip.Src, ip.Dst = netip.AddrFrom16([16]byte(randomBytes(random, 16))), server6
	ip.Flow = random.Uint32() & 0xfffff
	for range random.IntN(3) * random.IntN(2) {
		// Destination options (60), each followed by another: the builder sets the last one's next header.
		h := randomBytes(random, 8+8*random.IntN(3))
		h[0], h[1] = 60, uint8(len(h)/8-1)
		ip.ExtensionType = 60
		ip.Extensions = append(ip.Extensions, h...)
	}
	return ip
}

func TestSplitEqualsSeparatePackets(t *testing.T) {
	random := newRandom(t)
	var s tun.Splitter
	for i := range 2000 {
		f := randomSuper(random)
		if i%2 == 0 {
			// A forwarding kernel announces any length here.
			f.frame[2], f.frame[3] = byte(random.Uint32()), byte(random.Uint32())
		}
		model, err := tuntest.Segment(f.frame)
		if err != nil {
			t.Fatalf("frame %d: the model refuses it: %v", i, err)
		}
		if diff := diffPackets(f.packets, model); diff != "" {
			t.Fatalf("frame %d: the model disagrees with the builder (-builder +model):\n%s", i, diff)
		}
		got := split(t, &s, bytes.Clone(f.frame))
		if diff := diffPackets(f.packets, got); diff != "" {
			t.Fatalf("frame %d (-want +got):\n%s", i, diff)
		}
	}
}

// An unfinished checksum over addresses that are not those of the IP header: a routing header holds
// the final destination, and the socket has summed that one.
func TestSplitKeepsPseudoHeaderOfRoutingHeader(t *testing.T) {
	final := netip.MustParseAddr("fd00:8::99")
	routing := append([]byte{0, 2, 0, 1, 0, 0, 0, 0}, final.AsSlice()...)
	real := tuntest.IP{Src: client6, Dst: final, Extensions: routing, ExtensionType: unix.IPPROTO_ROUTING}
	tcp := tuntest.TCP{Src: 1, Dst: 2, Seq: 7, Flags: tuntest.ACK}
	payload := bytes.Repeat([]byte("x"), 2500)

	frame := tuntest.SuperTCP(real, tcp, payload, 1000)
	copy(frame[tun.VnetHdrLen+24:], server6.AsSlice()) // the next hop
	var s tun.Splitter
	for i, p := range split(t, &s, frame) {
		tcp.Seq = 7 + uint32(i)*1000
		want := real.TCP(tcp, payload[i*1000:min(i*1000+1000, len(payload))])
		copy(want[24:], server6.AsSlice())
		if diff := cmp.Diff(want, p); diff != "" {
			t.Errorf("packet %d (-want +got):\n%s", i, diff)
		}
	}
}

func TestSplitWithoutPartialChecksum(t *testing.T) {
	ip := tuntest.IP{Src: client4, Dst: server4, ID: 5}
	payload := bytes.Repeat([]byte("y"), 250)
	var s tun.Splitter

	t.Run("TCP checksums are computed from the addresses", func(t *testing.T) {
		frame := tuntest.SuperTCP(ip, tuntest.TCP{Seq: 9, Flags: tuntest.ACK}, payload, 100)
		want, err := tuntest.Segment(frame)
		if err != nil {
			t.Fatal(err)
		}
		frame[0] = 0
		if diff := diffPackets(want, split(t, &s, frame)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
	t.Run("a UDP checksum that was left out stays out", func(t *testing.T) {
		udp := tuntest.UDP{Src: 1, Dst: 2, NoChecksum: true}
		frame := tuntest.SuperUDP(ip, udp, payload, 100)
		frame[0] = 0
		copy(frame[tun.VnetHdrLen+20+6:], []byte{0, 0})
		got := split(t, &s, frame)
		var want [][]byte
		for i, n := range []int{100, 100, 50} {
			ip.ID = 5 + uint16(i)
			want = append(want, ip.UDP(udp, payload[:n]))
		}
		if diff := diffPackets(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

func TestSplitOrdinaryPackets(t *testing.T) {
	random := newRandom(t)
	var s tun.Splitter
	for range 500 {
		ip := randomIP(random)
		payload := randomBytes(random, random.IntN(1500))
		for name, p := range map[string][]byte{
			"TCP": ip.TCP(tuntest.TCP{Flags: uint8(random.Uint32()), Options: randomBytes(random, 4*random.IntN(11))}, payload),
			"UDP": ip.UDP(tuntest.UDP{Src: 1}, payload),
		} {
			if diff := diffPackets([][]byte{p}, split(t, &s, tuntest.Frame(p))); diff != "" {
				t.Fatalf("complete %s packet (-want +got):\n%s", name, diff)
			}
			protocol := uint8(tuntest.ProtocolTCP)
			if name == "UDP" {
				protocol = tuntest.ProtocolUDP
			}
			frame := tuntest.Partial(ip, protocol, p)
			// A complete TCP checksum of zero is written as all ones, which is the same number.
			want, err := tuntest.Segment(frame)
			if err != nil {
				t.Fatal(err)
			}
			if diff := diffPackets(want, split(t, &s, frame)); diff != "" {
				t.Fatalf("partial %s packet (-want +got):\n%s", name, diff)
			}
		}
	}
	t.Run("a checksum that comes out as zero is sent as all ones", func(t *testing.T) {
		ip := tuntest.IP{Src: client4, Dst: server4}
		p := ip.UDP(tuntest.UDP{Src: 1, Dst: 2}, []byte{0, 0})
		check := uint16(p[26])<<8 | uint16(p[27])
		p = ip.UDP(tuntest.UDP{Src: 1, Dst: 2}, []byte{byte(check >> 8), byte(check)})
		if p[26] != 0xff || p[27] != 0xff {
			t.Fatalf("the packet's checksum is %x, the test wants ffff", p[26:28])
		}
		got := split(t, &s, tuntest.Partial(ip, tuntest.ProtocolUDP, p))
		if diff := diffPackets([][]byte{p}, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
	t.Run("what is not IP passes", func(t *testing.T) {
		for _, p := range [][]byte{{0}, {0x45}, {0xf0, 1, 2}, bytes.Repeat([]byte{0x60}, 39)} {
			if diff := diffPackets([][]byte{p}, split(t, &s, tuntest.Frame(p))); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		}
	})
}

func TestSplitRefusesMalformedFrames(t *testing.T) {
	ip4 := tuntest.IP{Src: client4, Dst: server4}
	ip6 := tuntest.IP{Src: client6, Dst: server6}
	payload := make([]byte, 3000)
	tcp4 := func() []byte { return tuntest.SuperTCP(ip4, tuntest.TCP{Flags: tuntest.ACK}, payload, 1000) }
	tcp6 := func() []byte { return tuntest.SuperTCP(ip6, tuntest.TCP{Flags: tuntest.ACK}, payload, 1000) }
	udp4 := func() []byte { return tuntest.SuperUDP(ip4, tuntest.UDP{}, payload, 1000) }
	partial := func() []byte {
		return tuntest.Partial(ip4, tuntest.ProtocolUDP, ip4.UDP(tuntest.UDP{}, nil))
	}
	// edit changes the vnet header of a frame.
	edit := func(frame []byte, change func(*tun.VnetHdr)) []byte {
		var h tun.VnetHdr
		if err := h.Decode(frame); err != nil {
			t.Fatal(err)
		}
		change(&h)
		h.Encode(frame)
		return frame
	}
	poke := func(frame []byte, at int, b ...byte) []byte {
		copy(frame[tun.VnetHdrLen+at:], b)
		return frame
	}
	for _, row := range []struct {
		rule  string
		frame []byte
	}{
		{"nothing", nil},
		{"less than a vnet header", make([]byte, tun.VnetHdrLen-1)},
		{"no packet", make([]byte, tun.VnetHdrLen)},
		{"checksum starts behind the packet", edit(partial(), func(h *tun.VnetHdr) { h.CsumStart = 28 })},
		{"checksum lies half behind the packet", edit(partial(), func(h *tun.VnetHdr) { h.CsumOffset = 7 })},
		{"checksum offsets overflow 16 bits", edit(partial(), func(h *tun.VnetHdr) { h.CsumStart, h.CsumOffset = 0xffff, 0xffff })},
		{"segment size 0, TCP", edit(tcp4(), func(h *tun.VnetHdr) { h.GSOSize = 0 })},
		{"segment size 0, UDP", edit(udp4(), func(h *tun.VnetHdr) { h.GSOSize = 0 })},
		{"TCP/IPv4 type for IPv6", edit(tcp6(), func(h *tun.VnetHdr) { h.GSOType = unix.VIRTIO_NET_HDR_GSO_TCPV4 })},
		{"TCP/IPv6 type for IPv4", edit(tcp4(), func(h *tun.VnetHdr) { h.GSOType = unix.VIRTIO_NET_HDR_GSO_TCPV6 })},
		{"UDP type for TCP", edit(tcp4(), func(h *tun.VnetHdr) { h.GSOType = unix.VIRTIO_NET_HDR_GSO_UDP_L4 })},
		{"TCP type for UDP", edit(udp4(), func(h *tun.VnetHdr) { h.GSOType = unix.VIRTIO_NET_HDR_GSO_TCPV4 })},
		{"UDP fragmentation offload", edit(udp4(), func(h *tun.VnetHdr) { h.GSOType = unix.VIRTIO_NET_HDR_GSO_UDP })},
		{"unknown type", edit(tcp4(), func(h *tun.VnetHdr) { h.GSOType = 9 })},
		{"checksum not where the TCP header is", edit(tcp4(), func(h *tun.VnetHdr) { h.CsumStart = 24 })},
		{"checksum not where the TCP checksum is", edit(tcp4(), func(h *tun.VnetHdr) { h.CsumOffset = 6 })},
		{"checksum starts behind the super-frame", edit(tcp4(), func(h *tun.VnetHdr) { h.CsumStart = 65535 })},
		{"IPv4 header shorter than 20", poke(tcp4(), 0, 0x44)},
		{"IPv4 header longer than the packet", poke(tcp4()[:tun.VnetHdrLen+40], 0, 0x4f)},
		{"IPv4 fragment", poke(tcp4(), 6, 0x20)},
		{"IPv4 total length too small", poke(tcp4(), 2, 0, 50)},
		{"TCP header shorter than 20", poke(tcp4(), 32, 0x40)},
		{"TCP header longer than the packet", poke(tcp4()[:tun.VnetHdrLen+50], 32, 0xf0)},
		{"IPv4 cut off", tcp4()[:2000]},
		{"IPv6 cut off", tcp6()[:2000]},
		{"IPv4 header cut off", tcp4()[:tun.VnetHdrLen+19]},
		{"IPv6 header cut off", tcp6()[:tun.VnetHdrLen+39]},
		{"TCP header cut off", poke(tcp4()[:tun.VnetHdrLen+39], 2, 0, 39)},
		{"UDP header cut off", poke(udp4()[:tun.VnetHdrLen+27], 2, 0, 27)},
		{"no payload", tuntest.SuperTCP(ip4, tuntest.TCP{Flags: tuntest.ACK}, nil, 1000)},
		{"IPv6 extension header cut off", poke(tcp6()[:tun.VnetHdrLen+44], 4, 0, 4, 60)},
		{"IPv6 extension header too long", poke(tcp6(), 6, 60, 64, 0, 0, 0, 0, 0, 0, 0, 0)},
		{"IPv6 fragment", poke(tcp6(), 6, 44)},
		{"headers too long", func() []byte {
			ip := ip6
			ip.ExtensionType, ip.Extensions = 60, make([]byte, 520)
			ip.Extensions[1] = 64
			return tuntest.SuperTCP(ip, tuntest.TCP{Flags: tuntest.ACK}, payload, 1000)
		}()},
		{"larger than IP allows", edit(make([]byte, tun.MaxFrame+1), func(h *tun.VnetHdr) {
			h.GSOType, h.GSOSize = unix.VIRTIO_NET_HDR_GSO_TCPV4, 1000
		})},
	} {
		t.Run(row.rule, func(t *testing.T) {
			var s tun.Splitter
			if err := s.Reset(row.frame); !errors.Is(err, tun.ErrMalformed) {
				t.Errorf("Reset = %v, want ErrMalformed", err)
			}
			if n := s.Packets(); n != 0 {
				t.Errorf("%d packets after the error", n)
			}
			if p, ok := s.Next(); ok {
				t.Errorf("Next = %d bytes after the error", len(p))
			}
		})
	}
}

func TestSplitErrorForgetsEarlierFrame(t *testing.T) {
	ip := tuntest.IP{Src: client4, Dst: server4}
	var s tun.Splitter
	if err := s.Reset(tuntest.SuperUDP(ip, tuntest.UDP{}, make([]byte, 3000), 1000)); err != nil {
		t.Fatal(err)
	}
	s.Next()
	if err := s.Reset(nil); !errors.Is(err, tun.ErrMalformed) {
		t.Fatalf("Reset = %v, want ErrMalformed", err)
	}
	if _, ok := s.Next(); ok {
		t.Error("Next delivers a packet of the earlier frame")
	}
}

// benchFrame is a super-frame as a bulk transfer in a 1416-byte tunnel produces it.
func benchFrame(name string) []byte {
	ip4 := tuntest.IP{Src: client4, Dst: server4, Fragment: tuntest.DontFragment}
	ip6 := tuntest.IP{Src: client6, Dst: server6}
	tcp := tuntest.TCP{Src: 5001, Dst: 40000, Ack: 1, Flags: tuntest.ACK, Window: 512, Options: make([]byte, 12)}
	switch name {
	case "TCP4":
		return tuntest.SuperTCP(ip4, tcp, make([]byte, 45*1364), 1364)
	case "TCP6":
		return tuntest.SuperTCP(ip6, tcp, make([]byte, 45*1344), 1344)
	case "UDP4":
		return tuntest.SuperUDP(ip4, tuntest.UDP{Src: 443, Dst: 40000}, make([]byte, 45*1388), 1388)
	}
	return tuntest.Partial(ip4, tuntest.ProtocolTCP, ip4.TCP(tcp, make([]byte, 1364)))
}

func BenchmarkSplit(b *testing.B) {
	for _, name := range []string{"TCP4", "TCP6", "UDP4", "partial"} {
		b.Run(name, func(b *testing.B) {
			frame := benchFrame(name)
			head := bytes.Clone(frame[:128])
			var s tun.Splitter
			b.SetBytes(int64(len(frame) - tun.VnetHdrLen))
			b.ReportAllocs()
			packets := 0
			for b.Loop() {
				copy(frame, head) // the first packet's headers are written over the frame's
				if s.Reset(frame) != nil {
					b.Fatal("malformed")
				}
				for {
					if _, ok := s.Next(); !ok {
						break
					}
					packets++
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(packets), "ns/packet")
		})
	}
}

func TestSplitDoesNotAllocate(t *testing.T) {
	for _, name := range []string{"TCP4", "TCP6", "UDP4", "partial"} {
		frame := benchFrame(name)
		head := bytes.Clone(frame[:128])
		var s tun.Splitter
		n := testing.AllocsPerRun(100, func() {
			copy(frame, head)
			if s.Reset(frame) != nil {
				t.Fatal(name, "is malformed")
			}
			for ok := true; ok; {
				_, ok = s.Next()
			}
			if s.Reset(frame[:9]) == nil {
				t.Fatal("a short frame is accepted")
			}
		})
		if n != 0 {
			t.Errorf("%s: %v allocations per frame", name, n)
		}
	}
}

func ExampleSplitter() {
	ip := tuntest.IP{Src: client4, Dst: server4}
	frame := tuntest.SuperUDP(ip, tuntest.UDP{Src: 1, Dst: 2}, make([]byte, 2500), 1000)

	var s tun.Splitter
	if err := s.Reset(frame); err != nil {
		fmt.Println(err)
	}
	fmt.Println(s.Packets(), "packets")
	for {
		packet, ok := s.Next()
		if !ok {
			break
		}
		fmt.Println(len(packet), "bytes to seal")
	}
	// Output:
	// 3 packets
	// 1028 bytes to seal
	// 1028 bytes to seal
	// 528 bytes to seal
}
