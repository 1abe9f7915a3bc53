package tuntest

import (
	"encoding/binary"
	"net/netip"
)

// Flags of a TCP header.
const (
	FIN = 0x01
	SYN = 0x02
	RST = 0x04
	PSH = 0x08
	ACK = 0x10
	URG = 0x20
	ECE = 0x40
	CWR = 0x80
)

// DontFragment is the IPv4 flag DF as a value of IP.Fragment.
const DontFragment = 0x4000

// Protocol numbers, of IPv4 and of IPv6's next header.
const (
	ProtocolTCP = 6
	ProtocolUDP = 17
)

// IP is the network header of a packet; the version is that of the addresses.
type IP struct {
	Src, Dst netip.Addr
	TOS      uint8  // IPv6: traffic class
	TTL      uint8  // IPv6: hop limit; 0 means 64
	Flow     uint32 // IPv6 only, 20 bits
	ID       uint16 // IPv4 only
	Fragment uint16 // IPv4 only: flags and fragment offset
	Options  []byte // IPv4 only, a multiple of 4 bytes

	// Extensions are complete IPv6 extension headers, except for the next-header field of the last
	// one, which is filled in. ExtensionType says what the first one is.
	Extensions    []byte
	ExtensionType uint8
}

// TCP is a TCP header.
type TCP struct {
	Src, Dst uint16
	Seq, Ack uint32
	Flags    uint8
	Window   uint16
	Urgent   uint16
	Options  []byte // a multiple of 4 bytes, at most 40
}

// UDP is a UDP header.
type UDP struct {
	Src, Dst   uint16
	NoChecksum bool
}

// TCP returns a complete packet.
func (ip IP) TCP(tcp TCP, payload []byte) []byte {
	segment := append(tcp.header(), payload...)
	binary.BigEndian.PutUint16(segment[16:], ^ip.transportSum(ProtocolTCP, segment))
	return ip.packet(ProtocolTCP, segment)
}

// UDP returns a complete packet.
func (ip IP) UDP(udp UDP, payload []byte) []byte {
	segment := append(udp.header(len(payload)), payload...)
	if !udp.NoChecksum {
		check := ^ip.transportSum(ProtocolUDP, segment)
		if check == 0 {
			check = 0xffff // RFC 768: zero would mean that there is none
		}
		binary.BigEndian.PutUint16(segment[6:], check)
	}
	return ip.packet(ProtocolUDP, segment)
}

// Raw returns a packet of any protocol.
func (ip IP) Raw(protocol uint8, payload []byte) []byte {
	return ip.packet(protocol, payload)
}

func (tcp TCP) header() []byte {
	h := make([]byte, 20, 20+len(tcp.Options))
	binary.BigEndian.PutUint16(h[0:], tcp.Src)
	binary.BigEndian.PutUint16(h[2:], tcp.Dst)
	binary.BigEndian.PutUint32(h[4:], tcp.Seq)
	binary.BigEndian.PutUint32(h[8:], tcp.Ack)
	h[12] = uint8(20+len(tcp.Options)) / 4 << 4
	h[13] = tcp.Flags
	binary.BigEndian.PutUint16(h[14:], tcp.Window)
	binary.BigEndian.PutUint16(h[18:], tcp.Urgent)
	return append(h, tcp.Options...)
}

func (udp UDP) header(payload int) []byte {
	h := make([]byte, 8)
	binary.BigEndian.PutUint16(h[0:], udp.Src)
	binary.BigEndian.PutUint16(h[2:], udp.Dst)
	binary.BigEndian.PutUint16(h[4:], uint16(8+payload))
	return h
}

// packet puts the IP header in front of a transport segment.
func (ip IP) packet(protocol uint8, segment []byte) []byte {
	ttl := ip.TTL
	if ttl == 0 {
		ttl = 64
	}
	if ip.Src.Is4() {
		h := make([]byte, 20)
		h[0] = 4<<4 | uint8(20+len(ip.Options))/4
		h[1] = ip.TOS
		binary.BigEndian.PutUint16(h[2:], uint16(20+len(ip.Options)+len(segment)))
		binary.BigEndian.PutUint16(h[4:], ip.ID)
		binary.BigEndian.PutUint16(h[6:], ip.Fragment)
		h[8] = ttl
		h[9] = protocol
		copy(h[12:], ip.Src.AsSlice())
		copy(h[16:], ip.Dst.AsSlice())
		h = append(h, ip.Options...)
		binary.BigEndian.PutUint16(h[10:], ^Sum(h))
		return append(h, segment...)
	}
	h := make([]byte, 40)
	binary.BigEndian.PutUint32(h, 6<<28|uint32(ip.TOS)<<20|ip.Flow)
	binary.BigEndian.PutUint16(h[4:], uint16(len(ip.Extensions)+len(segment)))
	h[6] = protocol
	h[7] = ttl
	copy(h[8:], ip.Src.AsSlice())
	copy(h[24:], ip.Dst.AsSlice())
	h = append(h, ip.Extensions...)
	if len(ip.Extensions) > 0 {
		h[6] = ip.ExtensionType
		last := 40
		for next := last + 8 + 8*int(h[last+1]); next < len(h); next += 8 + 8*int(h[next+1]) {
			last = next
		}
		h[last] = protocol
	}
	return append(h, segment...)
}

// transportSum returns the sum of the pseudo header and a transport segment.
func (ip IP) transportSum(protocol uint8, segment []byte) uint16 {
	b := append(ip.Src.AsSlice(), ip.Dst.AsSlice()...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(segment)))
	b = append(b, 0, 0, 0, protocol)
	return Sum(append(b, segment...))
}

// Sum returns the one's complement sum of the 16-bit words of b, one word at a time. The Internet
// checksum is its complement, and a correct one makes it 0xffff.
func Sum(b []byte) uint16 {
	var s uint32
	for i := 0; i < len(b); i += 2 {
		word := uint32(b[i]) << 8
		if i+1 < len(b) {
			word |= uint32(b[i+1])
		}
		s += word
		if s > 0xffff {
			s -= 0xffff
		}
	}
	return uint16(s)
}

// UDP4 returns a UDP packet between two IPv4 address:port pairs.
func UDP4(src, dst string, payload []byte) []byte { return udp(src, dst, payload) }

// UDP6 returns a UDP packet between two [IPv6 address]:port pairs.
func UDP6(src, dst string, payload []byte) []byte { return udp(src, dst, payload) }

// TCP4 returns a TCP packet with ACK set between two IPv4 address:port pairs.
func TCP4(src, dst string, seq uint32, payload []byte) []byte { return tcp(src, dst, seq, payload) }

// TCP6 returns a TCP packet with ACK set between two [IPv6 address]:port pairs.
func TCP6(src, dst string, seq uint32, payload []byte) []byte { return tcp(src, dst, seq, payload) }

func udp(src, dst string, payload []byte) []byte {
	s, d := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	ip := IP{Src: s.Addr(), Dst: d.Addr(), Fragment: DontFragment}
	return ip.UDP(UDP{Src: s.Port(), Dst: d.Port()}, payload)
}

func tcp(src, dst string, seq uint32, payload []byte) []byte {
	s, d := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	ip := IP{Src: s.Addr(), Dst: d.Addr(), Fragment: DontFragment}
	return ip.TCP(TCP{Src: s.Port(), Dst: d.Port(), Seq: seq, Ack: 1, Flags: ACK, Window: 512}, payload)
}
