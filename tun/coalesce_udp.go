package tun

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// udpMaxSegments is the most datagrams in a super-frame: UDP_MAX_SEGMENTS before Linux 6.9, beyond
// which the kernel answers EINVAL, and what its own receive offload gathers (UDP_GRO_CNT_MAX).
const udpMaxSegments = 64

// inspectUDP classifies a UDP packet. One without a checksum, which is legal over IPv4 (RFC 768) and
// usual for tunnels, must stay without, but the segmentation of a super-frame would fill it in.
func (s *segment) inspectUDP(p []byte) {
	t := p[s.transport:]
	if len(t) <= udpHeaderLen || int(binary.BigEndian.Uint16(t[udpLength:])) != len(t) ||
		binary.BigEndian.Uint16(t[udpCheck:]) == 0 {
		return
	}
	s.header = s.transport + udpHeaderLen
	s.payload = len(p) - s.header
	s.kind = segmentUDP6
	if s.transport == ip4HeaderLen {
		s.kind = segmentUDP4
	}
}

// sealUDP completes the UDP header t of the super-frame p.
func sealUDP(vnet *VnetHdr, p, t []byte) {
	vnet.GSOType = unix.VIRTIO_NET_HDR_GSO_UDP_L4
	vnet.CsumOffset = udpCheck
	binary.BigEndian.PutUint16(t[udpLength:], uint16(len(t)))
	binary.BigEndian.PutUint16(t[udpCheck:], fold(pseudoHeader(p, unix.IPPROTO_UDP, len(t))))
}
