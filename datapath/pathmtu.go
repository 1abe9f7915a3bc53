package datapath

import (
	"fmt"
	"net/netip"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"ovpn-go/crypto"
	"ovpn-go/peers"
	"ovpn-go/tun"
)

// transport is how the device reaches one peer.
type transport struct {
	sock *udpSocket
	// mss4 and mss6 are the largest TCP segments, inside IPv4 and IPv6, that reach the peer in one
	// unfragmented datagram; 0: not known.
	mss4, mss6 atomic.Uint32
}

// transportOf returns nil for a peer that was added without a transport.
func transportOf(p *peers.Peer) *transport {
	t, _ := p.Transport().(*transport)
	return t
}

// clampMSS lowers the MSS option of a TCP SYN so that the connection's packets fit the path. A packet that does
// not fit is fragmented and loses the batch's speed; the kernel module leaves that to the user.
func (t *transport) clampMSS(packet []byte) {
	mss := t.mss4.Load()
	if packet[0]>>4 == 6 {
		mss = t.mss6.Load()
	}
	if mss != 0 {
		tun.ClampMSS(packet, uint16(mss))
	}
}

const (
	ipv4Header = 20
	ipv6Header = 40
	udpHeader  = 8
	tcpHeader  = 20
)

// setPathMTU derives the MSS limits from the path MTU, the largest IP packet in bytes that reaches remote.
func (t *transport) setPathMTU(mtu int, remote netip.Addr) {
	outer := ipv4Header
	if remote.Is6() {
		outer = ipv6Header
	}
	inner := min(mtu, 65535) - outer - udpHeader - crypto.Overhead
	t.mss4.Store(uint32(max(inner-ipv4Header-tcpHeader, 0)))
	t.mss6.Store(uint32(max(inner-ipv6Header-tcpHeader, 0)))
}

// lookUpPathMTU asks the routes of the transport's namespace about the way to remote. Where there is none, the
// limits stay as they are: there is nothing to fit.
func (t *transport) lookUpPathMTU(remote netip.AddrPort, scope uint32) error {
	family := unix.AF_INET
	if remote.Addr().Is6() {
		family = unix.AF_INET6
	}
	var name unix.Sockaddr = &unix.SockaddrInet6{Port: int(remote.Port()), ZoneId: scope, Addr: remote.Addr().As16()}
	level, option := unix.IPPROTO_IPV6, unix.IPV6_MTU
	if family == unix.AF_INET {
		name = &unix.SockaddrInet4{Port: int(remote.Port()), Addr: remote.Addr().As4()}
		level, option = unix.IPPROTO_IP, unix.IP_MTU
	}
	var mtu int
	err := t.sock.ns.Do(func() error {
		fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if t.sock.info.Mark != 0 {
			// Without the right to mark, the unmarked route is the best guess.
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, t.sock.info.Mark)
		}
		if err := unix.Connect(fd, name); err != nil {
			return err
		}
		mtu, err = unix.GetsockoptInt(fd, level, option)
		return err
	})
	if err != nil {
		return fmt.Errorf("path mtu to %v: %w", remote.Addr(), err)
	}
	t.setPathMTU(mtu, remote.Addr())
	return nil
}
