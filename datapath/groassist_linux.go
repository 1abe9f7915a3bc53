package datapath

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"ovpn-go/tun/netns"
)

// What UDP GRO does to a reuseport group (Linux 5.0 and later, seen on 6.18):
//
//   - Whether datagrams are merged is decided before the group's program runs, by a member that is chosen by
//     hash. If that is the client's, which has no UDP_GRO, they aren't: with one socket of ours half of all
//     senders would be received one datagram at a time.
//   - Merged datagrams are of one length but for the last, which may be shorter, and the program sees the first.
//     So a short control packet right behind data packets comes to us: on a busy tunnel that is the usual case,
//     and its retransmission fares no better. A short data packet right behind a control packet goes to the
//     client, who drops it; that one is lost.
//
// groAssist mends both: more members that vote for merging, and control packets are given back.

// groAssist goes with the sockets that shareUDP made for one client's socket.
type groAssist struct {
	port   uint16
	decoys []int
	raw4   int
	raw6   int

	mu  sync.Mutex
	buf []byte // guarded by mu: the packet in hand
}

// maxDecoys limits the descriptors spent on one client's socket, minDecoys what is left to chance on kernels
// before 6.2, where a decoy can't be bound to a CPU.
const (
	minDecoys = 4
	maxDecoys = 16
)

// assistGRO makes UDP_GRO on the sockets that share client safe and effective. Close it before those. When it
// fails, control packets would be lost: the sockets should then not have UDP_GRO (setGRO). It needs CAP_NET_RAW
// over the client's namespace and the loopback device up; for a socket bound to a device there is no way, nor for
// one that is transparent, as a packet for an address that isn't local can't be given back.
func assistGRO(client *os.File, info udpInfo) (g *groAssist, err error) {
	ns, err := netns.OfSocket(client)
	if err != nil {
		return nil, fmt.Errorf("assist UDP GRO: %w", err)
	}
	defer ns.Close()
	g = &groAssist{port: info.LocalPort, raw4: -1, raw6: -1}
	err = netns.Control(client, func(fd int) error {
		c, err := inspectUDP(fd)
		if err != nil {
			return err
		}
		if c.Ifindex != 0 || c.has(unix.IPPROTO_IP, unix.IP_TRANSPARENT) {
			return fmt.Errorf("socket is bound to a device or transparent: %w", unix.EOPNOTSUPP)
		}
		return ns.Do(func() error {
			if err := g.openRaw(info); err != nil {
				return err
			}
			if !c.remote.IsValid() {
				g.openDecoys(c)
			}
			return nil
		})
	})
	if err != nil {
		g.close()
		return nil, fmt.Errorf("assist UDP GRO: %w", err)
	}
	return g, nil
}

// close drops the descriptors.
func (g *groAssist) close() {
	for _, fd := range append(g.decoys, g.raw4, g.raw6) {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	g.decoys, g.raw4, g.raw6 = nil, -1, -1
}

// openDecoys adds members to the group that the program never chooses. Merging is decided on the CPU that takes
// packets from the device, and of the members the kernel prefers one of that CPU: so there is one for each. It
// does what it can.
func (g *groAssist) openDecoys(c *clientSocket) {
	for cpu := range min(max(runtime.NumCPU(), minDecoys), maxDecoys) {
		fd, err := unix.Socket(c.Family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_UDP)
		if err != nil {
			return
		}
		// Before the bind, which makes it a member.
		err = c.imitate(fd)
		if err == nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_INCOMING_CPU, cpu)
			err = unix.Bind(fd, c.addr)
		}
		if err != nil {
			unix.Close(fd)
			return
		}
		g.decoys = append(g.decoys, fd)
	}
}

// openRaw opens the sockets that control packets are given back through.
func (g *groAssist) openRaw(info udpInfo) (err error) {
	if info.Family == unix.AF_INET || info.DualStack {
		if g.raw4, err = openRaw(unix.AF_INET); err != nil {
			return err
		}
	}
	if info.Family == unix.AF_INET6 {
		g.raw6, err = openRaw(unix.AF_INET6)
	}
	return err
}

