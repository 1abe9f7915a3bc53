package tun

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// segmentKind says how a packet may be merged, if at all.
type segmentKind uint8

const (
	segmentOther segmentKind = iota // never merged
	segmentTCP4
	segmentTCP6
	segmentUDP4
	segmentUDP6
)

func (k segmentKind) tcp() bool { return k == segmentTCP4 || k == segmentTCP6 }
func (k segmentKind) ip4() bool { return k == segmentTCP4 || k == segmentUDP4 }

// segment is what Commit needs to know of a packet.
type segment struct {
	kind      segmentKind
	closes    bool   // nothing may follow it in a frame
	atomic    bool   // IPv4 with DF set: its id says nothing
	transport int    // offset of the transport header
	header    int    // length of all headers in bytes
	payload   int    // bytes behind them, at least 1
	seq       uint32 // TCP
	id        uint16 // IPv4
}

// inspect classifies a packet. Whatever is unusual, a fragment, IP options or extension headers,
// lengths that disagree, is left alone: the stack has an opinion on it, a merge would hide it.
func (c *Coalescer) inspect(p []byte) (s segment) {
	var protocol uint8
	switch {
	case len(p) > ip4HeaderLen && p[0] == 4<<4|ip4HeaderLen/4:
		fragment := binary.BigEndian.Uint16(p[ip4Fragment:])
		// An IPv4 header sum of all ones is never computed, so it could not be reproduced.
		if fragment&ip4FragmentMask != 0 || !wholeIP(p) || binary.BigEndian.Uint16(p[ip4Check:]) == 0xffff {
			return s
		}
		protocol = p[ip4Protocol]
		s.transport = ip4HeaderLen
		s.atomic = fragment&ip4DontFragment != 0
		s.id = binary.BigEndian.Uint16(p[ip4ID:])
	case len(p) > ip6HeaderLen && p[0]>>4 == 6:
		if !wholeIP(p) {
			return s
		}
		protocol = p[ip6NextHeader]
		s.transport = ip6HeaderLen
	default:
		return s
	}
	switch {
	case protocol == unix.IPPROTO_TCP && c.features.TSO:
		s.inspectTCP(p)
	case protocol == unix.IPPROTO_UDP && c.features.USO:
		s.inspectUDP(p)
	}
	return s
}

// intact verifies the checksums of a packet that inspect found to be TCP or UDP. A merged frame is
// taken by the stack as verified and gets new checksums, so damage that predates the tunnel would be
// lost in it.
func (s *segment) intact(p []byte) bool {
	protocol := uint32(unix.IPPROTO_UDP)
	if s.kind.tcp() {
		protocol = unix.IPPROTO_TCP
	}
	// The addresses end where the transport header begins: one pass covers both.
	addresses := ip6Source
	if s.kind.ip4() {
		if fold(sum(p[:ip4HeaderLen])) != 0xffff {
			return false
		}
		addresses = ip4Source
	}
	return fold(sum(p[addresses:])+protocol+uint32(len(p)-s.transport)) == 0xffff
}

// sameIP4 compares what all segments of a super-frame inherit from an IPv4 header without options:
// everything but the total length, the id and the checksum.
func sameIP4(a, b []byte) bool {
	_, _ = a[ip4HeaderLen-1], b[ip4HeaderLen-1]
	return a[1] == b[1] &&
		binary.NativeEndian.Uint32(a[ip4Fragment:]) == binary.NativeEndian.Uint32(b[ip4Fragment:]) &&
		binary.NativeEndian.Uint64(a[ip4Source:]) == binary.NativeEndian.Uint64(b[ip4Source:])
}

// sameIP6 compares what all segments of a super-frame inherit from an IPv6 header: everything but
// the payload length.
func sameIP6(a, b []byte) bool {
	return binary.NativeEndian.Uint32(a) == binary.NativeEndian.Uint32(b) &&
		binary.NativeEndian.Uint16(a[ip6NextHeader:]) == binary.NativeEndian.Uint16(b[ip6NextHeader:]) &&
		[32]byte(a[ip6Source:]) == [32]byte(b[ip6Source:])
}

// samePorts compares the source and destination ports of two TCP or UDP headers.
func samePorts(a, b []byte) bool {
	return binary.NativeEndian.Uint32(a) == binary.NativeEndian.Uint32(b)
}
