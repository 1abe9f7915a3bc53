package netlinksrv

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv/uapi"
	"ovpn-go/peers"
)

// rule is a check that a handler makes of a request whose attributes are valid one by one.
type rule[T any] struct {
	name   string
	broken func(T) bool
	errno  unix.Errno
	text   string
}

// firstBroken returns the refusal for the first rule that v breaks, nil if there is none.
func firstBroken[T any](rules []rule[T], v T) error {
	for _, r := range rules {
		if r.broken(v) {
			return refuse(r.errno, "%s", r.text)
		}
	}
	return nil
}

// peerArgs is what a request says about a peer.
type peerArgs struct {
	*parsed
	mode peers.Mode
	// Addresses are unmapped; invalid means that the request does not have one.
	remote, local netip.Addr
	vpn           vpnAddrs
}

// readPeer reads the peer nest of a request.
func readPeer(r *request) *peerArgs {
	in := &r.inner
	return &peerArgs{
		parsed: in,
		mode:   r.device.Mode(),
		remote: addressIn(in, uapi.PeerRemoteIPv4, uapi.PeerRemoteIPv6),
		local:  addressIn(in, uapi.PeerLocalIPv4, uapi.PeerLocalIPv6),
		vpn: vpnAddrs{
			v4: addressIn(in, uapi.PeerVPNIPv4, 0),
			v6: ipv6In(in, uapi.PeerVPNIPv6),
		},
	}
}

// addressIn returns an address from either of two attributes, an IPv4-mapped one as IPv4.
func addressIn(p *parsed, ipv4, ipv6 uint16) netip.Addr {
	if a := p.get(ipv4); a.present() {
		return netip.AddrFrom4([4]byte(a.payload))
	}
	return ipv6In(p, ipv6).Unmap()
}

func ipv6In(p *parsed, number uint16) netip.Addr {
	if a := p.get(number); a.present() {
		return netip.AddrFrom16([16]byte(a.payload))
	}
	return netip.Addr{}
}

// peerRules are the checks of PEER_NEW and PEER_SET, in the kernel's order and with its words.
var peerRules = []rule[*peerArgs]{
	{"P2", func(p *peerArgs) bool {
		return p.has(uapi.PeerRemoteIPv4) && p.has(uapi.PeerRemoteIPv6)
	}, unix.EINVAL, "cannot specify both remote IPv4 or IPv6 address"},
	{"P3", func(p *peerArgs) bool {
		return p.has(uapi.PeerRemotePort) && !p.remote.IsValid()
	}, unix.EINVAL, "cannot specify remote port without IP address"},
	{"P4", func(p *peerArgs) bool {
		return p.remote.IsValid() && !p.has(uapi.PeerRemotePort)
	}, unix.EINVAL, "cannot specify remote IP address without port"},
	{"P5", func(p *peerArgs) bool {
		return p.has(uapi.PeerLocalIPv4) && !p.has(uapi.PeerRemoteIPv4)
	}, unix.EINVAL, "cannot specify local IPv4 address without remote"},
	{"P6", func(p *peerArgs) bool {
		return p.has(uapi.PeerLocalIPv6) && !p.has(uapi.PeerRemoteIPv6)
	}, unix.EINVAL, "cannot specify local IPV6 address without remote"},
	{"P7", func(p *peerArgs) bool {
		return p.remote.IsValid() && p.local.IsValid() && p.remote.Is4() != p.local.Is4()
	}, unix.EINVAL, "mismatching local and remote address families"},
	{"P8", func(p *peerArgs) bool {
		return p.has(uapi.PeerRemoteScopeID) && !p.remote.Is6()
	}, unix.EINVAL, "cannot specify scope id without remote IPv6 address"},
	{"P9", func(p *peerArgs) bool {
		return p.mode == peers.P2P && (p.vpn.v4.IsValid() || p.vpn.v6.IsValid())
	}, unix.EINVAL, "unexpected VPN IP in P2P mode"},
	{"P10", func(p *peerArgs) bool {
		return p.has(uapi.PeerKeepaliveInterval) != p.has(uapi.PeerKeepaliveTimeout)
	}, unix.EINVAL, "keepalive interval and timeout are required together"},
}

// vpnAddrs are a peer's addresses inside the tunnel; invalid and unspecified both mean none.
type vpnAddrs struct{ v4, v6 netip.Addr }

// vpnRules are the checks of a peer's VPN addresses on an MP device: of those that a new peer gets, and of those
// that a changed peer would have.
var vpnRules = []rule[vpnAddrs]{
	{"A1", func(a vpnAddrs) bool {
		return !isSet(a.v4) && !isSet(a.v6)
	}, unix.EINVAL, "at least one VPN IP must be configured in MP mode"},
	{"A2", func(a vpnAddrs) bool {
		return a.v4.IsMulticast() || a.v4.IsLoopback() || a.v4 == broadcast
	}, unix.EADDRNOTAVAIL, "VPN IPv4 address must be valid unicast or any"},
	{"A3", func(a vpnAddrs) bool {
		return a.v6.IsMulticast() || a.v6.IsLoopback() || a.v6.Is4In6() || isCompatible(a.v6)
	}, unix.EADDRNOTAVAIL, "VPN IPv6 address must be valid unicast or any"},
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

func isSet(addr netip.Addr) bool { return addr.IsValid() && !addr.IsUnspecified() }

// isCompatible reports whether addr is an IPv4-compatible IPv6 address, ::a.b.c.d.
func isCompatible(addr netip.Addr) bool {
	if !isSet(addr) {
		return false
	}
	b := addr.As16()
	return [12]byte(b[:]) == [12]byte{}
}
