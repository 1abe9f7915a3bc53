package tun_test

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"ovpn-go/tun"
	"ovpn-go/tun/tuntest"
)

func TestTooBigMessages(t *testing.T) {
	ip4 := tuntest.IP{Src: client4, Dst: server4, Fragment: tuntest.DontFragment, ID: 7}
	ip6 := tuntest.IP{Src: client6, Dst: server6}
	ip6Extended := tuntest.IP{Src: client6, Dst: server6, ExtensionType: 60, Extensions: make([]byte, 8)}
	for _, row := range []struct {
		rule     string
		packet   []byte
		mtu      int
		announce int
		length   int
	}{
		{"IPv4, quoted up to 576 bytes in all", ip4.UDP(tuntest.UDP{Src: 1}, make([]byte, 1472)), 1400, 1400, 576},
		{"IPv4, quoted whole", ip4.UDP(tuntest.UDP{Src: 1}, make([]byte, 100)), 100, 100, 28 + 128},
		{"IPv4 echo request", ip4.Raw(1, append([]byte{8, 0}, make([]byte, 100)...)), 100, 100, 28 + 122},
		{"IPv6, quoted up to 1280 bytes in all", ip6.UDP(tuntest.UDP{Src: 1}, make([]byte, 1452)), 1400, 1400, 1280},
		{"IPv6 never announces less than 1280", ip6.UDP(tuntest.UDP{Src: 1}, make([]byte, 1452)), 1000, 1280, 1280},
		{"IPv6 with extension headers", ip6Extended.UDP(tuntest.UDP{Src: 1}, make([]byte, 1400)), 1300, 1300, 1280},
		{"IPv6 echo request", ip6.Raw(58, append([]byte{128, 0}, make([]byte, 1400)...)), 1300, 1300, 1280},
	} {
		t.Run(row.rule, func(t *testing.T) {
			before := bytes.Clone(row.packet)
			b := bytes.Repeat([]byte{0xa5}, tun.MaxTooBig)
			n := tun.TooBig(b, row.packet, row.mtu)
			if n != row.length {
				t.Fatalf("%d bytes, want %d", n, row.length)
			}
			if !bytes.Equal(before, row.packet) {
				t.Error("the packet was changed")
			}
			checkTooBig(t, b[:n], row.packet, row.announce)
		})
	}
}

// checkTooBig reads the message with another implementation.
func checkTooBig(t *testing.T, message, about []byte, mtu int) {
	t.Helper()
	var body *icmp.PacketTooBig
	quoted := []byte(nil)
	if message[0]>>4 == 4 {
		h, err := ipv4.ParseHeader(message)
		if err != nil {
			t.Fatal(err)
		}
		if h.Src.String() != server4.String() || h.Dst.String() != client4.String() || h.TotalLen != len(message) || h.TTL != 64 || h.TOS != 0xc0 {
			t.Errorf("header %v", h)
		}
		if foldSum(message[:20]) != 0xffff || foldSum(message[20:]) != 0xffff {
			t.Error("wrong checksum")
		}
		if message[20] != 3 || message[21] != 4 || int(binary.BigEndian.Uint16(message[26:])) != mtu || binary.BigEndian.Uint16(message[24:]) != 0 {
			t.Errorf("icmp header %x", message[20:28])
		}
		quoted = message[28:]
	} else {
		h, err := ipv6.ParseHeader(message)
		if err != nil {
			t.Fatal(err)
		}
		if h.Src.String() != server6.String() || h.Dst.String() != client6.String() || h.PayloadLen != len(message)-40 || h.HopLimit != 64 {
			t.Errorf("header %v", h)
		}
		pseudo := append(append([]byte{}, message[8:40]...), 0, 0, byte(h.PayloadLen>>8), byte(h.PayloadLen), 0, 0, 0, 58)
		if foldSum(append(pseudo, message[40:]...)) != 0xffff {
			t.Error("wrong checksum")
		}
		m, err := icmp.ParseMessage(58, message[40:])
		if err != nil {
			t.Fatal(err)
		}
		var ok bool
		if body, ok = m.Body.(*icmp.PacketTooBig); !ok || body.MTU != mtu {
			t.Fatalf("message %+v", m)
		}
		quoted = body.Data
	}
	if !bytes.HasPrefix(about, quoted) {
		t.Error("the quoted packet is another")
	}
}

