package tun_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"ovpn-go/tun"
	"ovpn-go/tun/tuntest"
)

// FuzzSplitter feeds frames of any content. The corpus in testdata was read from TUN devices whose
// stack was sending over TCP and UDP.
func FuzzSplitter(f *testing.F) {
	random := rand.New(rand.NewPCG(1, 1))
	for range 20 {
		super := randomSuper(random)
		if len(super.frame) < 5000 {
			f.Add(super.frame)
		}
	}
	ip := tuntest.IP{Src: client4, Dst: server4}
	f.Add(tuntest.Frame(ip.UDP(tuntest.UDP{}, nil)))
	f.Add(tuntest.Partial(ip, tuntest.ProtocolTCP, ip.TCP(tuntest.TCP{}, nil)))
	f.Fuzz(func(t *testing.T, frame []byte) {
		want, refused := tuntest.Segment(frame)
		var s tun.Splitter
		if err := s.Reset(bytes.Clone(frame)); err != nil {
			if _, ok := s.Next(); ok || s.Packets() != 0 {
				t.Fatal("packets after an error")
			}
			if refused == nil && len(frame) > tun.VnetHdrLen && len(frame) <= tun.MaxFrame && headerLen(want[0]) <= 512 {
				t.Fatalf("Reset refuses what a kernel takes: %v", err)
			}
			return
		}
		got := split(t, &s, bytes.Clone(frame))
		if refused == nil {
			if diff := diffPackets(want, got); diff != "" {
				t.Fatalf("(-want +got):\n%s", diff)
			}
			return
		}
		for _, p := range got {
			if len(p) == 0 || len(p) > len(frame)-tun.VnetHdrLen {
				t.Fatalf("a packet of %d bytes from a frame of %d", len(p), len(frame))
			}
		}
	})
}

// headerLen returns the length of all headers of a packet from a super-frame.
func headerLen(p []byte) int {
	at, protocol := transportOf(p)
	if protocol == tuntest.ProtocolTCP && at+13 < len(p) {
		return at + int(p[at+12]>>4)*4
	}
	return at + 8
}

// transportOf finds the transport header of a packet that may be anything; the offset is beyond the
// packet if there is none.
func transportOf(p []byte) (at int, protocol uint8) {
	const none = 1 << 20
	if len(p) >= 20 && p[0]>>4 == 4 {
		if binary.BigEndian.Uint16(p[6:])&0x3fff != 0 || p[0]&15 < 5 {
			return none, 0
		}
		return int(p[0]&15) * 4, p[9]
	}
	if len(p) < 40 || p[0]>>4 != 6 {
		return none, 0
	}
	at, protocol = 40, p[6]
	for protocol == 0 || protocol == 43 || protocol == 60 {
		if at+8 > len(p) {
			return none, 0
		}
		protocol, at = p[at], at+8+8*int(p[at+1])
	}
	return at, protocol
}

// FuzzCoalescer runs a script on a Coalescer: packets of two flows that deviate, packets of any
// bytes, packets abandoned, flushes. What comes out must be what went in.
func FuzzCoalescer(f *testing.F) {
	f.Add(uint64(1), []byte{2, 2, 2, 2, 0})
	f.Add(uint64(2), []byte{2, 3, 2, 3, 2, 1, 5, 2, 0})
	f.Add(uint64(3), bytes.Repeat([]byte{3}, 100))
	for deviation := range byte(deviations) {
		f.Add(uint64(deviation), []byte{2, 2, 4, deviation, 2, 2, 4, deviation, 4, deviation})
	}
	packet := tuntest.UDP4("10.8.0.2:1", "10.8.0.1:2", []byte("x"))
	f.Add(uint64(4), append([]byte{6, byte(len(packet))}, packet...))
	f.Fuzz(func(t *testing.T, seed uint64, script []byte) {
		random := rand.New(rand.NewPCG(seed, 0))
		streams := []*stream{newStream(random), newStream(random)}
		g := newGather(t)
		// next takes a byte of the script, 0 behind its end.
		next := func() (b byte) {
			if len(script) > 0 {
				b, script = script[0], script[1:]
			}
			return b
		}
		for steps := 0; len(script) > 0 && steps < 200; steps++ {
			switch op := next(); op % 8 {
			case 0:
				g.flush()
			case 1:
				g.abandon(randomBytes(random, 1+int(next())*8))
			case 2, 3:
				g.commit(streams[op%2].deviate(-1))
			case 4, 5:
				g.commit(streams[op%2].deviate(int(next()) % deviations))
			case 6, 7:
				n := min(1+int(next()), len(script))
				if n > 0 {
					g.commit(script[:n])
					script = script[n:]
				}
			}
		}
		g.flush()
	})
}

// FuzzClampMSS feeds packets of any content.
func FuzzClampMSS(f *testing.F) {
	options := []byte{2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7}
	ip6 := tuntest.IP{Src: client6, Dst: server6, ExtensionType: 60, Extensions: make([]byte, 8)}
	f.Add(tuntest.IP{Src: client4, Dst: server4}.TCP(tuntest.TCP{Flags: tuntest.SYN, Options: options}, nil), uint16(1360))
	f.Add(ip6.TCP(tuntest.TCP{Flags: tuntest.SYN, Options: append([]byte{1}, append(options, 0, 0, 0)...)}, nil), uint16(1000))
	f.Fuzz(func(t *testing.T, packet []byte, limit uint16) {
		before := bytes.Clone(packet)
		want, sizes := sizesAbove(before, limit)
		got := tun.ClampMSS(packet, limit)
		if got != want {
			t.Fatalf("ClampMSS = %v, want %v", got, want)
		}
		if !got {
			if !bytes.Equal(before, packet) {
				t.Fatalf("changed %x to %x", before, packet)
			}
			return
		}
		at, _ := transportOf(before)
		if a, b := tuntest.Sum(before[at:]), tuntest.Sum(packet[at:]); a != b && a%0xffff != b%0xffff {
			t.Fatalf("sum was %#x, is %#x", a, b)
		}
		for _, i := range sizes {
			if v := binary.BigEndian.Uint16(packet[i:]); v != limit {
				t.Fatalf("size at %d is %d", i, v)
			}
			copy(packet[i:], before[i:i+2])
		}
		copy(packet[at+16:], before[at+16:at+18])
		if !bytes.Equal(before, packet) {
			t.Fatalf("something else has changed")
		}
	})
}

// sizesAbove says whether a packet is a whole TCP SYN with well-formed options, and where maximum
// segment sizes above limit lie.
func sizesAbove(p []byte, limit uint16) (any bool, sizes []int) {
	at, protocol := transportOf(p)
	if protocol != tuntest.ProtocolTCP || at > len(p) {
		return false, nil
	}
	n := int(binary.BigEndian.Uint16(p[2:]))
	if p[0]>>4 == 6 {
		n = 40 + int(binary.BigEndian.Uint16(p[4:]))
	}
	if n > len(p) || at+20 > n {
		return false, nil
	}
	end := at + int(p[at+12]>>4)*4
	if end < at+20 || end > n || p[at+13]&tuntest.SYN == 0 {
		return false, nil
	}
	for i := at + 20; i < end && p[i] != 0; {
		if p[i] == 1 {
			i++
			continue
		}
		if i+2 > end || p[i+1] < 2 || i+int(p[i+1]) > end {
			return false, nil
		}
		if p[i] == 2 && p[i+1] == 4 && binary.BigEndian.Uint16(p[i+2:]) > limit {
			sizes = append(sizes, i+2)
		}
		i += int(p[i+1])
	}
	return len(sizes) > 0, sizes
}
