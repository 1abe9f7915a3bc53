package tuntest

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"ovpn-go/tun"
)

// Frame returns a packet as a queue delivers or takes it when nothing is left to do.
func Frame(packet []byte) []byte {
	return append(make([]byte, tun.VnetHdrLen), packet...)
}

// Partial returns a frame whose packet lacks its transport checksum, as a socket with checksum offload
// sends it: the field holds the sum of the pseudo header.
func Partial(ip IP, protocol uint8, packet []byte) []byte {
	frame := Frame(packet)
	packet = frame[tun.VnetHdrLen:]
	hdr := tun.VnetHdr{
		Flags:      unix.VIRTIO_NET_HDR_F_NEEDS_CSUM,
		CsumStart:  uint16(20 + len(ip.Options)),
		CsumOffset: 16,
	}
	if ip.Src.Is6() {
		hdr.CsumStart = uint16(40 + len(ip.Extensions))
	}
	if protocol == ProtocolUDP {
		hdr.CsumOffset = 6
	}
	hdr.Encode(frame)
	field := packet[hdr.CsumStart+hdr.CsumOffset:]
	segment := make([]byte, len(packet)-int(hdr.CsumStart))
	binary.BigEndian.PutUint16(field, ip.transportSum(protocol, segment))
	return frame
}

// SuperTCP returns a frame whose payload is still to be cut into segments of size bytes.
func SuperTCP(ip IP, tcp TCP, payload []byte, size int) []byte {
	frame := Partial(ip, ProtocolTCP, ip.TCP(tcp, payload))
	gso := uint8(unix.VIRTIO_NET_HDR_GSO_TCPV4)
	if ip.Src.Is6() {
		gso = unix.VIRTIO_NET_HDR_GSO_TCPV6
	}
	if tcp.Flags&CWR != 0 {
		gso |= unix.VIRTIO_NET_HDR_GSO_ECN
	}
	return super(frame, gso, size, 20+len(tcp.Options))
}

// SuperUDP returns a frame whose payload is still to be cut into datagrams of size bytes.
func SuperUDP(ip IP, udp UDP, payload []byte, size int) []byte {
	frame := Partial(ip, ProtocolUDP, ip.UDP(udp, payload))
	return super(frame, unix.VIRTIO_NET_HDR_GSO_UDP_L4, size, 8)
}

func super(frame []byte, gso uint8, size, transportLen int) []byte {
	var hdr tun.VnetHdr
	_ = hdr.Decode(frame) // long enough by construction
	hdr.GSOType = gso
	hdr.GSOSize = uint16(size)
	hdr.HdrLen = hdr.CsumStart + uint16(transportLen)
	hdr.Encode(frame)
	return frame
}

// Segment returns the IP packets that a kernel makes of a frame written to it, or an error if the
// frame is not one that it takes. It is the slow and obvious model of segmentation: every packet is
// made anew and its checksums computed from its bytes. It knows IPv4 options, but of IPv6 extension
// headers only what one needs to skip them.
func Segment(frame []byte) ([][]byte, error) {
	var hdr tun.VnetHdr
	if err := hdr.Decode(frame); err != nil {
		return nil, err
	}
	packet := append([]byte(nil), frame[tun.VnetHdrLen:]...)
	if hdr.GSOType == unix.VIRTIO_NET_HDR_GSO_NONE {
		if hdr.Flags&unix.VIRTIO_NET_HDR_F_NEEDS_CSUM != 0 {
			at := int(hdr.CsumStart) + int(hdr.CsumOffset)
			if at+2 > len(packet) {
				return nil, errors.New("checksum beyond the packet")
			}
			check := ^Sum(packet[hdr.CsumStart:])
			if check == 0 {
				check = 0xffff
			}
			binary.BigEndian.PutUint16(packet[at:], check)
		}
		return [][]byte{packet}, nil
	}
	if hdr.Flags != unix.VIRTIO_NET_HDR_F_NEEDS_CSUM {
		return nil, fmt.Errorf("super-frame with flags %#x", hdr.Flags)
	}
	if hdr.GSOSize == 0 {
		return nil, errors.New("no segment size")
	}
	if len(packet) < 20 {
		return nil, errors.New("no IP header")
	}
	return segment(&hdr, packet)
}

