package tun

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"
)

// ErrMalformed reports a frame whose header and packet contradict each other.
var ErrMalformed = errors.New("malformed frame")

// maxSplitHeader is the most bytes of IP and TCP headers that a super-frame may begin with. The
// kernel reserves less than that for a TCP socket's headers (MAX_TCP_HEADER); only the chain of
// IPv6 extension headers is without a limit of its own.
const maxSplitHeader = 512

// Splitter takes the frames of a queue apart into complete IP packets. The zero Splitter is ready
// for Reset and may be used for any number of frames. It is not safe for concurrent use.
//
// A super-frame is a header of h bytes and a payload that is to travel in segments of m bytes. The
// packets are made inside the frame: segment i has its payload at h+i·m already, so its headers are
// written right in front of that, at i·m, over the end of segment i-1. That one has been consumed
// by then, because a packet is valid only until the following Next.
type Splitter struct {
	packet    []byte // the frame without its vnet header; owned by the caller
	kind      splitKind
	next      int // offset in packet of the next segment's headers
	size      int // payload bytes of a segment; the last may have fewer
	headerLen int // bytes in header
	transport int // offset of the transport header from the start of a packet
	csumAt    int // offset of the checksum field from the start of a packet

	// What the segments have in common. The sums leave out the fields that differ.
	ipSum        uint32
	transportSum uint32
	seq          uint32
	id           uint16
	flags        uint8 // TCP flags of the super-frame
	version      uint8
	unsummed     bool // UDP without a checksum stays without
	header       [maxSplitHeader]byte
}

type splitKind uint8

const (
	splitDone    splitKind = iota // nothing left
	splitWhole                    // one packet, as it is
	splitPartial                  // one packet, its checksum to be completed
	splitTCP
	splitUDP
)

// Reset makes s work on a frame as read from a queue: a vnet header and an IP packet. The frame's
// memory belongs to s until the last packet has been consumed. It returns ErrMalformed, and s holds
// no packets, if what the vnet header asks for does not fit the packet: a checksum beyond its end, an
// unknown segmentation type or one that the headers contradict, no segment size, lengths in the IP
// header of a super-frame that are not the frame's. An ordinary packet is not looked into at all.
func (s *Splitter) Reset(frame []byte) error {
	s.kind = splitDone
	s.next = 0
	var vnet VnetHdr
	if err := vnet.Decode(frame); err != nil {
		return err
	}
	s.packet = frame[VnetHdrLen:]
	if len(s.packet) == 0 {
		return ErrMalformed
	}
	partial := vnet.Flags&unix.VIRTIO_NET_HDR_F_NEEDS_CSUM != 0
	s.transport = int(vnet.CsumStart)
	s.csumAt = int(vnet.CsumStart) + int(vnet.CsumOffset)
	if partial && s.csumAt+2 > len(s.packet) {
		return ErrMalformed
	}
	if vnet.GSOType == unix.VIRTIO_NET_HDR_GSO_NONE {
		s.headerLen, s.size = 0, len(s.packet)
		s.kind = splitWhole
		if partial {
			s.kind = splitPartial
		}
		return nil
	}
	return s.resetSegments(&vnet, partial)
}

// resetSegments prepares a super-frame. The length of the headers is taken from the headers: the
// vnet header's HdrLen is the length of the linear part of a forwarded packet's buffer, payload
// included.
func (s *Splitter) resetSegments(vnet *VnetHdr, partial bool) error {
	p := s.packet
	protocol, transport, ok := transportHeader(p)
	if !ok || len(p) > maxPacket || vnet.GSOSize == 0 {
		return ErrMalformed
	}
	s.version = p[0] >> 4
	var headerLen, check int
	switch gso := vnet.GSOType &^ unix.VIRTIO_NET_HDR_GSO_ECN; {
	case gso == unix.VIRTIO_NET_HDR_GSO_TCPV4 && s.version == 4 && protocol == unix.IPPROTO_TCP,
		gso == unix.VIRTIO_NET_HDR_GSO_TCPV6 && s.version == 6 && protocol == unix.IPPROTO_TCP:
		tcpLen, ok := tcpHeader(p, transport)
		if !ok {
			return ErrMalformed
		}
		s.kind = splitTCP
		headerLen, check = transport+tcpLen, transport+tcpCheck
	case gso == unix.VIRTIO_NET_HDR_GSO_UDP_L4 && protocol == unix.IPPROTO_UDP:
		s.kind = splitUDP
		headerLen, check = transport+udpHeaderLen, transport+udpCheck
	default:
		return ErrMalformed
	}
	if headerLen >= len(p) || headerLen > maxSplitHeader || !wholeIP(p) ||
		partial && (s.transport != transport || s.csumAt != check) {
		s.kind = splitDone
		return ErrMalformed
	}
	s.headerLen = headerLen
	s.transport = transport
	s.csumAt = check
	s.size = int(vnet.GSOSize)
	copy(s.header[:headerLen], p)
	s.sumHeaders(partial, protocol)
	return nil
}

