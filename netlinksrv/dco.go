package netlinksrv

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"ovpn-go/crypto"
	"ovpn-go/datapath"
	"ovpn-go/netlinksrv/uapi"
	"ovpn-go/peers"
)

// The family "ovpn-dco-v2" is that of the module that came before the kernel's, which OpenVPN 2.6 and openvpn3-linux 27
// speak. Its requests say the same in other words; they are translated and carried out as the kernel's are. It has
// no words for floats, for keys that are used up, or for asking after a key.

// Commands (enum ovpn_nl_commands of the module). The deletion of a peer is announced under the number that requests it.
const (
	dcoNewPeer  = 1
	dcoSetPeer  = 2
	dcoDelPeer  = 3
	dcoNewKey   = 4
	dcoSwapKeys = 5
	dcoDelKey   = 6
	dcoGetPeer  = 7
)

// A message has the interface, attribute 1 as in the kernel's family, and one nest, whose number is the command's plus 1.
func dcoNest(command uint8) uint16 { return uint16(command) + 1 }

// Attributes of the nests. Each nest numbers its own.
const (
	dcoPeerID = 1 // of all nests but that of a deletion

	dcoNewRemote  = 2 // struct sockaddr_in or sockaddr_in6
	dcoNewSocket  = 3
	dcoNewVPN4    = 4
	dcoNewVPN6    = 5
	dcoNewLocalIP = 6 // 4 or 16 bytes

	dcoSetInterval = 2
	dcoSetTimeout  = 3

	dcoKeySlot    = 2
	dcoKeyID      = 3
	dcoKeyCipher  = 4
	dcoKeyEncrypt = 5
	dcoKeyDecrypt = 6

	dcoDelReason = 1 // announced only
	dcoDelPeerID = 2
)

func init() {
	id := u32("peer-id", crypto.MaxPeerID)
	slot := u8("slot", 1)
	message := func(command uint8, name string, inner ...attributePolicy) *attributeSet {
		set := &attributeSet{name: name, attrs: make([]attributePolicy, dcoNest(command)+1)}
		set.attrs[uapi.AttrIfindex] = fullU32("ifindex")
		set.attrs[dcoNest(command)] = nest(name, &attributeSet{name: name, attrs: append(make([]attributePolicy, 1), inner...)})
		return set
	}
	row := func(command uint8, name string, handle func(*request) ([]byte, error), translate func(*request) (parsed, error),
		required []uint16, inner ...attributePolicy) operation {
		return operation{
			cmd: command, name: name, handle: handle, translate: translate,
			do: message(command, name, inner...), nest: dcoNest(command), required: required,
		}
	}
	f := &families[dcoFamily]
	f.name, f.describe, f.announce = dcoFamilyName, (*request).dcoPeerReply, dcoAnnounce
	f.operations = []operation{
		row(dcoNewPeer, "new-peer", newPeer, translateNewPeer, []uint16{dcoPeerID, dcoNewSocket},
			id, atMost("sockaddr-remote", unix.SizeofSockaddrInet6), fullU32("socket"), be32("ipv4"), exactly("ipv6", 16), atMost("local-ip", 16)),
		row(dcoSetPeer, "set-peer", setPeer, translateSetPeer, []uint16{dcoPeerID},
			id, u32("keepalive-interval", maxKeepalive), u32("keepalive-timeout", maxKeepalive)),
		row(dcoDelPeer, "del-peer", deletePeer, translateDelPeer, []uint16{dcoDelPeerID}, u8("reason", uint64(peers.TransportDisconnect)), id),
		row(dcoNewKey, "new-key", newKey, translateKey, []uint16{dcoPeerID, dcoKeySlot, dcoKeyID, dcoKeyCipher, dcoKeyEncrypt, dcoKeyDecrypt},
			id, slot, u8("key-id", crypto.MaxKeyID), u16("cipher-alg", uint64(crypto.ChaCha20Poly1305)),
			nest("encrypt-dir", keyDirection), nest("decrypt-dir", keyDirection)),
		row(dcoSwapKeys, "swap-keys", swapKeys, translateKey, []uint16{dcoPeerID}, id),
		row(dcoDelKey, "del-key", deleteKey, translateKey, []uint16{dcoPeerID, dcoKeySlot}, id, slot),
		row(dcoGetPeer, "get-peer", getPeer, translatePeerID, []uint16{dcoPeerID}, id),
	}
	f.operations[dcoNewPeer-1].tcpRemote = true
	f.operations[dcoNewKey-1].secret = true
	f.operations[dcoGetPeer-1].dump = &attributeSet{name: "get-peer-dump", attrs: []attributePolicy{uapi.AttrIfindex: fullU32("ifindex")}}
	f.messages = &attributeSet{attrs: make([]attributePolicy, dcoNest(dcoGetPeer)+1)}
	f.messages.attrs[uapi.AttrIfindex] = fullU32("ifindex")
	for _, op := range f.operations {
		f.messages.attrs[op.nest] = op.do.attrs[op.nest]
	}
}

