package netlinksrv

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"ovpn-go/datapath"
	"ovpn-go/netlinksrv/uapi"
)

// flagBE is NLA_F_NET_BYTEORDER, which the kernel sets on ports but not on addresses.
const flagBE = unix.NLA_F_NET_BYTEORDER

// peerReply builds the message that describes a peer to the requester, to whose namespace ids belongs.
func (r *request) peerReply(info *datapath.PeerInfo, flags uint16, ids *namespaceIDs) []byte {
	b := builder{buf: make([]byte, 0, 256)}
	start := r.reply(&b, uapi.CmdPeerGet, flags)
	peer := b.nest(uapi.AttrPeer | unix.NLA_F_NESTED)
	if ns := info.SocketNetNS; ns != nil && ns.ID() != ids.from.ID() {
		b.u32(uapi.PeerSocketNetNSID, uint32(ids.of(ns)))
	}
	b.u32(uapi.PeerID, info.ID)
	b.u32(uapi.PeerTxID, info.TxID)
	if isSet(info.VPN4) {
		b.raw(uapi.PeerVPNIPv4, info.VPN4.AsSlice())
	}
	if isSet(info.VPN6) {
		b.raw(uapi.PeerVPNIPv6, info.VPN6.AsSlice())
	}
	b.u32(uapi.PeerKeepaliveInterval, info.Keepalive.Interval)
	b.u32(uapi.PeerKeepaliveTimeout, info.Keepalive.Timeout)
	if !info.TCP {
		b.binding(info.Remote, info.ScopeID, info.Local)
	}
	b.be16(uapi.PeerLocalPort|flagBE, info.LocalPort)
	b.uint(uapi.PeerVPNRxBytes, info.Stats.VPNRxBytes)
	b.uint(uapi.PeerVPNRxPackets, info.Stats.VPNRxPackets)
	b.uint(uapi.PeerVPNTxBytes, info.Stats.VPNTxBytes)
	b.uint(uapi.PeerVPNTxPackets, info.Stats.VPNTxPackets)
	b.uint(uapi.PeerLinkRxBytes, info.Stats.LinkRxBytes)
	b.uint(uapi.PeerLinkRxPackets, info.Stats.LinkRxPackets)
	b.uint(uapi.PeerLinkTxBytes, info.Stats.LinkTxBytes)
	b.uint(uapi.PeerLinkTxPackets, info.Stats.LinkTxPackets)
	b.endNest(peer)
	b.endMessage(start)
	return b.buf
}

// binding appends where a UDP peer is and from where it is reached.
func (b *builder) binding(remote netip.AddrPort, scope uint32, local netip.Addr) {
	b.remote(remote, scope)
	switch {
	case remote.Addr().Is4():
		b.raw(uapi.PeerLocalIPv4, addressOr(local, netip.IPv4Unspecified()))
	case remote.Addr().Is6():
		b.raw(uapi.PeerLocalIPv6, addressOr(local, netip.IPv6Unspecified()))
	}
}

// remote appends a transport address.
func (b *builder) remote(remote netip.AddrPort, scope uint32) {
	switch addr := remote.Addr(); {
	case addr.Is4():
		b.raw(uapi.PeerRemoteIPv4, addr.AsSlice())
	case addr.Is6():
		b.raw(uapi.PeerRemoteIPv6, addr.AsSlice())
		b.u32(uapi.PeerRemoteScopeID, scope)
	default:
		return
	}
	b.be16(uapi.PeerRemotePort|flagBE, remote.Port())
}

// addressOr returns the bytes of addr if it is of the same family as none, those of none otherwise.
func addressOr(addr, none netip.Addr) []byte {
	if addr.BitLen() != none.BitLen() {
		addr = none
	}
	return addr.AsSlice()
}
