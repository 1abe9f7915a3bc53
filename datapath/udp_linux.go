package datapath

import (
	"encoding/binary"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// maxSegments is the kernel's UDP_MAX_SEGMENTS up to 6.8 (128 since); one send holds at most this
	// many datagrams.
	maxSegments = 64
	// maxUDPPayload is the longest payload of one IPv4 UDP send: 65535 less both headers. IPv6 would
	// take 20 bytes more.
	maxUDPPayload = 65507
	// maxControl holds the control messages of one call: UDP_SEGMENT or UDP_GRO, IP_PKTINFO,
	// IPV6_PKTINFO and the size of fragments.
	maxControl = 128
)

// ptr is the address of a value handed to a raw system call.
func ptr[T any](v *T) unsafe.Pointer { return unsafe.Pointer(v) }

// sendBuffer is what one sendmsg needs, kept so that a send allocates nothing.
type sendBuffer struct {
	lane    int // by which of a udpSocket's lanes it sends
	msg     unix.Msghdr
	iov     unix.Iovec
	name    [unix.SizeofSockaddrInet6]byte
	control [maxControl]byte
	many    *sendVector // made on first use: few paths need it
}

// sendVector is what one sendmmsg needs.
type sendVector struct {
	hdrs [maxSegments]mmsghdr
	iovs [maxSegments]unix.Iovec
}