// wholeIP reports whether the length in the IP header is the packet's. A shorter packet was cut off
// by too small a buffer.
func wholeIP(packet []byte) bool {
	if packet[0]>>4 == 4 {
		return int(binary.BigEndian.Uint16(packet[ip4TotalLen:])) == len(packet)
	}
	return int(binary.BigEndian.Uint16(packet[ip6PayloadLen:])) == len(packet)-ip6HeaderLen
}

// sumHeaders clears the fields of the saved header that differ from segment to segment and sums the
// rest once, so that a segment's checksums cost its payload and a few additions.
func (s *Splitter) sumHeaders(partial bool, protocol uint8) {
	h := s.header[:s.headerLen]
	transportLen := len(s.packet) - s.transport
	check := binary.BigEndian.Uint16(h[s.csumAt:])
	// The field of a partial checksum holds the sum of the pseudo header with the super-frame's
	// length: take that length off again. It is better than summing the addresses, since the
	// destination may be in a routing header.
	if partial {
		s.transportSum = uint32(check) + uint32(^uint16(transportLen))
	} else {
		s.transportSum = pseudoHeader(h, protocol, 0)
	}
	s.unsummed = s.kind == splitUDP && !partial && check == 0

	binary.BigEndian.PutUint16(h[s.csumAt:], 0)
	if s.kind == splitTCP {
		s.seq = binary.BigEndian.Uint32(h[s.transport+tcpSeq:])
		s.flags = h[s.transport+tcpFlags]
		binary.BigEndian.PutUint32(h[s.transport+tcpSeq:], 0)
		h[s.transport+tcpFlags] = 0
	} else {
		binary.BigEndian.PutUint16(h[s.transport+udpLength:], 0)
	}
	s.transportSum += sum(h[s.transport:])
	if s.version == 4 {
		s.id = binary.BigEndian.Uint16(h[ip4ID:])
		binary.BigEndian.PutUint16(h[ip4TotalLen:], 0)
		binary.BigEndian.PutUint16(h[ip4ID:], 0)
		binary.BigEndian.PutUint16(h[ip4Check:], 0)
		s.ipSum = sum(h[:s.transport])
	}
}

// Packets returns the number of packets that Next has still to deliver.
func (s *Splitter) Packets() int {
	if s.kind == splitDone {
		return 0
	}
	return (len(s.packet) - s.headerLen - s.next + s.size - 1) / s.size
}

// Stream reports whether the frame is TCP's, to be cut into packets.
func (s *Splitter) Stream() bool { return s.kind == splitTCP }

// SegmentSize returns the length in bytes of every packet of the frame, except that the last may be
// shorter.
func (s *Splitter) SegmentSize() int {
	return min(s.headerLen+s.size, len(s.packet))
}

// Next returns the next packet, complete with its checksums, and false when there is none left. The
// packet lies in the frame's memory and is valid until the following Next; the caller may overwrite
// it, but nothing behind it.
//
// As in the kernel's own segmentation the IPv4 id counts up from the first packet, FIN and PSH are
// left to the last packet, and CWR to the first. A UDP checksum that the sender left out stays out.
func (s *Splitter) Next() (packet []byte, ok bool) {
	switch s.kind {
	case splitDone:
		return nil, false
	case splitTCP, splitUDP:
		return s.segment(), true
	case splitPartial:
		// The field's content, the sum of the pseudo header, is summed with the rest.
		check := ^fold(sum(s.packet[s.transport:]))
		binary.BigEndian.PutUint16(s.packet[s.csumAt:], mangle(check))
	}
	s.kind = splitDone
	return s.packet, true
}

// segment completes the packet at s.next and steps behind it.
func (s *Splitter) segment() []byte {
	end := min(s.next+s.headerLen+s.size, len(s.packet))
	p := s.packet[s.next:end:end]
	first, last := s.next == 0, end == len(s.packet)
	copy(p, s.header[:s.headerLen])

	if s.version == 4 {
		binary.BigEndian.PutUint16(p[ip4TotalLen:], uint16(len(p)))
		binary.BigEndian.PutUint16(p[ip4ID:], s.id)
		binary.BigEndian.PutUint16(p[ip4Check:], ^fold(s.ipSum+uint32(len(p))+uint32(s.id)))
		s.id++
	} else {
		binary.BigEndian.PutUint16(p[ip6PayloadLen:], uint16(len(p)-ip6HeaderLen))
	}

	t := p[s.transport:]
	check := s.transportSum + uint32(len(t)) + sum(p[s.headerLen:])
	if s.kind == splitTCP {
		flags := s.flags
		if !last {
			flags &^= tcpFIN | tcpPSH
		}
		if !first {
			flags &^= tcpCWR
		}
		binary.BigEndian.PutUint32(t[tcpSeq:], s.seq)
		t[tcpFlags] = flags
		check += s.seq>>16 + s.seq&0xffff + uint32(flags)
		binary.BigEndian.PutUint16(t[tcpCheck:], ^fold(check))
		s.seq += uint32(s.size)
	} else {
		binary.BigEndian.PutUint16(t[udpLength:], uint16(len(t)))
		if !s.unsummed {
			binary.BigEndian.PutUint16(t[udpCheck:], mangle(^fold(check+uint32(len(t)))))
		}
	}

	s.next += s.size
	if last {
		s.kind = splitDone
	}
	return p
}
