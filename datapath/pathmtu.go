package datapath

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"ovpn-go/crypto"
)

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
	err := t.udp.ns.Do(func() error {
		fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if t.udp.info.Mark != 0 {
			// Without the right to mark, the unmarked route is the best guess.
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, t.udp.info.Mark)
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
