package datapath

import (
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"ovpn-go/crypto"
	"ovpn-go/tun/netns"
)

const (
	ipv4Header = 20
	ipv6Header = 40
	udpHeader  = 8
	tcpHeader  = 20
)

const (
	// pathCheckSeconds is how often the route to a peer that is sent to is asked for its MTU again.
	pathCheckSeconds = 5
	// fragmentsSeconds is for how long fragments that came from a peer tell about the way to it: the kernel's
	// default for what it learned of a path (net.ipv4.route.mtu_expires).
	fragmentsSeconds = 600
	// No path is taken to be narrower, whatever its MTU, ICMP or fragments say: it is then left to fragmentation,
	// rather than that TCP connections get segments of a few bytes. Every host can put so much together (RFC 1122
	// section 3.3.2), and every IPv6 link takes as much (RFC 8200 section 5).
	minPath4, minPath6 = 576, 1280
)

// Fit is what a device does about inner packets that are too long to reach a peer in one piece. Those packets
// are always delivered, in fragments of the outer packet, as by the kernel module; the zero Fit keeps most of
// them from being sent.
type Fit struct {
	// MSS limits the segments of TCP connections inside the tunnel, by the MSS options of their first packets
	// in both directions. MSSAuto: so that their outer packets fit the path to the peer; where that takes 1493
	// to 1500 bytes, 1492, since a link that does PPPoE is the usual bottleneck on such a path and can't be seen
	// from here (OpenVPN's default is the same). A number of MinMSS to MaxMSS: so that their outer packets have
	// at most so many bytes, IP and UDP headers included (OpenVPN's "mssfix N mtu"), and fit the path. MSSOff: no
	// limit, as in the kernel module.
	MSS int
	// Silent leaves the sender of a packet that must not be fragmented (IPv4 with DF, and IPv6) without
	// the ICMP message that it does not fit, as in the kernel module.
	Silent bool
}

// Values of Fit.MSS.
const (
	MSSAuto = 0
	MSSOff  = -1
	MinMSS  = 576 // no host needs to take smaller packets (RFC 791 section 3.1)
	MaxMSS  = 65535
)

// pppoeMTU is what PPPoE leaves of Ethernet's 1500 bytes (RFC 2516 section 7).
const pppoeMTU, ethernetMTU = 1492, 1500

// path is what is known of the way to one peer over UDP, as far as sizes go. Without having been measured it
// limits nothing.
type path struct {
	// Read for every packet. 0: not known, or no matter.
	whole      atomic.Uint32 // the longest inner packet in bytes that leaves unfragmented
	mss4, mss6 atomic.Uint32 // the largest TCP segments, inside IPv4 and IPv6, that connections may agree on

	due atomic.Int64 // boot-time second of the next look at the route

	mu        sync.Mutex
	route     int   // MTU of the route, 0: not known; guarded by mu
	v6        bool  // guarded by mu
	fragment  int   // the largest of the fragments that came from there, 0: none did; guarded by mu
	forgotten int64 // boot-time second in which fragment is forgotten; guarded by mu
}

