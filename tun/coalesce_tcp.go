package tun

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// inspectTCP classifies a TCP packet. A super-frame can express data with ACK, with ECE on every
// segment, and with PSH on the last; anything else a flag announces must reach the stack in a
// packet of its own. That includes CWR: it belongs to the first segment only, and TUN_F_TSO_ECN,
// which would say so, is not negotiated.
func (s *segment) inspectTCP(p []byte) {
	length, ok := tcpHeader(p, s.transport)
	if !ok || s.transport+length == len(p) {
		return
	}
	t := p[s.transport:]
	flags := t[tcpFlags]
	// A sum of all ones is never computed, so it could not be reproduced.
	if flags&^(tcpPSH|tcpECE) != tcpACK || binary.BigEndian.Uint16(t[tcpCheck:]) == 0xffff {
		return
	}
	s.header = s.transport + length
	s.payload = len(p) - s.header
	s.seq = binary.BigEndian.Uint32(t[tcpSeq:])
	s.closes = flags&tcpPSH != 0
	s.kind = segmentTCP6
	if s.transport == ip4HeaderLen {
		s.kind = segmentTCP4
	}
}

// sameTCP compares what all segments of a super-frame inherit from a TCP header: everything but the
// sequence number, PSH and the checksum. The headers have the same length.
func sameTCP(a, b []byte) bool {
	_, _ = a[tcpHeaderLen-1], b[tcpHeaderLen-1]
	return samePorts(a, b) &&
		binary.NativeEndian.Uint32(a[tcpAck:]) == binary.NativeEndian.Uint32(b[tcpAck:]) &&
		a[tcpDataOffset] == b[tcpDataOffset] &&
		(a[tcpFlags]^b[tcpFlags])&^tcpPSH == 0 &&
		binary.NativeEndian.Uint16(a[tcpWindow:]) == binary.NativeEndian.Uint16(b[tcpWindow:]) &&
		binary.NativeEndian.Uint16(a[tcpUrgent:]) == binary.NativeEndian.Uint16(b[tcpUrgent:]) &&
		bytes.Equal(a[tcpHeaderLen:], b[tcpHeaderLen:])
}

// sealTCP completes the TCP header t of the super-frame p.
func sealTCP(vnet *VnetHdr, p, t []byte) {
	vnet.GSOType = unix.VIRTIO_NET_HDR_GSO_TCPV6
	if p[0]>>4 == 4 {
		vnet.GSOType = unix.VIRTIO_NET_HDR_GSO_TCPV4
	}
	vnet.CsumOffset = tcpCheck
	binary.BigEndian.PutUint16(t[tcpCheck:], fold(pseudoHeader(p, unix.IPPROTO_TCP, len(t))))
}