func foldSum(b []byte) uint16 {
	var s uint32
	for i, c := range b {
		s += uint32(c) << (8 * (1 - i&1))
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

func TestNobodyIsToldTooBig(t *testing.T) {
	const df = tuntest.DontFragment
	payload := make([]byte, 1400)
	ip := func(src, dst string, fragment uint16) tuntest.IP {
		return tuntest.IP{Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst), Fragment: fragment}
	}
	icmpOf := func(typ byte) []byte { return append([]byte{typ, 0}, payload...) }
	extended := ip("fd00::1", "fd00::2", 0)
	extended.ExtensionType, extended.Extensions = 60, make([]byte, 8)
	fragment := ip("fd00::1", "fd00::2", 0)
	fragment.ExtensionType, fragment.Extensions = 44, []byte{0, 0, 0, 8, 0, 0, 0, 1}
	for _, row := range []struct {
		rule   string
		packet []byte
	}{
		{"may be fragmented", ip("10.0.0.1", "10.0.0.2", 0).UDP(tuntest.UDP{}, payload)},
		{"fits", ip("10.0.0.1", "10.0.0.2", df).UDP(tuntest.UDP{}, payload[:1272])},
		{"fits, IPv6", ip("fd00::1", "fd00::2", 0).UDP(tuntest.UDP{}, payload[:1252])},
		{"later fragment", ip("10.0.0.1", "10.0.0.2", df|10).UDP(tuntest.UDP{}, payload)},
		{"later fragment, IPv6", fragment.Raw(17, payload)},
		{"ICMP error", ip("10.0.0.1", "10.0.0.2", df).Raw(1, icmpOf(3))},
		{"ICMP of unknown type", ip("10.0.0.1", "10.0.0.2", df).Raw(1, icmpOf(42))},
		{"ICMPv6 error", ip("fd00::1", "fd00::2", 0).Raw(58, icmpOf(1))},
		{"ICMPv6 redirect", ip("fd00::1", "fd00::2", 0).Raw(58, icmpOf(137))},
		{"ICMPv6 error behind a header", extended.Raw(58, icmpOf(3))},
		{"to a group", ip("10.0.0.1", "224.0.0.1", df).UDP(tuntest.UDP{}, payload)},
		{"to a group, IPv6", ip("fd00::1", "ff02::1", 0).UDP(tuntest.UDP{}, payload)},
		{"to everybody", ip("10.0.0.1", "255.255.255.255", df).UDP(tuntest.UDP{}, payload)},
		{"from nobody", ip("0.0.0.0", "10.0.0.2", df).UDP(tuntest.UDP{}, payload)},
		{"from nobody, IPv6", ip("::", "fd00::2", 0).UDP(tuntest.UDP{}, payload)},
		{"from the host itself", ip("127.0.0.1", "10.0.0.2", df).UDP(tuntest.UDP{}, payload)},
		{"from a group", ip("239.1.1.1", "10.0.0.2", df).UDP(tuntest.UDP{}, payload)},
		{"no IP", bytes.Repeat([]byte{0x50}, 1500)},
		{"cut off", ip("10.0.0.1", "10.0.0.2", df).UDP(tuntest.UDP{}, payload)[:1400]},
	} {
		if n := tun.TooBig(make([]byte, tun.MaxTooBig), row.packet, 1300); n != 0 {
			t.Errorf("%s: %d bytes", row.rule, n)
		}
	}
}

func FuzzTooBig(f *testing.F) {
	f.Add(tuntest.IP{Src: client4, Dst: server4, Fragment: tuntest.DontFragment}.UDP(tuntest.UDP{Src: 1}, make([]byte, 1400)), uint16(1300))
	f.Add(tuntest.IP{Src: client6, Dst: server6, ExtensionType: 60, Extensions: make([]byte, 8)}.UDP(tuntest.UDP{Src: 1}, make([]byte, 1400)), uint16(1300))
	f.Fuzz(func(t *testing.T, packet []byte, mtu uint16) {
		before := bytes.Clone(packet)
		b := make([]byte, tun.MaxTooBig)
		n := tun.TooBig(b, packet, int(mtu))
		if !bytes.Equal(before, packet) {
			t.Error("the packet was changed")
		}
		if n == 0 {
			return
		}
		if n < 28+20 || n > tun.MaxTooBig || b[0]>>4 != packet[0]>>4 {
			t.Fatalf("%d bytes: %x", n, b[:28])
		}
		// An error is never answered, so not this one either, however small the next link.
		if again := tun.TooBig(make([]byte, tun.MaxTooBig), b[:n], 68); again != 0 {
			t.Errorf("the message is answered with %d bytes", again)
		}
	})
}
