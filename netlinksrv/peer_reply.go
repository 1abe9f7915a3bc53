package netlinksrv

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"ovpn-go/datapath"
)

// flagBE is NLA_F_NET_BYTEORDER, which the kernel sets on ports but not on addresses.
const flagBE = unix.NLA_F_NET_BYTEORDER

// peerReply builds the message that describes a peer to the requester, to whose namespace ids belongs.
func (r *request) peerReply(info *datapath.PeerInfo, flags uint16, ids *namespaceIDs) []byte {
	b := builder{buf: make([]byte, 0, 256)}
	start := r.reply(&b, cmdPeerGet, flags)
	peer := b.nest(attrPeer | unix.NLA_F_NESTED)
	if ns := info.SocketNetNS; ns != nil && ns.ID() != ids.from.ID() {
		b.u32(peerSocketNetNSID, uint32(ids.of(ns)))
	}
	b.u32(peerID, info.ID)
	b.u32(peerTxID, info.TxID)
	if isSet(info.VPN4) {
		b.raw(peerVPNIPv4, info.VPN4.AsSlice())
	}
	if isSet(info.VPN6) {
		b.raw(peerVPNIPv6, info.VPN6.AsSlice())
	}
	b.u32(peerKeepaliveInterval, info.Keepalive.Interval)
	b.u32(peerKeepaliveTimeout, info.Keepalive.Timeout)
	if !info.TCP {
		b.binding(info.Remote, info.ScopeID, info.Local)
	}
	b.be16(peerLocalPort|flagBE, info.LocalPort)
	b.uint(peerVPNRxBytes, info.Stats.VPNRxBytes)
	b.uint(peerVPNRxPackets, info.Stats.VPNRxPackets)
	b.uint(peerVPNTxBytes, info.Stats.VPNTxBytes)
	b.uint(peerVPNTxPackets, info.Stats.VPNTxPackets)
	b.uint(peerLinkRxBytes, info.Stats.LinkRxBytes)
	b.uint(peerLinkRxPackets, info.Stats.LinkRxPackets)
	b.uint(peerLinkTxBytes, info.Stats.LinkTxBytes)
	b.uint(peerLinkTxPackets, info.Stats.LinkTxPackets)
	b.endNest(peer)
	b.endMessage(start)
	return b.buf
}

// binding appends where a UDP peer is and from where it is reached.
func (b *builder) binding(remote netip.AddrPort, scope uint32, local netip.Addr) {
	b.remote(remote, scope)
	switch {
	case remote.Addr().Is4():
		b.raw(peerLocalIPv4, addressOr(local, netip.IPv4Unspecified()))
	case remote.Addr().Is6():
		b.raw(peerLocalIPv6, addressOr(local, netip.IPv6Unspecified()))
	}
}

// remote appends a transport address.
func (b *builder) remote(remote netip.AddrPort, scope uint32) {
	switch addr := remote.Addr(); {
	case addr.Is4():
		b.raw(peerRemoteIPv4, addr.AsSlice())
	case addr.Is6():
		b.raw(peerRemoteIPv6, addr.AsSlice())
		b.u32(peerRemoteScopeID, scope)
	default:
		return
	}
	b.be16(peerRemotePort|flagBE, remote.Port())
}

// addressOr returns the bytes of addr if it is of the same family as none, those of none otherwise.
func addressOr(addr, none netip.Addr) []byte {
	if addr.BitLen() != none.BitLen() {
		addr = none
	}
	return addr.AsSlice()
}