// translation collects attributes under the numbers of the kernel's family. What is said about one of them later, such as where
// it is in the message, is true of the original.
type translation struct {
	in  *parsed
	out parsed
}

func translate(r *request, to []attributePolicy) *translation {
	return &translation{in: &r.inner, out: parsed{
		set: &attributeSet{attrs: to}, at: make([]attribute, len(to)), nest: r.inner.nest,
	}}
}

// keep takes an attribute over as it is.
func (t *translation) keep(from, to uint16) {
	if a := t.in.get(from); a.present() {
		t.put(a, to, a.payload)
	}
}

// widen takes a number over that has 32 bits in the kernel's family.
func (t *translation) widen(from, to uint16) {
	a := t.in.get(from)
	switch len(a.payload) {
	case 1:
		t.put(a, to, nativeEndian.AppendUint32(nil, uint32(a.payload[0])))
	case 2:
		t.put(a, to, nativeEndian.AppendUint32(nil, uint32(nativeEndian.Uint16(a.payload))))
	}
}

func (t *translation) put(original attribute, number uint16, payload []byte) {
	t.out.at[number] = attribute{kind: number | original.kind&^typeMask, offset: original.offset, payload: payload}
}

func translatePeerID(r *request) (parsed, error) {
	t := translate(r, peerPolicies)
	t.keep(dcoPeerID, uapi.PeerID)
	return t.out, nil
}

func translateDelPeer(r *request) (parsed, error) {
	t := translate(r, peerPolicies)
	t.keep(dcoDelPeerID, uapi.PeerID)
	return t.out, nil
}

func translateSetPeer(r *request) (parsed, error) {
	t := translate(r, peerPolicies)
	t.keep(dcoPeerID, uapi.PeerID)
	t.keep(dcoSetInterval, uapi.PeerKeepaliveInterval)
	t.keep(dcoSetTimeout, uapi.PeerKeepaliveTimeout)
	return t.out, nil
}

// translateKey serves all requests about keys, which number alike what they have.
func translateKey(r *request) (parsed, error) {
	t := translate(r, keyPolicies)
	t.keep(dcoPeerID, uapi.KeyPeerID)
	t.widen(dcoKeySlot, uapi.KeySlot)
	t.widen(dcoKeyID, uapi.KeyKeyID)
	t.widen(dcoKeyCipher, uapi.KeyCipher)
	t.keep(dcoKeyEncrypt, uapi.KeyEncryptDir)
	t.keep(dcoKeyDecrypt, uapi.KeyDecryptDir)
	return t.out, nil
}

func translateNewPeer(r *request) (parsed, error) {
	t := translate(r, peerPolicies)
	t.keep(dcoPeerID, uapi.PeerID)
	t.keep(dcoNewSocket, uapi.PeerSocket)
	if r.device.Mode() == peers.MP {
		// On a P2P link they mean nothing; the kernel's family refuses them there.
		t.keep(dcoNewVPN4, uapi.PeerVPNIPv4)
		t.keep(dcoNewVPN6, uapi.PeerVPNIPv6)
	}
	remote := t.in.get(dcoNewRemote)
	if remote.present() && !t.sockaddr(remote) {
		return t.out, &requestError{errno: unix.EINVAL, text: "remote socket address is not one of IPv4 or IPv6", bad: remote.offset}
	}
	switch local := t.in.get(dcoNewLocalIP); {
	case !local.present():
	case len(local.payload) == 4 && t.out.has(uapi.PeerRemoteIPv4):
		t.put(local, uapi.PeerLocalIPv4, local.payload)
	case len(local.payload) == 16 && t.out.has(uapi.PeerRemoteIPv6):
		t.put(local, uapi.PeerLocalIPv6, local.payload)
	default:
		return t.out, &requestError{errno: unix.EINVAL, text: "local address is not of the remote address's family", bad: local.offset}
	}
	return t.out, nil
}

// sockaddr takes a socket address apart. It returns false if that is none of IPv4 or IPv6.
//
//	sockaddr_in:  family, native | port | address, 4 bytes | 8 bytes of nothing
//	sockaddr_in6: family, native | port | flow information, 4 bytes | address, 16 bytes | scope, native
func (t *translation) sockaddr(a attribute) bool {
	const portAt, ipv4At, ipv6At, scopeAt = 2, 4, 8, 24
	b := a.payload
	if len(b) < unix.SizeofSockaddrInet4 {
		return false
	}
	switch family := nativeEndian.Uint16(b); {
	case family == unix.AF_INET:
		t.put(a, uapi.PeerRemoteIPv4, b[ipv4At:ipv4At+4])
	case family == unix.AF_INET6 && len(b) == unix.SizeofSockaddrInet6:
		t.put(a, uapi.PeerRemoteIPv6, b[ipv6At:ipv6At+16])
		// Beside an IPv4 address in IPv6's clothes the kernel's family takes no scope.
		if nativeEndian.Uint32(b[scopeAt:]) != 0 {
			t.put(a, uapi.PeerRemoteScopeID, b[scopeAt:scopeAt+4])
		}
	default:
		return false
	}
	t.put(a, uapi.PeerRemotePort, b[portAt:portAt+2])
	return true
}

