package tun

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Offsets in bytes and lengths from RFC 791, RFC 8200, RFC 9293 and RFC 768.
const (
	ip4HeaderLen    = 20
	ip4TotalLen     = 2
	ip4ID           = 4
	ip4Fragment     = 6
	ip4Protocol     = 9
	ip4Check        = 10
	ip4Source       = 12
	ip4Destination  = 16
	ip4DontFragment = 0x4000 // of the 16-bit word at ip4Fragment
	ip4FragmentMask = 0x3fff // more fragments, and the fragment's offset
	ip6HeaderLen    = 40
	ip6PayloadLen   = 4
	ip6NextHeader   = 6
	ip6Source       = 8
	ip6Destination  = 24
	tcpHeaderLen    = 20
	tcpHeaderMax    = 60
	tcpSeq          = 4
	tcpAck          = 8
	tcpDataOffset   = 12
	tcpFlags        = 13
	tcpWindow       = 14
	tcpCheck        = 16
	tcpUrgent       = 18
	tcpFIN          = 0x01
	tcpSYN          = 0x02
	tcpPSH          = 0x08
	tcpACK          = 0x10
	tcpECE          = 0x40
	tcpCWR          = 0x80
	tcpOptionEnd    = 0
	tcpOptionNop    = 1
	tcpOptionMSS    = 2
	tcpOptionMSSLen = 4
	udpHeaderLen    = 8
	udpLength       = 4
	udpCheck        = 6
)

// ipVersion returns the version nibble of a packet, 0 for an empty one.
func ipVersion(packet []byte) int {
	if len(packet) == 0 {
		return 0
	}
	return int(packet[0] >> 4)
}

// transportHeader finds the transport header of a packet that is not a fragment: its protocol and
// its offset in bytes, which lies within the packet. The length fields of the IP header are not
// looked at.
func transportHeader(packet []byte) (protocol uint8, offset int, ok bool) {
	switch ipVersion(packet) {
	case 4:
		if len(packet) < ip4HeaderLen {
			return 0, 0, false
		}
		offset = int(packet[0]&0xf) * 4
		if offset < ip4HeaderLen || offset > len(packet) {
			return 0, 0, false
		}
		if binary.BigEndian.Uint16(packet[ip4Fragment:])&ip4FragmentMask != 0 {
			return 0, 0, false
		}
		return packet[ip4Protocol], offset, true
	case 6:
		if len(packet) < ip6HeaderLen {
			return 0, 0, false
		}
		return skipExtensions(packet)
	}
	return 0, 0, false
}

// skipExtensions follows the chain of IPv6 extension headers that keep the packet whole. A fragment
// header, or one that hides the transport header, ends the walk without a result.
func skipExtensions(packet []byte) (protocol uint8, offset int, ok bool) {
	protocol, offset = packet[ip6NextHeader], ip6HeaderLen
	for {
		switch protocol {
		case unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_DSTOPTS:
		case unix.IPPROTO_FRAGMENT, unix.IPPROTO_AH, unix.IPPROTO_ESP, unix.IPPROTO_NONE:
			return 0, 0, false
		default:
			return protocol, offset, true
		}
		if offset+8 > len(packet) {
			return 0, 0, false
		}
		// RFC 8200 section 4: the length counts 8-byte units beyond the first.
		protocol, offset = packet[offset], offset+8+8*int(packet[offset+1])
		if offset > len(packet) {
			return 0, 0, false
		}
	}
}

// tcpHeader returns the length in bytes of the TCP header at offset, options included, if all of it
// lies within the packet.
func tcpHeader(packet []byte, offset int) (length int, ok bool) {
	if offset+tcpHeaderLen > len(packet) {
		return 0, false
	}
	length = int(packet[offset+tcpDataOffset]>>4) * 4
	if length < tcpHeaderLen || offset+length > len(packet) {
		return 0, false
	}
	return length, true
}

// pseudoHeader returns the sum of the pseudo header (RFC 9293 section 3.1, RFC 8200 section 8.1)
// of a packet whose IP header has been validated and holds no routing header.
func pseudoHeader(packet []byte, protocol uint8, length int) uint32 {
	var addresses uint32
	if packet[0]>>4 == 4 {
		addresses = sum(packet[ip4Source:ip4HeaderLen])
	} else {
		addresses = sum(packet[ip6Source:ip6HeaderLen])
	}
	return addresses + uint32(protocol) + uint32(length)
}