func segment(hdr *tun.VnetHdr, packet []byte) ([][]byte, error) {
	version, tcp := packet[0]>>4, false
	switch gso := hdr.GSOType &^ unix.VIRTIO_NET_HDR_GSO_ECN; {
	case gso == unix.VIRTIO_NET_HDR_GSO_TCPV4 && version == 4, gso == unix.VIRTIO_NET_HDR_GSO_TCPV6 && version == 6:
		tcp = true
	case gso == unix.VIRTIO_NET_HDR_GSO_UDP_L4 && (version == 4 || version == 6):
	default:
		return nil, fmt.Errorf("segmentation type %d of IPv%d", hdr.GSOType, version)
	}
	transport, addresses, err := network(packet, tcp)
	if err != nil {
		return nil, err
	}
	protocol, headers, field := uint8(ProtocolUDP), transport+8, 6
	if tcp {
		if len(packet) < transport+20 {
			return nil, errors.New("no TCP header")
		}
		protocol, headers, field = ProtocolTCP, transport+int(packet[transport+12]>>4)*4, 16
		if headers < transport+20 {
			return nil, errors.New("short TCP header")
		}
	}
	if headers >= len(packet) {
		return nil, errors.New("no payload")
	}
	if int(hdr.CsumStart) != transport || int(hdr.CsumOffset) != field {
		return nil, fmt.Errorf("checksum at %d+%d, want %d+%d", hdr.CsumStart, hdr.CsumOffset, transport, field)
	}
	check := transport + field
	pseudo := pseudoSum(addresses, protocol, len(packet)-transport)
	if got := binary.BigEndian.Uint16(packet[check:]); got != pseudo {
		return nil, fmt.Errorf("checksum field %#04x, want the pseudo header's %#04x", got, pseudo)
	}

	var packets [][]byte
	payload := packet[headers:]
	for i := 0; len(payload) > 0; i++ {
		data := payload[:min(int(hdr.GSOSize), len(payload))]
		payload = payload[len(data):]
		p := append(append([]byte(nil), packet[:headers]...), data...)
		if tcp {
			seq := binary.BigEndian.Uint32(p[transport+4:])
			binary.BigEndian.PutUint32(p[transport+4:], seq+uint32(i)*uint32(hdr.GSOSize))
			if len(payload) > 0 {
				p[transport+13] &^= FIN | PSH
			}
			if i > 0 {
				p[transport+13] &^= CWR
			}
		} else {
			binary.BigEndian.PutUint16(p[transport+4:], uint16(len(p)-transport))
		}
		if version == 4 {
			id := binary.BigEndian.Uint16(p[4:])
			binary.BigEndian.PutUint16(p[4:], id+uint16(i))
			binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
			binary.BigEndian.PutUint16(p[10:], 0)
			binary.BigEndian.PutUint16(p[10:], ^Sum(p[:transport]))
		} else {
			binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
		}
		binary.BigEndian.PutUint16(p[check:], pseudoSum(addresses, protocol, len(p)-transport))
		sum := ^Sum(p[transport:])
		if sum == 0 && !tcp {
			sum = 0xffff
		}
		binary.BigEndian.PutUint16(p[check:], sum)
		packets = append(packets, p)
	}
	return packets, nil
}

// network checks the IP header of a super-frame and returns the offset of the transport header and
// the addresses.
func network(packet []byte, tcp bool) (transport int, addresses []byte, err error) {
	protocol := uint8(ProtocolUDP)
	if tcp {
		protocol = ProtocolTCP
	}
	if packet[0]>>4 == 4 {
		transport = int(packet[0]&15) * 4
		switch {
		case transport < 20 || transport > len(packet):
			return 0, nil, errors.New("IPv4 header length")
		case Sum(packet[:transport]) != 0xffff:
			return 0, nil, errors.New("IPv4 header checksum")
		case int(binary.BigEndian.Uint16(packet[2:])) != len(packet):
			return 0, nil, errors.New("IPv4 total length")
		case binary.BigEndian.Uint16(packet[6:])&0x3fff != 0:
			return 0, nil, errors.New("IPv4 fragment")
		case packet[9] != protocol:
			return 0, nil, errors.New("IPv4 protocol")
		}
		return transport, packet[12:20], nil
	}
	if len(packet) < 40 || int(binary.BigEndian.Uint16(packet[4:])) != len(packet)-40 {
		return 0, nil, errors.New("IPv6 payload length")
	}
	next := packet[6]
	transport = 40
	for next == 0 || next == 60 { // hop-by-hop and destination options
		if transport+8 > len(packet) {
			return 0, nil, errors.New("IPv6 extension header")
		}
		next, transport = packet[transport], transport+8+8*int(packet[transport+1])
	}
	if next != protocol {
		return 0, nil, errors.New("IPv6 next header")
	}
	return transport, packet[8:40], nil
}

// pseudoSum returns the sum of the pseudo header for a transport segment of length bytes.
func pseudoSum(addresses []byte, protocol uint8, length int) uint16 {
	b := append([]byte(nil), addresses...)
	b = binary.BigEndian.AppendUint32(b, uint32(length))
	return Sum(append(b, 0, 0, 0, protocol))
}