// Attributes of the answer to dcoGetPeer.
const (
	dcoGetRemote        = 2
	dcoGetVPN4          = 3
	dcoGetVPN6          = 4
	dcoGetLocalIP       = 5
	dcoGetLocalPort     = 6
	dcoGetInterval      = 7
	dcoGetTimeout       = 8
	dcoGetVPNRxBytes    = 9
	dcoGetVPNTxBytes    = 10
	dcoGetVPNRxPackets  = 11
	dcoGetVPNTxPackets  = 12
	dcoGetLinkRxBytes   = 13
	dcoGetLinkTxBytes   = 14
	dcoGetLinkRxPackets = 15
	dcoGetLinkTxPackets = 16
)

// dcoPeerReply describes a peer. All attributes are there, whether or not they say something, because openvpn3 looks at all of them without
// asking. The packet counters have 32 bits and wrap.
func (r *request) dcoPeerReply(info *datapath.PeerInfo, flags uint16, _ *namespaceIDs) []byte {
	b := builder{buf: make([]byte, 0, 256)}
	start := r.reply(&b, dcoGetPeer, flags)
	peer := b.nest(dcoNest(dcoGetPeer) | unix.NLA_F_NESTED)
	b.u32(dcoPeerID, info.ID)
	b.raw(dcoGetRemote, sockaddrOf(info))
	b.raw(dcoGetVPN4, addressOr(info.VPN4, netip.IPv4Unspecified()))
	b.raw(dcoGetVPN6, addressOr(info.VPN6, netip.IPv6Unspecified()))
	if info.Remote.Addr().Is6() {
		b.raw(dcoGetLocalIP, addressOr(info.Local, netip.IPv6Unspecified()))
	} else {
		b.raw(dcoGetLocalIP, addressOr(info.Local, netip.IPv4Unspecified()))
	}
	b.be16(dcoGetLocalPort, info.LocalPort)
	b.u32(dcoGetInterval, info.Keepalive.Interval)
	b.u32(dcoGetTimeout, info.Keepalive.Timeout)
	s := &info.Stats
	b.u64(dcoGetVPNRxBytes, s.VPNRxBytes)
	b.u64(dcoGetVPNTxBytes, s.VPNTxBytes)
	b.u32(dcoGetVPNRxPackets, uint32(s.VPNRxPackets))
	b.u32(dcoGetVPNTxPackets, uint32(s.VPNTxPackets))
	b.u64(dcoGetLinkRxBytes, s.LinkRxBytes)
	b.u64(dcoGetLinkTxBytes, s.LinkTxBytes)
	b.u32(dcoGetLinkRxPackets, uint32(s.LinkRxPackets))
	b.u32(dcoGetLinkTxPackets, uint32(s.LinkTxPackets))
	b.endNest(peer)
	b.endMessage(start)
	return b.buf
}

// sockaddrOf returns the socket address of a peer, of IPv4 with zeroes if it has none.
func sockaddrOf(info *datapath.PeerInfo) []byte {
	addr := info.Remote.Addr()
	if addr.Is6() {
		b := nativeEndian.AppendUint16(nil, unix.AF_INET6)
		b = binary.BigEndian.AppendUint16(b, info.Remote.Port())
		b = append(b, 0, 0, 0, 0)
		b = append(b, addr.AsSlice()...)
		return nativeEndian.AppendUint32(b, info.ScopeID)
	}
	b := nativeEndian.AppendUint16(nil, unix.AF_INET)
	b = binary.BigEndian.AppendUint16(b, info.Remote.Port())
	b = append(b, addressOr(addr, netip.IPv4Unspecified())...)
	return append(b, make([]byte, unix.SizeofSockaddrInet4-len(b))...)
}

// dcoAnnounce knows of deletions only.
func dcoAnnounce(b *builder, h header, ev datapath.Event) bool {
	if ev.Kind != datapath.PeerDeleted {
		return false
	}
	message := b.generic(h, dcoDelPeer, uapi.FamilyVersion)
	b.u32(uapi.AttrIfindex, uint32(ev.Ifindex))
	inner := b.nest(dcoNest(dcoDelPeer) | unix.NLA_F_NESTED)
	b.u8(dcoDelReason, uint8(ev.Reason))
	b.u32(dcoDelPeerID, ev.PeerID)
	b.endNest(inner)
	b.endMessage(message)
	return true
}
