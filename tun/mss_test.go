package tun_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ovpn-go/tun"
	"ovpn-go/tun/tuntest"
)

func TestClampMSS(t *testing.T) {
	ip4 := tuntest.IP{Src: client4, Dst: server4}
	ip6 := tuntest.IP{Src: client6, Dst: server6}
	options4 := ip4
	options4.Options = []byte{1, 1, 1, 0}
	extended6 := ip6
	extended6.ExtensionType, extended6.Extensions = 60, make([]byte, 16)
	extended6.Extensions[1] = 1
	fragment4 := ip4
	fragment4.Fragment = 0x2000

	mss := func(v uint16) []byte { return binary.BigEndian.AppendUint16([]byte{2, 4}, v) }
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	linux := func(v uint16) []byte { // as a Linux client sends them
		return join(mss(v), []byte{4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7})
	}
	const limit = 1360
	for _, row := range []struct {
		rule    string
		ip      tuntest.IP
		flags   uint8
		options []byte
		want    []byte // the options afterwards; nil means untouched
	}{
		{"lowered, IPv4", ip4, tuntest.SYN, linux(1460), linux(limit)},
		{"lowered, IPv6", ip6, tuntest.SYN, linux(1440), linux(limit)},
		{"lowered behind IPv4 options", options4, tuntest.SYN, linux(1460), linux(limit)},
		{"lowered behind extension headers", extended6, tuntest.SYN, linux(1460), linux(limit)},
		{"lowered in the answer", ip4, tuntest.SYN | tuntest.ACK, linux(1460), linux(limit)},
		{"lowered by one", ip4, tuntest.SYN, mss(limit + 1), mss(limit)},
		{"lowered at an odd offset", ip4, tuntest.SYN, join([]byte{1}, mss(0x1234+0x2000), []byte{1, 1, 1}), join([]byte{1}, mss(limit), []byte{1, 1, 1})},
		{"lowered in the last bytes", ip4, tuntest.SYN, join([]byte{1, 1, 1, 1}, mss(65535)), join([]byte{1, 1, 1, 1}, mss(limit))},
		{"lowered each time", ip4, tuntest.SYN, join(mss(1400), mss(100), mss(1500)), join(mss(limit), mss(100), mss(limit))},
		{"equal", ip4, tuntest.SYN, linux(limit), nil},
		{"never raised", ip4, tuntest.SYN, linux(536), nil},
		{"not added", ip4, tuntest.SYN, []byte{4, 2, 1, 1}, nil},
		{"no options", ip4, tuntest.SYN, nil, nil},
		{"no SYN", ip4, tuntest.ACK, linux(1460), nil},
		{"fragment", fragment4, tuntest.SYN, linux(1460), nil},
		{"behind the end of the options", ip4, tuntest.SYN, join([]byte{0, 0, 0, 0}, mss(1460)), nil},
		{"option without length", ip4, tuntest.SYN, join(mss(1460), []byte{1, 1, 1, 8}), nil},
		{"option of length 0", ip4, tuntest.SYN, join(mss(1460), []byte{8, 0, 1, 1}), nil},
		{"option of length 1", ip4, tuntest.SYN, join(mss(1460), []byte{8, 1, 1, 1}), nil},
		{"option too long", ip4, tuntest.SYN, join(mss(1460), []byte{1, 1, 8, 3}), nil},
		{"size of a wrong length", ip4, tuntest.SYN, join([]byte{2, 6, 9, 9, 9, 9}, []byte{1, 1}), nil},
	} {
		t.Run(row.rule, func(t *testing.T) {
			tcp := tuntest.TCP{Src: 1, Dst: 2, Seq: 3, Flags: row.flags, Options: row.options}
			got := row.ip.TCP(tcp, []byte("data"))
			want := bytes.Clone(got)
			if row.want != nil {
				tcp.Options = row.want
				want = row.ip.TCP(tcp, []byte("data"))
			}
			if changed := tun.ClampMSS(got, limit); changed != (row.want != nil) {
				t.Errorf("ClampMSS = %v", changed)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}

	t.Run("other protocol", func(t *testing.T) {
		for _, p := range [][]byte{
			tuntest.UDP4("10.8.0.2:1", "10.8.0.1:2", make([]byte, 40)),
			ip6.Raw(58, make([]byte, 40)),
		} {
			before := bytes.Clone(p)
			if tun.ClampMSS(p, 0) || !bytes.Equal(before, p) {
				t.Errorf("changed %x to %x", before, p)
			}
		}
	})
	t.Run("cut off anywhere", func(t *testing.T) {
		for _, ip := range []tuntest.IP{ip4, options4, ip6, extended6} {
			p := ip.TCP(tuntest.TCP{Flags: tuntest.SYN, Options: linux(1460)}, []byte("data"))
			for n := range p {
				short := bytes.Clone(p[:n])
				if tun.ClampMSS(short, limit) || !bytes.Equal(short, p[:n]) {
					t.Errorf("changed a packet of %d bytes cut off at %d", len(p), n)
				}
			}
		}
	})
	t.Run("bytes behind the packet are not its options", func(t *testing.T) {
		p := ip4.TCP(tuntest.TCP{Flags: tuntest.SYN, Options: mss(1460)}, nil)
		p[3] -= 4 // total length
		if tun.ClampMSS(p, limit) {
			t.Error("changed an option behind the packet's end")
		}
	})
}

// A wrong checksum must stay as wrong as it was.
func TestClampMSSKeepsChecksumError(t *testing.T) {
	random := newRandom(t)
	for range 2000 {
		ip := randomIP(random)
		options := append(bytes.Repeat([]byte{1}, random.IntN(4)), 2, 4, byte(random.Uint32()), byte(random.Uint32()))
		for len(options)%4 != 0 {
			options = append(options, 1)
		}
		tcp := tuntest.TCP{Src: 1, Seq: random.Uint32(), Flags: tuntest.SYN, Options: options}
		p := ip.TCP(tcp, randomBytes(random, random.IntN(10)))
		at := len(p) - 1 - random.IntN(8)
		p[at] ^= byte(random.IntN(2) * random.IntN(256))
		before := transportSum(p)
		tun.ClampMSS(p, uint16(random.Uint32()))
		if after := transportSum(p); after != before {
			t.Fatalf("sum of %x was %#04x", p, before)
		}
	}
}

// transportSum is the sum that is 0xffff if the checksum of a TCP packet is right.
func transportSum(p []byte) uint16 {
	at, addresses := int(p[0]&15)*4, []byte(nil)
	if p[0]>>4 == 6 {
		addresses = p[8:40]
		at = 40
		for next := p[6]; next == 60; {
			next, at = p[at], at+8+8*int(p[at+1])
		}
	} else {
		addresses = p[12:20]
	}
	b := append(bytes.Clone(addresses), 0, 0, 0, tuntest.ProtocolTCP)
	b = binary.BigEndian.AppendUint32(b, uint32(len(p)-at))
	return tuntest.Sum(append(b, p[at:]...))
}

func BenchmarkClampMSS(b *testing.B) {
	ip := tuntest.IP{Src: client4, Dst: server4}
	options := []byte{2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7}
	for name, p := range map[string][]byte{
		"SYN":  ip.TCP(tuntest.TCP{Flags: tuntest.SYN, Options: options}, nil),
		"data": ip.TCP(tuntest.TCP{Flags: tuntest.ACK}, make([]byte, 1364)),
		"UDP":  ip.UDP(tuntest.UDP{}, make([]byte, 1364)),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				tun.ClampMSS(p, 1360)
				if name == "SYN" {
					p[42], p[43] = 5, 0xb4
				}
			}
		})
	}
}

func TestClampMSSDoesNotAllocate(t *testing.T) {
	p := tuntest.IP{Src: client4, Dst: server4}.TCP(tuntest.TCP{Flags: tuntest.SYN, Options: []byte{2, 4, 0xff, 0xff}}, nil)
	limit := uint16(0xffff)
	if n := testing.AllocsPerRun(100, func() {
		limit--
		if !tun.ClampMSS(p, limit) {
			t.Fatal("not lowered")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func ExampleClampMSS() {
	// A peer behind Ethernet announces 1460 bytes, but the tunnel carries IP packets of 1416.
	syn := tuntest.IP{Src: client4, Dst: server4}.TCP(tuntest.TCP{Flags: tuntest.SYN, Options: []byte{2, 4, 0x05, 0xb4}}, nil)
	fmt.Println(tun.ClampMSS(syn, tun.DefaultMTU-40), binary.BigEndian.Uint16(syn[42:]))
	// Output: true 1376
}