// measure asks the kernel for the MTU of the route to remote, which includes what ICMP has told it. Where there is
// no route the limits stay as they are: there is nothing to fit.
func (p *path) measure(probe *pathProbe, fit Fit, remote netip.AddrPort, scope uint32, now int64) error {
	p.due.Store(now + pathCheckSeconds)
	mtu, err := probe.mtu(remote, scope)
	if err != nil {
		return fmt.Errorf("path mtu to %v: %w", remote.Addr(), err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fragment != 0 && now >= p.forgotten {
		p.fragment = 0
	}
	p.route, p.v6 = mtu, remote.Addr().Is6()
	p.settle(fit)
	return nil
}

// measuredIn reports whether the route was looked at in this boot-time second.
func (p *path) measuredIn(second int64) bool { return p.due.Load() == second+pathCheckSeconds }

// cameInFragments learns from an authentic datagram that came from the peer in fragments, the largest of which
// had size bytes. The routers on the way from a peer don't tell us what they fragment, but most paths are of one
// width in both directions, and a limit on TCP segments counts for both.
func (p *path) cameInFragments(size int, fit Fit, now int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fragment != 0 && size > p.fragment && now < p.forgotten {
		return
	}
	p.forgotten = now + fragmentsSeconds
	if p.fragment != size {
		p.fragment = size
		p.settle(fit)
	}
}

// moved forgets what fragments told about the way to another address.
func (p *path) moved() {
	p.mu.Lock()
	p.fragment = 0
	p.mu.Unlock()
}

// settle derives the limits. p.mu is held.
func (p *path) settle(fit Fit) {
	if p.route == 0 {
		return
	}
	mtu := p.route
	if p.fragment != 0 {
		mtu = min(mtu, p.fragment)
	}
	smallest, outer := minPath4, ipv4Header+udpHeader+crypto.Overhead
	if p.v6 {
		smallest, outer = minPath6, ipv6Header+udpHeader+crypto.Overhead
	}
	mtu = min(max(mtu, smallest), 65535)
	p.whole.Store(uint32(mtu - outer))
	switch {
	case fit.MSS == MSSOff:
		p.mss4.Store(0)
		p.mss6.Store(0)
		return
	case fit.MSS != MSSAuto:
		mtu = min(mtu, fit.MSS)
	case mtu > pppoeMTU && mtu <= ethernetMTU:
		mtu = pppoeMTU
	}
	inner := mtu - outer
	p.mss4.Store(uint32(inner - ipv4Header - tcpHeader))
	p.mss6.Store(uint32(inner - ipv6Header - tcpHeader))
}

// pathProbe asks the routes of a client's socket for the MTU towards an address, with sockets that are connected
// only while they ask. A nil pathProbe knows no routes. It may be used concurrently.
type pathProbe struct {
	mu     sync.Mutex
	v4, v6 int // descriptors, -1: none
}

// newPathProbe opens a probe for a client's socket.
func newPathProbe(ns *netns.NS, info udpInfo) (*pathProbe, error) {
	p := &pathProbe{v4: -1, v6: -1}
	err := ns.Do(func() (err error) {
		if info.Family == unix.AF_INET || info.DualStack {
			if p.v4, err = openProbe(unix.AF_INET, info); err != nil {
				return err
			}
		}
		if info.Family == unix.AF_INET6 {
			p.v6, err = openProbe(unix.AF_INET6, info)
		}
		return err
	})
	if err != nil {
		p.close()
		return nil, fmt.Errorf("open a socket to ask for routes: %w", err)
	}
	return p, nil
}

func openProbe(family int, info udpInfo) (int, error) {
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	// Without the right to these, the route without them is the best guess.
	if info.Mark != 0 {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, info.Mark)
	}
	if info.Ifindex != 0 {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, info.Ifindex)
	}
	return fd, nil
}

// setMark has the probe ask for the way of packets with a mark.
func (p *pathProbe) setMark(mark int) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, fd := range []int{p.v4, p.v6} {
		if fd >= 0 {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, mark) // else the route without it is the best guess
		}
	}
}

func (p *pathProbe) close() {
	if p == nil {
		return
	}
	for _, fd := range []*int{&p.v4, &p.v6} {
		if *fd >= 0 {
			unix.Close(*fd)
			*fd = -1
		}
	}
}

// mtu returns the MTU in bytes of the route to remote.
func (p *pathProbe) mtu(remote netip.AddrPort, scope uint32) (int, error) {
	if p == nil {
		return 0, unix.ENETUNREACH
	}
	var name unix.Sockaddr = &unix.SockaddrInet6{Port: int(remote.Port()), ZoneId: scope, Addr: remote.Addr().As16()}
	level, option := unix.IPPROTO_IPV6, unix.IPV6_MTU
	p.mu.Lock()
	defer p.mu.Unlock()
	fd := p.v6
	if remote.Addr().Is4() {
		name = &unix.SockaddrInet4{Port: int(remote.Port()), Addr: remote.Addr().As4()}
		level, option = unix.IPPROTO_IP, unix.IP_MTU
		fd = p.v4
	}
	if fd < 0 {
		return 0, unix.EAFNOSUPPORT
	}
	// Each time anew: a connected socket stays with the route that it found.
	// One that found none has a port nevertheless.
	defer disconnect(fd)
	if err := unix.Connect(fd, name); err != nil {
		return 0, err
	}
	return unix.GetsockoptInt(fd, level, option)
}

// disconnect undoes a connect, which also gives up the port that came with it.
func disconnect(fd int) {
	var unspec unix.RawSockaddr // AF_UNSPEC is 0
	_, _, _ = unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(ptr(&unspec)), unix.SizeofSockaddrInet4)
}