// send passes data to the kernel as datagrams of stride bytes, the last of which may be shorter; with
// stride 0 or at least len(data) as one. local is the source address, or invalid to let the kernel
// choose. The error is a bare errno.
func (b *sendBuffer) send(sock *udpSocket, remote netip.AddrPort, scope uint32, local netip.Addr, data []byte, stride int) error {
	if !b.address(sock, remote, scope, local, stride, stride > 0 && stride < len(data)) {
		return unix.EAFNOSUPPORT
	}
	b.iov = unix.Iovec{Base: &data[0]}
	b.iov.SetLen(len(data))
	_, _, errno := syscall.RawSyscall(unix.SYS_SENDMSG, uintptr(sock.lanes[b.lane].fd), uintptr(ptr(&b.msg)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	if errno != 0 {
		return errno
	}
	return nil
}

// sendMany passes data to the kernel as datagrams of stride bytes, the last of which may be shorter and of which
// there are at most maxSegments, each on its own but in one call. It returns how many were taken; the error, a bare
// errno, is about the first that was not, and nil if the kernel does not say why it stopped.
func (b *sendBuffer) sendMany(sock *udpSocket, remote netip.AddrPort, scope uint32, local netip.Addr, data []byte, stride int) (int, error) {
	if !b.address(sock, remote, scope, local, 0, false) {
		return 0, unix.EAFNOSUPPORT
	}
	if b.many == nil {
		b.many = new(sendVector)
	}
	count := 0
	for len(data) > 0 {
		n := min(stride, len(data))
		iov := &b.many.iovs[count]
		iov.Base = &data[0]
		iov.SetLen(n)
		hdr := &b.many.hdrs[count]
		hdr.hdr, hdr.len = b.msg, 0
		hdr.hdr.Iov = iov
		data = data[n:]
		count++
	}
	n, _, errno := syscall.RawSyscall6(unix.SYS_SENDMMSG, uintptr(sock.lanes[b.lane].fd), uintptr(ptr(&b.many.hdrs[0])), uintptr(count), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// address fills in b.msg for datagrams to remote, from local if that is valid, to be cut by stride if segment is set.
// It reports false when the socket can't reach remote.
func (b *sendBuffer) address(sock *udpSocket, remote netip.AddrPort, scope uint32, local netip.Addr, stride int, segment bool) bool {
	namelen, ok := putSockaddr(&b.name, sock.info.Family, remote, scope)
	if !ok {
		return false
	}
	b.msg = unix.Msghdr{Name: &b.name[0], Namelen: namelen, Iov: &b.iov}
	b.msg.SetIovlen(1)

	n := 0
	if segment {
		binary.NativeEndian.PutUint16(b.putControl(&n, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 2), uint16(stride))
	}
	switch {
	case local.Is4():
		info := b.putControl(&n, unix.IPPROTO_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo)
		a := local.As4()
		copy(info[4:8], a[:]) // in_pktinfo: ifindex 0, spec_dst = source address, addr
	case local.Is6():
		info := b.putControl(&n, unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo)
		a := local.As16()
		copy(info[:16], a[:])
	}
	if n > 0 {
		b.msg.Control = &b.control[0]
		b.msg.SetControllen(n)
	}
	return true
}

// putControl appends a zeroed control message with size bytes of data and returns the data.
func (b *sendBuffer) putControl(n *int, level, typ int32, size int) []byte {
	space := unix.CmsgSpace(size)
	buf := b.control[*n : *n+space]
	clear(buf)
	h := (*unix.Cmsghdr)(ptr(&buf[0]))
	h.Level, h.Type = level, typ
	h.SetLen(unix.CmsgLen(size))
	*n += space
	return buf[unix.CmsgLen(0):unix.CmsgLen(size)]
}

// putSockaddr writes remote as a socket of the given family takes it: IPv4 in its mapped form on an
// AF_INET6 socket. It reports false when such a socket can't reach remote.
func putSockaddr(name *[unix.SizeofSockaddrInet6]byte, family int, remote netip.AddrPort, scope uint32) (uint32, bool) {
	clear(name[:])
	binary.NativeEndian.PutUint16(name[0:], uint16(family))
	binary.BigEndian.PutUint16(name[2:], remote.Port())
	if family == unix.AF_INET {
		if !remote.Addr().Is4() {
			return 0, false
		}
		a := remote.Addr().As4()
		copy(name[4:], a[:])
		return unix.SizeofSockaddrInet4, true
	}
	a := remote.Addr().As16()
	copy(name[8:], a[:])
	binary.NativeEndian.PutUint32(name[24:], scope)
	return unix.SizeofSockaddrInet6, true
}

// vectorLen is how many GRO buffers one recvmmsg may fill. Only pages that are touched cost memory.
const vectorLen = 8

// receiveBufferLen takes the longest GRO buffer and the tag's worth of slack that opening in place
// borrows behind the last datagram.
const receiveBufferLen = 65536 + 64

// receiveVector is what one recvmmsg needs.
type receiveVector struct {
	hdrs    [vectorLen]mmsghdr
	iovs    [vectorLen]unix.Iovec
	names   [vectorLen][unix.SizeofSockaddrInet6]byte
	control [vectorLen][maxControl]byte
	data    [vectorLen][]byte
}

// mmsghdr is the kernel's struct mmsghdr, which x/sys/unix lacks.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
	_   [4]byte
}

func (v *receiveVector) init() {
	for i := range v.data {
		v.data[i] = make([]byte, receiveBufferLen)
	}
}

// receive fills the vector and returns how many of its buffers hold something. The error is a bare
// errno.
func (v *receiveVector) receive(fd int) (int, error) {
	for i := range v.hdrs {
		v.iovs[i].Base = &v.data[i][0]
		v.iovs[i].SetLen(65536)
		h := &v.hdrs[i].hdr
		h.Name, h.Namelen = &v.names[i][0], uint32(len(v.names[i]))
		h.Iov = &v.iovs[i]
		h.SetIovlen(1)
		h.Control = &v.control[i][0]
		h.SetControllen(maxControl)
	}
	n, _, errno := syscall.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(ptr(&v.hdrs[0])), vectorLen, unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// received describes one filled buffer.
type received struct {
	data    []byte // with tag-sized slack in its capacity
	stride  int    // length of each datagram in data, the last may be shorter
	remote  netip.AddrPort
	local   netip.Addr // the datagrams' destination; invalid if the kernel did not say
	ifindex uint32     // the interface they came in by
	// fragment is the length in bytes of the largest IP packet in which a datagram came that was put together
	// from several; 0: it came whole.
	fragment int
}

// at describes buffer i of the last receive. A datagram that did not fit has length 0.
func (v *receiveVector) at(i int) (r received) {
	h := &v.hdrs[i].hdr
	r.data = v.data[i][:v.hdrs[i].len]
	if h.Flags&unix.MSG_TRUNC != 0 {
		r.data = r.data[:0]
	}
	r.stride = len(r.data)
	name := v.names[i][:h.Namelen]
	if len(name) >= unix.SizeofSockaddrInet4 {
		port := binary.BigEndian.Uint16(name[2:])
		if binary.NativeEndian.Uint16(name) == unix.AF_INET {
			r.remote = netip.AddrPortFrom(netip.AddrFrom4([4]byte(name[4:8])), port)
		} else if len(name) >= unix.SizeofSockaddrInet6 {
			r.remote = netip.AddrPortFrom(netip.AddrFrom16([16]byte(name[8:24])).Unmap(), port)
		}
	}
	control := v.control[i][:h.Controllen]
	for len(control) >= unix.SizeofCmsghdr {
		c := (*unix.Cmsghdr)(ptr(&control[0]))
		size := int(c.Len)
		if size < unix.SizeofCmsghdr || size > len(control) {
			break
		}
		r.parseControl(c.Level, c.Type, control[unix.CmsgLen(0):size])
		space := unix.CmsgSpace(size - unix.CmsgLen(0))
		if space > len(control) {
			break
		}
		control = control[space:]
	}
	return r
}

func (r *received) parseControl(level, typ int32, data []byte) {
	switch {
	case level == unix.IPPROTO_UDP && typ == unix.UDP_GRO && len(data) >= 4:
		if size := int(binary.NativeEndian.Uint32(data)); size > 0 {
			r.stride = size
		}
	case (level == unix.IPPROTO_IP && typ == unix.IP_RECVFRAGSIZE || level == unix.IPPROTO_IPV6 && typ == unix.IPV6_RECVFRAGSIZE) && len(data) >= 4:
		r.fragment = int(binary.NativeEndian.Uint32(data))
	case level == unix.IPPROTO_IP && typ == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
		r.ifindex = binary.NativeEndian.Uint32(data)
		r.local = netip.AddrFrom4([4]byte(data[8:12]))
	case level == unix.IPPROTO_IPV6 && typ == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
		r.local = netip.AddrFrom16([16]byte(data[:16])).Unmap()
		r.ifindex = binary.NativeEndian.Uint32(data[16:])
	}
}
