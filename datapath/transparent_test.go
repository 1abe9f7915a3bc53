package datapath

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ovpn-go/tun/tuntest"
)

// What one stack hands to the device at one end, the stack at the other end gets, packet for packet and byte for
// byte: after every super-frame has been taken apart, sealed, cut by UDP_SEGMENT, joined by GRO, opened, gathered
// and written. The slow model of segmentation says what either stack means.
func TestTunnelIsTransparent(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	checkTransparent(t, seed, 3000)
}

func FuzzTunnelIsTransparent(f *testing.F) {
	f.Add(uint64(1))
	f.Add(uint64(20261123))
	f.Fuzz(func(t *testing.T, seed uint64) { checkTransparent(t, seed, 40) })
}

func checkTransparent(t *testing.T, seed uint64, frames int) {
	random := rand.New(rand.NewPCG(seed, 0))
	a, b := newTunnel(t)
	traffic := traffic{random: random, host: 1, seq: random.Uint32()}
	for sent := 0; sent < frames; {
		var want [][]byte
		for range 1 + random.IntN(8) {
			frame := traffic.frame()
			packets, err := tuntest.Segment(frame)
			if err != nil {
				t.Fatal(err)
			}
			want = append(want, packets...)
			if _, err := a.link.stacks[0].Write(frame); err != nil {
				t.Fatal(err)
			}
			sent++
		}
		for len(want) > 0 {
			b.link.stacks[0].SetReadDeadline(time.Now().Add(10 * time.Second))
			frame := make([]byte, 70000)
			n, err := b.link.stacks[0].Read(frame)
			if err != nil {
				t.Fatalf("seed %d: %d packets are missing, drops %v and %v: %v", seed, len(want), a.Stats().Drops, b.Stats().Drops, err)
			}
			got, err := tuntest.Segment(frame[:n])
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			for _, p := range got {
				if len(want) == 0 {
					t.Fatalf("seed %d: a packet too many: %x", seed, p)
				}
				if sent, arrived := comparable4(want[0]), comparable4(p); !bytes.Equal(sent, arrived) {
					t.Fatalf("seed %d (-sent +arrived):\n%s", seed, cmp.Diff(sent, arrived))
				}
				want = want[1:]
			}
		}
	}
}

// comparable4 takes the id from an IPv4 packet with DF set, where it has no meaning (RFC 6864) and may change.
func comparable4(p []byte) []byte {
	if p[0]>>4 != 4 || p[6]&0x40 == 0 {
		return p
	}
	p = bytes.Clone(p)
	header := p[:int(p[0]&0xf)*4]
	damage := tuntest.Sum(header)
	binary.BigEndian.PutUint16(header[4:], 0)
	binary.BigEndian.PutUint16(header[10:], 0)
	// A checksum that was wrong stays as wrong.
	binary.BigEndian.PutUint16(header[10:], ^tuntest.Sum(header)+damage-0xffff)
	return p
}

// traffic is what hosts send, and what they hardly ever do.
type traffic struct {
	random *rand.Rand
	host   uint8 // the sender's
	seq    uint32
	id     uint16
}

// ip4 and ip6 are headers from the sender to another.
func (g *traffic) ip4() tuntest.IP {
	return tuntest.IP{Src: netip.AddrFrom4([4]byte{10, 8, 0, g.host}), Dst: netip.MustParseAddr("10.8.0.2"), ID: g.id}
}

func (g *traffic) ip6() tuntest.IP {
	return tuntest.IP{Src: netip.AddrFrom16([16]byte{0: 0xfd, 1: 8, 15: g.host}), Dst: netip.MustParseAddr("fd08::2")}
}

func (g *traffic) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(g.random.Uint32())
	}
	return b
}

