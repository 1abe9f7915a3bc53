package tun

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// MaxTooBig is the longest message in bytes that TooBig makes.
const MaxTooBig = 1280

const (
	// maxQuote4 is the length in bytes that an ICMP error over IPv4 has at most (RFC 1812 section 4.3.2.3).
	maxQuote4 = 576
	// minMTU6 is IPv6's smallest MTU (RFC 8200 section 5). Nobody sends smaller packets for being told a smaller
	// one (RFC 8201 section 4), and no ICMP error is longer (RFC 4443 section 2.4).
	minMTU6 = 1280
	// icmpErrorLen is the length in bytes of the header in front of the quoted packet, of both versions.
	icmpErrorLen = 8
	// precedence is internetwork control, which ICMP errors over IPv4 are sent with (RFC 1812 section 4.3.2.5).
	precedence = 0xc0
)

// TooBig writes to b the message that tells the sender of an IP packet that packets of more than mtu bytes don't
// get through unfragmented: ICMP "fragmentation needed" (RFC 1191 section 4) or ICMPv6 "packet too big"
// (RFC 4443 section 3.2). It returns the message's length, or 0 where none may be sent: the packet fits, may be
// fragmented on its way, is a later fragment, is malformed, is not from or not to one host, or is an ICMP error
// itself. b has at least MaxTooBig bytes and does not overlap the packet.
//
// The message's source is the packet's destination. It can't be the device's own address, which the stack would
// not accept from outside (RFC 1812 section 5.3.7), nor need there be one.
func TooBig(b, packet []byte, mtu int) int {
	switch ipVersion(packet) {
	case 4:
		return tooBig4(b, packet, mtu)
	case 6:
		return tooBig6(b, packet, max(mtu, minMTU6))
	}
	return 0
}

func tooBig4(b, packet []byte, mtu int) int {
	if len(packet) < ip4HeaderLen || len(packet) <= mtu || !wholeIP(packet) {
		return 0
	}
	fragment := binary.BigEndian.Uint16(packet[ip4Fragment:])
	const offset = 0x1fff
	if fragment&ip4DontFragment == 0 || fragment&offset != 0 {
		return 0
	}
	header := int(packet[0]&0xf) * 4
	if header < ip4HeaderLen || header >= len(packet) {
		return 0
	}
	if packet[ip4Protocol] == unix.IPPROTO_ICMP && !icmp4Query(packet[header]) {
		return 0
	}
	src := netip.AddrFrom4([4]byte(packet[ip4Source:]))
	dst := netip.AddrFrom4([4]byte(packet[ip4Destination:]))
	if !oneHost(src) || !oneHost(dst) {
		return 0
	}
	quote := packet[:min(len(packet), maxQuote4-ip4HeaderLen-icmpErrorLen)]
	n := ip4HeaderLen + icmpErrorLen + len(quote)
	b = b[:n]
	clear(b[:ip4HeaderLen+icmpErrorLen])
	b[0], b[1], b[8], b[ip4Protocol] = 4<<4|ip4HeaderLen/4, precedence, 64, unix.IPPROTO_ICMP
	binary.BigEndian.PutUint16(b[ip4TotalLen:], uint16(n))
	// Never fragmented, so the id says nothing (RFC 6864).
	binary.BigEndian.PutUint16(b[ip4Fragment:], ip4DontFragment)
	copy(b[ip4Source:], packet[ip4Destination:ip4Destination+4])
	copy(b[ip4Destination:], packet[ip4Source:ip4Source+4])
	binary.BigEndian.PutUint16(b[ip4Check:], ^fold(sum(b[:ip4HeaderLen])))

	icmp := b[ip4HeaderLen:]
	icmp[0], icmp[1] = 3, 4 // destination unreachable, fragmentation needed and DF set
	binary.BigEndian.PutUint16(icmp[6:], uint16(mtu))
	copy(icmp[icmpErrorLen:], quote)
	binary.BigEndian.PutUint16(icmp[2:], ^fold(sum(icmp)))
	return n
}

func tooBig6(b, packet []byte, mtu int) int {
	if len(packet) < ip6HeaderLen || len(packet) <= mtu || !wholeIP(packet) || icmp6Error(packet) {
		return 0
	}
	src := netip.AddrFrom16([16]byte(packet[ip6Source:]))
	dst := netip.AddrFrom16([16]byte(packet[ip6Destination:]))
	if !oneHost(src) || !oneHost(dst) {
		return 0
	}
	quote := packet[:min(len(packet), minMTU6-ip6HeaderLen-icmpErrorLen)]
	n := ip6HeaderLen + icmpErrorLen + len(quote)
	b = b[:n]
	clear(b[:ip6HeaderLen+icmpErrorLen])
	b[0], b[ip6NextHeader], b[7] = 6<<4, unix.IPPROTO_ICMPV6, 64
	binary.BigEndian.PutUint16(b[ip6PayloadLen:], uint16(n-ip6HeaderLen))
	copy(b[ip6Source:], packet[ip6Destination:ip6HeaderLen])
	copy(b[ip6Destination:], packet[ip6Source:ip6Destination])

	icmp := b[ip6HeaderLen:]
	icmp[0] = 2 // packet too big
	binary.BigEndian.PutUint32(icmp[4:], uint32(mtu))
	copy(icmp[icmpErrorLen:], quote)
	binary.BigEndian.PutUint16(icmp[2:], ^fold(sum(icmp)+pseudoHeader(b, unix.IPPROTO_ICMPV6, len(icmp))))
	return n
}

// icmp4Query reports whether an ICMP message of that type is a question or an answer. All others are taken for
// errors, which are never answered with one (RFC 1122 section 3.2.2).
func icmp4Query(typ uint8) bool {
	switch typ {
	case 0, 8, 13, 14, 15, 16, 17, 18:
		return true
	}
	return false
}

// icmp6Error reports whether a packet may be one that RFC 4443 section 2.4 (e) forbids to answer: an ICMPv6 error
// or redirect, or a later fragment, of which that can't be told. A chain of headers that leads nowhere else is none.
func icmp6Error(packet []byte) bool {
	const redirect, informational, fragmentLen = 137, 128, 8
	protocol, offset := packet[ip6NextHeader], ip6HeaderLen
	for {
		switch protocol {
		case unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_DSTOPTS:
			if offset+8 > len(packet) {
				return true
			}
			protocol, offset = packet[offset], offset+8+8*int(packet[offset+1])
		case unix.IPPROTO_FRAGMENT:
			if offset+fragmentLen > len(packet) || binary.BigEndian.Uint16(packet[offset+2:])&^7 != 0 {
				return true
			}
			protocol, offset = packet[offset], offset+fragmentLen
		case unix.IPPROTO_ICMPV6:
			return offset >= len(packet) || packet[offset] < informational || packet[offset] == redirect
		default:
			return false
		}
	}
}

// oneHost reports whether an address may stand for a single host beyond this one, as far as the address tells.
func oneHost(a netip.Addr) bool {
	if a.Is4() && (a.As4()[0] == 0 || a.As4()[0] >= 240) {
		return false // "this network", and class E with the broadcast address
	}
	return a.IsGlobalUnicast() || a.IsLinkLocalUnicast()
}