// openRaw opens a raw socket that takes whole IP packets. They go through the loopback device, as all packets to
// a local address do.
func openRaw(family int) (int, error) {
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_RAW)
	if err != nil {
		return -1, fmt.Errorf("open raw socket: %w", err)
	}
	ifr, err := unix.NewIfreq("lo")
	if err == nil {
		err = unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, ifr)
	}
	if err == nil && ifr.Uint16()&unix.IFF_UP == 0 {
		err = unix.ENETDOWN
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("loopback device: %w", err)
	}
	return fd, nil
}

// Lengths of the headers of a packet that is given back.
const (
	ipv6HeaderLen = 40
	udpHeaderLen  = 8
)

// giveBack puts a datagram that one of our sockets received from the peer at from, for the local address to, into
// the client's receive queue, with from as its sender. It reports whether the kernel took it. It may be called
// concurrently.
func (g *groAssist) giveBack(datagram []byte, from netip.AddrPort, to netip.Addr) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case to.IsMulticast():
		return false // it would leave the host
	case from.Addr().Is4() && to.Is4() && g.raw4 >= 0:
		g.buf = appendIPv4(g.buf[:0], datagram, from, netip.AddrPortFrom(to, g.port))
		return unix.Sendto(g.raw4, g.buf, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, &unix.SockaddrInet4{Addr: to.As4()}) == nil
	case from.Addr().Is6() && to.Is6() && g.raw6 >= 0 && !to.IsLinkLocalUnicast() && !from.Addr().IsLinkLocalUnicast():
		// A link-local sender would seem to be on the loopback link.
		g.buf = appendIPv6(g.buf[:0], datagram, from, netip.AddrPortFrom(to, g.port))
		return unix.Sendto(g.raw6, g.buf, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, &unix.SockaddrInet6{Addr: to.As16()}) == nil
	}
	return false
}

// appendIPv4 appends an IPv4 packet with a UDP datagram. The kernel fills in length, id and header checksum; the
// UDP checksum is zero, none, as nothing can spoil it on the way.
func appendIPv4(b, datagram []byte, from, to netip.AddrPort) []byte {
	b = append(b, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0)
	b = append(b, from.Addr().AsSlice()...)
	b = append(b, to.Addr().AsSlice()...)
	return appendUDP(b, datagram, from.Port(), to.Port())
}

// appendIPv6 appends an IPv6 packet with a UDP datagram, whose checksum is compulsory (RFC 8200, section 8.1).
func appendIPv6(b, datagram []byte, from, to netip.AddrPort) []byte {
	size := udpHeaderLen + len(datagram)
	start := len(b)
	b = append(b, 0x60, 0, 0, 0, byte(size>>8), byte(size), unix.IPPROTO_UDP, 64)
	b = append(b, from.Addr().AsSlice()...)
	b = append(b, to.Addr().AsSlice()...)
	b = appendUDP(b, datagram, from.Port(), to.Port())

	// Pseudo-header: addresses, length, next header.
	sum := uint32(size) + unix.IPPROTO_UDP
	for data := b[start+8:]; len(data) > 0; {
		if len(data) == 1 {
			sum += uint32(data[0]) << 8
			break
		}
		sum += uint32(binary.BigEndian.Uint16(data))
		data = data[2:]
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	if sum != 0xffff { // zero would mean no checksum
		sum = ^sum & 0xffff
	}
	binary.BigEndian.PutUint16(b[start+ipv6HeaderLen+6:], uint16(sum))
	return b
}

func appendUDP(b, datagram []byte, from, to uint16) []byte {
	b = binary.BigEndian.AppendUint16(b, from)
	b = binary.BigEndian.AppendUint16(b, to)
	b = binary.BigEndian.AppendUint16(b, uint16(udpHeaderLen+len(datagram)))
	b = append(b, 0, 0)
	return append(b, datagram...)
}

// setGRO switches UDP_GRO on one of our sockets.
func setGRO(fd int, on bool) error {
	value := 0
	if on {
		value = 1
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, value)
}