// frame returns a packet or a super-frame that a stack may hand to a device of 1416 bytes.
func (g *traffic) frame() []byte {
	r := g.random
	ip := g.ip4()
	ip.TTL = uint8(1 + r.IntN(255))
	if r.IntN(2) == 0 {
		ip.Fragment = tuntest.DontFragment
	}
	if r.IntN(3) == 0 {
		ip = g.ip6()
		ip.Flow = r.Uint32N(1 << 20)
	}
	ip.TOS = []uint8{0, 0, 0, 1, 2, 3, 0xb8}[r.IntN(7)]
	flags := []uint8{tuntest.ACK, tuntest.ACK, tuntest.ACK | tuntest.PSH, tuntest.ACK | tuntest.FIN, tuntest.ACK | tuntest.CWR,
		tuntest.ACK | tuntest.URG, tuntest.ACK | tuntest.ECE, tuntest.RST, tuntest.SYN}
	tcp := tuntest.TCP{Src: uint16(1 + r.IntN(2)), Dst: 443, Seq: g.seq, Ack: 7, Flags: flags[r.IntN(len(flags))], Window: 500}
	if r.IntN(3) == 0 {
		tcp.Options = append([]byte{1, 1, 8, 10}, g.bytes(8)...)
	}
	udp := tuntest.UDP{Src: uint16(1 + r.IntN(2)), Dst: 4789}
	g.id++
	switch r.IntN(12) {
	case 0, 1, 2: // a bulk transfer
		tcp.Flags = flags[r.IntN(5)]
		size := 100 + r.IntN(1200)
		payload := g.bytes(size + 1 + r.IntN(40*size))
		if len(payload) > 60000 {
			payload = payload[:60000]
		}
		g.seq += uint32(len(payload))
		g.id += uint16(len(payload) / size)
		return tuntest.SuperTCP(ip, tcp, payload, size)
	case 3, 4:
		size := 1 + r.IntN(1300)
		payload := g.bytes(size + 1 + r.IntN(40*size))
		if len(payload) > 60000 {
			payload = payload[:60000]
		}
		g.id += uint16(len(payload) / size)
		return tuntest.SuperUDP(ip, udp, payload, size)
	case 5: // segments that go on, one at a time
		payload := g.bytes(1 + r.IntN(1300))
		g.seq += uint32(len(payload))
		return tuntest.Frame(ip.TCP(tcp, payload))
	case 6:
		return tuntest.Partial(ip, tuntest.ProtocolUDP, ip.UDP(udp, g.bytes(r.IntN(1300))))
	case 7: // a tunnel in the tunnel
		udp.NoChecksum = ip.Src.Is4()
		return tuntest.Frame(ip.UDP(udp, append([]byte{8, 0, 0, 0, 0, 0, 1, 0}, g.bytes(r.IntN(1200))...)))
	case 8: // fragments
		if ip.Src.Is4() {
			ip.Fragment = []uint16{0x2000, 0x2010, 0x0010}[r.IntN(3)]
			return tuntest.Frame(ip.Raw(tuntest.ProtocolUDP, g.bytes(8+8*r.IntN(100))))
		}
		ip.ExtensionType, ip.Extensions = 44, append([]byte{0, 0, 0, byte(1 + r.IntN(2)*8)}, g.bytes(4)...)
		return tuntest.Frame(ip.Raw(tuntest.ProtocolUDP, g.bytes(8+8*r.IntN(100))))
	case 9: // options and extension headers
		if ip.Src.Is4() {
			ip.Options = bytes.Repeat([]byte{1}, 4*(1+r.IntN(10)))
		} else {
			ip.ExtensionType, ip.Extensions = 60, append([]byte{0, 0, 1, 4}, make([]byte, 4)...)
		}
		payload := g.bytes(r.IntN(1200))
		if r.IntN(2) == 0 {
			return tuntest.Frame(ip.UDP(udp, payload))
		}
		g.seq += uint32(len(payload))
		return tuntest.Frame(ip.TCP(tcp, payload))
	case 10: // damaged before it came here
		p := ip.TCP(tcp, g.bytes(1+r.IntN(1000)))
		if r.IntN(2) == 0 {
			p = ip.UDP(udp, g.bytes(1+r.IntN(1000)))
		}
		p[len(p)-1-r.IntN(8)] ^= 1 << r.IntN(8)
		return tuntest.Frame(p)
	}
	return tuntest.Frame(ip.Raw(uint8(2+r.IntN(3)), g.bytes(r.IntN(100))))
}
