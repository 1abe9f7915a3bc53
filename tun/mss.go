package tun

import (
	"encoding/binary"
	"math/bits"

	"golang.org/x/sys/unix"
)

// ClampMSS lowers the maximum segment size (RFC 9293 section 3.7.1) that a TCP SYN over IPv4 or IPv6
// announces to max bytes, if it is larger, and reports whether it did. The checksum is adjusted by
// the difference (RFC 1624), so a wrong one stays wrong. A smaller size is never raised and a
// missing one not added: the default it stands for is small enough. A packet that is a fragment,
// cut off or otherwise malformed, in its options too, is not touched.
func ClampMSS(packet []byte, max uint16) bool {
	protocol, offset, ok := transportHeader(packet)
	if !ok || protocol != unix.IPPROTO_TCP {
		return false
	}
	packet, ok = trimIP(packet)
	if !ok || offset > len(packet) {
		return false
	}
	length, ok := tcpHeader(packet, offset)
	if !ok || packet[offset+tcpFlags]&tcpSYN == 0 {
		return false
	}
	header := packet[offset : offset+length]
	larger, ok := largestMSS(header)
	if !ok || larger <= max {
		return false
	}
	lowerMSS(header, max)
	return true
}

// trimIP returns the packet without what follows the length that its IP header announces.
func trimIP(packet []byte) ([]byte, bool) {
	var n int
	if packet[0]>>4 == 4 {
		n = int(binary.BigEndian.Uint16(packet[ip4TotalLen:]))
	} else {
		n = ip6HeaderLen + int(binary.BigEndian.Uint16(packet[ip6PayloadLen:]))
	}
	if n > len(packet) {
		return nil, false
	}
	return packet[:n], true
}

// nextOption returns the offset behind the TCP option at i, and false if it does not fit.
func nextOption(header []byte, i int) (int, bool) {
	if header[i] == tcpOptionNop {
		return i + 1, true
	}
	if i+1 >= len(header) || header[i+1] < 2 {
		return 0, false
	}
	i += int(header[i+1])
	return i, i <= len(header)
}

// isMSS reports whether the TCP option at i, which fits, is a maximum segment size.
func isMSS(header []byte, i int) bool {
	return header[i] == tcpOptionMSS && header[i+1] == tcpOptionMSSLen
}

// largestMSS returns the largest maximum segment size among the options, 0 if there is none, and
// false if the options are malformed.
func largestMSS(header []byte) (mss uint16, ok bool) {
	for i := tcpHeaderLen; i < len(header) && header[i] != tcpOptionEnd; {
		next, ok := nextOption(header, i)
		if !ok {
			return 0, false
		}
		if isMSS(header, i) {
			mss = max(mss, binary.BigEndian.Uint16(header[i+2:]))
		}
		i = next
	}
	return mss, true
}

// lowerMSS writes limit over every larger maximum segment size among well-formed options: the last
// of several counts for a Linux receiver, the first for others.
func lowerMSS(header []byte, limit uint16) {
	for i := tcpHeaderLen; i < len(header) && header[i] != tcpOptionEnd; {
		next, _ := nextOption(header, i)
		if isMSS(header, i) {
			if old := binary.BigEndian.Uint16(header[i+2:]); old > limit {
				binary.BigEndian.PutUint16(header[i+2:], limit)
				adjustCheck(header, i+2, old, limit)
			}
		}
		i = next
	}
}

// adjustCheck corrects the TCP checksum for a 16-bit field at offset that has changed. At an odd
// offset the field's bytes have swapped places in the words that are summed.
func adjustCheck(header []byte, offset int, old, new uint16) {
	if offset&1 != 0 {
		old, new = bits.ReverseBytes16(old), bits.ReverseBytes16(new)
	}
	check := binary.BigEndian.Uint16(header[tcpCheck:])
	// RFC 1624 equation 3: HC' = ~(~HC + ~m + m').
	check = ^fold(uint32(^check) + uint32(^old) + uint32(new))
	binary.BigEndian.PutUint16(header[tcpCheck:], check)
}
