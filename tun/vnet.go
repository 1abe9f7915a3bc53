package tun

import "encoding/binary"

// VnetHdrLen is the length in bytes of the header in front of every packet that is read from or
// written to a queue: sizeof(struct virtio_net_hdr), the default of TUNSETVNETHDRSZ.
const VnetHdrLen = 10

// maxPacket is the largest IP packet in bytes, and so the largest super-frame: the IPv4 total
// length has 16 bits, and gso_max_size of a TUN device can't be raised above 65536.
const maxPacket = 65535

// MaxFrame is the largest frame in bytes that a queue delivers or takes, with its vnet header. A
// buffer for [Queue.Read] should have this length: a frame that does not fit is cut off.
const MaxFrame = VnetHdrLen + maxPacket

// VnetHdr is struct virtio_net_hdr of include/uapi/linux/virtio_net.h: what the sender of a packet
// left for the device to do. All fields are in host byte order, on the wire too.
type VnetHdr struct {
	// Flags holds VIRTIO_NET_HDR_F_NEEDS_CSUM when the checksum field at CsumStart+CsumOffset
	// holds only the sum of the pseudo header, and the bytes from CsumStart to the end of the
	// packet are still to be added.
	Flags uint8
	// GSOType is a VIRTIO_NET_HDR_GSO_ value: NONE for an ordinary packet, TCPV4, TCPV6 or UDP_L4
	// for a super-frame, with GSO_ECN added if its first segment carries CWR.
	GSOType uint8
	// HdrLen is a hint at the length of the headers in bytes. A forwarding kernel sets it to the
	// length of the linear part of its buffer, so a reader must parse the headers instead.
	HdrLen uint16
	// GSOSize is the payload in bytes of every segment but the last, which may be shorter.
	GSOSize uint16
	// CsumStart is the offset in bytes of the transport header from the start of the packet.
	CsumStart uint16
	// CsumOffset is the offset in bytes of the checksum field from CsumStart.
	CsumOffset uint16
}

// Decode reads the header from the first VnetHdrLen bytes of frame. It returns ErrMalformed if
// there are fewer.
func (h *VnetHdr) Decode(frame []byte) error {
	if len(frame) < VnetHdrLen {
		return ErrMalformed
	}
	h.Flags = frame[0]
	h.GSOType = frame[1]
	h.HdrLen = binary.NativeEndian.Uint16(frame[2:])
	h.GSOSize = binary.NativeEndian.Uint16(frame[4:])
	h.CsumStart = binary.NativeEndian.Uint16(frame[6:])
	h.CsumOffset = binary.NativeEndian.Uint16(frame[8:])
	return nil
}

// Encode writes the header to the first VnetHdrLen bytes of frame and panics if there are fewer.
func (h *VnetHdr) Encode(frame []byte) {
	_ = frame[VnetHdrLen-1]
	frame[0] = h.Flags
	frame[1] = h.GSOType
	binary.NativeEndian.PutUint16(frame[2:], h.HdrLen)
	binary.NativeEndian.PutUint16(frame[4:], h.GSOSize)
	binary.NativeEndian.PutUint16(frame[6:], h.CsumStart)
	binary.NativeEndian.PutUint16(frame[8:], h.CsumOffset)
}
