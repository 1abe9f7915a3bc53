package netlinksrv

import (
	"encoding/hex"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv/uapi"
)

// refused says what a client learns from an error.
func refused(t testing.TB, err *requestError) refusal {
	t.Helper()
	if err == nil {
		return refusal{}
	}
	msg := message(0, 0)
	return readRefusal(t, acknowledge(msg, 1, err, ackOptions{extended: true}))
}

// described is the policy that a refusal carries, as text.
func described(p *attributePolicy) string {
	var b builder
	b.describe(0, p, nil)
	return hex.EncodeToString(b.buf[min(attributeHeader, len(b.buf)):])
}

// fieldsOf builds attributes alone.
func fieldsOf(fields ...field) []byte {
	var b builder
	for _, f := range fields {
		f(&b)
	}
	return b.buf
}

// TestValidate has one case and more for each row of the validator, V1 to V10.
func TestValidate(t *testing.T) {
	const (
		ifindexAt = firstAttribute
		nestAt    = ifindexAt + 8 // behind the interface
		innerAt   = nestAt + attributeHeader
	)
	peerNew, keyNew := families[ovpnFamily].operation(uapi.CmdPeerNew).do, families[ovpnFamily].operation(uapi.CmdKeyNew).do
	peerGet := families[ovpnFamily].operation(uapi.CmdPeerGet).do
	peer := func(fields ...field) []byte {
		return fieldsOf(f32(uapi.AttrIfindex, 7), fnest(uapi.AttrPeer, fields...))
	}
	key := func(fields ...field) []byte {
		return fieldsOf(f32(uapi.AttrIfindex, 7), fnest(uapi.AttrKeyconf, fields...))
	}
	nonceTail := fraw(uapi.DirNonceTail, make([]byte, 8)...)
	const (
		unknown     = "Unknown attribute type"
		length      = "invalid attribute length"
		noFlag      = "NLA_F_NESTED is missing"
		flag        = "NLA_F_NESTED not expected"
		failed      = "Attribute failed policy validation"
		unsupported = "Unsupported attribute"
		integer     = "integer out of range"
		binary      = "binary attribute size out of range"
		leftover    = "bytes leftover after parsing attributes"
	)
	for _, tt := range []struct {
		name string
		set  *attributeSet
		data []byte
		want refusal
	}{
		{"nothing", peerNew, nil, refusal{}},
		{"empty nest", peerNew, peer(), refusal{}},
		{"V1 type 0", peerNew, fieldsOf(f32(0, 7)), refusal{unix.EINVAL, unknown, ifindexAt, "", 0, 0}},
		{"V1 above the set", peerNew, fieldsOf(f32(uapi.AttrIfindex, 7), fnest(uapi.AttrKeyconf)),
			refusal{unix.EINVAL, unknown, nestAt, "", 0, 0}},
		{"V1 above an inner set", peerNew, peer(f32(uapi.PeerTxID+1, 1)), refusal{unix.EINVAL, unknown, innerAt, "", 0, 0}},
		{"V1 highest possible type", peerNew, fieldsOf(fraw(0x3fff)), refusal{unix.EINVAL, unknown, ifindexAt, "", 0, 0}},
		{"V1 type 0 with a flag", peerNew, fieldsOf(fraw(unix.NLA_F_NESTED)), refusal{unix.EINVAL, unknown, ifindexAt, "", 0, 0}},
		{"V2 u32 too short", peerNew, fieldsOf(fraw(uapi.AttrIfindex, 1, 2, 3)),
			refusal{unix.EINVAL, length, ifindexAt, described(&peerNew.attrs[uapi.AttrIfindex]), 0, 0}},
		{"V2 u32 too long", peerNew, fieldsOf(fraw(uapi.AttrIfindex, 1, 2, 3, 4, 5)),
			refusal{unix.EINVAL, length, ifindexAt, described(&peerNew.attrs[uapi.AttrIfindex]), 0, 0}},
		{"V2 empty", peerNew, fieldsOf(fraw(uapi.AttrIfindex)),
			refusal{unix.EINVAL, length, ifindexAt, described(&peerNew.attrs[uapi.AttrIfindex]), 0, 0}},
		{"V2 be32", peerNew, peer(fraw(uapi.PeerRemoteIPv4, 1, 2, 3)), refusal{unix.EINVAL, length, innerAt, "", 0, 0}},
		{"V2 be16", peerNew, peer(fraw(uapi.PeerRemotePort, 1, 2, 3)), refusal{unix.EINVAL, length, innerAt, "", 0, 0}},
		{"V2 s32", peerGet, peer(fraw(uapi.PeerSocketNetNSID, 1)),
			refusal{unix.EINVAL, length, innerAt, described(&peerPolicies[uapi.PeerSocketNetNSID]), 0, 0}},
		{"V2 before V4", peerNew, fieldsOf(fraw(uapi.AttrIfindex|unix.NLA_F_NESTED, 1)),
			refusal{unix.EINVAL, length, ifindexAt, described(&peerNew.attrs[uapi.AttrIfindex]), 0, 0}},
		{"V3", peerNew, fieldsOf(fraw(uapi.AttrPeer, 8, 0, 1, 0, 1, 0, 0, 0)),
			refusal{unix.EINVAL, noFlag, ifindexAt, described(&peerNew.attrs[uapi.AttrPeer]), 0, 0}},
		{"V3 inner nest", keyNew, key(fraw(uapi.KeyEncryptDir)),
			refusal{unix.EINVAL, noFlag, innerAt, described(&keyPolicies[uapi.KeyEncryptDir]), 0, 0}},
		{"V4", peerNew, fieldsOf(f32(uapi.AttrIfindex|unix.NLA_F_NESTED, 7)),
			refusal{unix.EINVAL, flag, ifindexAt, described(&peerNew.attrs[uapi.AttrIfindex]), 0, 0}},
		{"V4 be16", peerNew, peer(f16(uapi.PeerRemotePort|unix.NLA_F_NESTED, 1)), refusal{unix.EINVAL, flag, innerAt, "", 0, 0}},
		{"V4 binary", peerNew, peer(fraw(uapi.PeerVPNIPv6 | unix.NLA_F_NESTED)),
			refusal{unix.EINVAL, flag, innerAt, described(&peerPolicies[uapi.PeerVPNIPv6]), 0, 0}},
		{"V5", peerGet, peer(fraw(uapi.PeerVPNRxBytes, 1, 2)),
			refusal{unix.EINVAL, length, innerAt, described(&peerPolicies[uapi.PeerVPNRxBytes]), 0, 0}},
		{"V5 of 4 bytes", peerGet, peer(fraw(uapi.PeerVPNRxBytes, 1, 2, 3, 4)), refusal{}},
		{"V5 of 8 bytes", peerGet, peer(fraw(uapi.PeerVPNRxBytes, 1, 2, 3, 4, 5, 6, 7, 8)), refusal{}},
		{"V6", peerNew, fieldsOf(fraw(uapi.AttrPeer|unix.NLA_F_NESTED, 1, 2, 3)),
			refusal{unix.ERANGE, failed, ifindexAt, described(&peerNew.attrs[uapi.AttrPeer]), 0, 0}},
		{"V7", peerNew, peer(f32(uapi.PeerSocketNetNSID, 1)), refusal{unix.EINVAL, unsupported, innerAt, "", 0, 0}},
		{"V7 whatever its form", peerNew, peer(fraw(uapi.PeerSocketNetNSID|unix.NLA_F_NESTED, 1)),
			refusal{unix.EINVAL, unsupported, innerAt, "", 0, 0}},
		{"V7 at the top", keyNew, fieldsOf(fnest(uapi.AttrPeer)), refusal{unix.EINVAL, unsupported, ifindexAt, "", 0, 0}},
		{"V8 id", peerNew, peer(f32(uapi.PeerID, 0x1000000)), refusal{unix.ERANGE, integer, innerAt, described(&peerPolicies[uapi.PeerID]), 0, 0}},
		{"V8 highest id", peerNew, peer(f32(uapi.PeerID, 0xffffff)), refusal{}},
		{"V8 port", peerNew, peer(f16(uapi.PeerRemotePort, 0)), refusal{unix.ERANGE, integer, innerAt, "", 0, 0}},
		{"V8 keepalive", peerNew, peer(f32(uapi.PeerKeepaliveTimeout, 86401)),
			refusal{unix.ERANGE, integer, innerAt, described(&peerPolicies[uapi.PeerKeepaliveTimeout]), 0, 0}},
		{"V8 slot", keyNew, key(f32(uapi.KeySlot, 2)), refusal{unix.ERANGE, integer, innerAt, described(&keyPolicies[uapi.KeySlot]), 0, 0}},
		{"V8 key id", keyNew, key(f32(uapi.KeyKeyID, 8)), refusal{unix.ERANGE, integer, innerAt, described(&keyPolicies[uapi.KeyKeyID]), 0, 0}},
		{"V8 cipher", keyNew, key(f32(uapi.KeyCipher, 3)), refusal{unix.ERANGE, integer, innerAt, described(&keyPolicies[uapi.KeyCipher]), 0, 0}},
		{"V8 del-reason", peerGet, peer(f32(uapi.PeerDelReason, 5)),
			refusal{unix.ERANGE, integer, innerAt, described(&peerPolicies[uapi.PeerDelReason]), 0, 0}},
		{"V9 address", peerNew, peer(fraw(uapi.PeerVPNIPv6, make([]byte, 15)...)),
			refusal{unix.ERANGE, binary, innerAt, described(&peerPolicies[uapi.PeerVPNIPv6]), 0, 0}},
		{"V9 key", keyNew, key(fnest(uapi.KeyEncryptDir, fraw(uapi.DirCipherKey, make([]byte, 257)...))),
			refusal{unix.ERANGE, binary, innerAt + attributeHeader, described(&keyDirection.attrs[uapi.DirCipherKey]), 0, 0}},
		{"V9 empty key", keyNew, key(fnest(uapi.KeyEncryptDir, fraw(uapi.DirCipherKey), nonceTail)), refusal{}},
		{"V9 nonce tail", keyNew, key(fnest(uapi.KeyDecryptDir, fraw(uapi.DirNonceTail, 1))),
			refusal{unix.ERANGE, binary, innerAt + attributeHeader, described(&keyDirection.attrs[uapi.DirNonceTail]), 0, 0}},
		{"V10", peerNew, append(peer(), 0), refusal{Errno: unix.EINVAL, Text: leftover}},
		{"V10 attribute longer than its message", peerNew, []byte{8, 0, 1, 0, 1, 0, 0}, refusal{Errno: unix.EINVAL, Text: leftover}},
		{"V10 attribute shorter than its header", peerNew, []byte{3, 0, 1, 0}, refusal{Errno: unix.EINVAL, Text: leftover}},
		{"V10 in a nest", peerNew, peer(func(b *builder) { b.buf = append(b.buf, 3, 0, 1, 0, 0) }),
			refusal{Errno: unix.EINVAL, Text: leftover}},
		{"last attribute without padding", peerNew,
			peer(f32(uapi.PeerID, 1), func(b *builder) { b.buf = append(b.buf, 6, 0, uapi.PeerRemotePort, 0, 1, 1) }), refusal{}},
		{"NLA_F_NET_BYTEORDER is ignored", peerNew, peer(f16(uapi.PeerRemotePort|unix.NLA_F_NET_BYTEORDER, 1)), refusal{}},
		{"first failure wins", peerNew, peer(f32(uapi.PeerID, 0x1000000), f32(uapi.PeerSocketNetNSID, 1)),
			refusal{unix.ERANGE, integer, innerAt, described(&peerPolicies[uapi.PeerID]), 0, 0}},
		{"overridden attributes count", peerNew, peer(f32(uapi.PeerID, 0x1000000), f32(uapi.PeerID, 1)),
			refusal{unix.ERANGE, integer, innerAt, described(&peerPolicies[uapi.PeerID]), 0, 0}},
		{"overridden nests count", peerNew, fieldsOf(fnest(uapi.AttrPeer, f32(uapi.PeerID, 0x1000000)), fnest(uapi.AttrPeer)),
			refusal{unix.ERANGE, integer, ifindexAt + attributeHeader, described(&peerPolicies[uapi.PeerID]), 0, 0}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := refused(t, tt.set.validate(tt.data, firstAttribute))
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("refusal (-want +got):\n%s", diff)
			}
		})
	}
}

func TestLastOfDuplicatesIsUsed(t *testing.T) {
	set := families[ovpnFamily].operation(uapi.CmdPeerNew).do
	data := fieldsOf(fnest(uapi.AttrPeer, f32(uapi.PeerID, 1)), fnest(uapi.AttrPeer, f32(uapi.PeerID, 2), f32(uapi.PeerID, 3)))
	p := set.parse(data, firstAttribute, attribute{})
	inner := p.inside(uapi.AttrPeer)
	if got := inner.u32(uapi.PeerID); got != 3 {
		t.Errorf("peer id %d, want the last one, 3", got)
	}
}

// TestSetsPerOperation is the table of what each operation takes: . taken, 1 V1, 7 V7.
func TestSetsPerOperation(t *testing.T) {
	peerTable := []struct {
		number uint16
		byOp   string // PEER_NEW, PEER_SET, PEER_GET, PEER_DEL
	}{
		{uapi.PeerID, "...."},
		{uapi.PeerRemoteIPv4, "...1"}, {uapi.PeerRemoteIPv6, "...1"}, {uapi.PeerRemoteScopeID, "...1"}, {uapi.PeerRemotePort, "...1"},
		{uapi.PeerSocket, ".7.1"},
		{uapi.PeerSocketNetNSID, "77.1"},
		{uapi.PeerVPNIPv4, "...1"}, {uapi.PeerVPNIPv6, "...1"},
		{uapi.PeerLocalIPv4, "...1"}, {uapi.PeerLocalIPv6, "...1"},
		{uapi.PeerLocalPort, "77.1"},
		{uapi.PeerKeepaliveInterval, "...1"}, {uapi.PeerKeepaliveTimeout, "...1"},
		{uapi.PeerDelReason, "77.1"},
		{uapi.PeerVPNRxBytes, "77.1"}, {uapi.PeerVPNTxBytes, "77.1"}, {uapi.PeerVPNRxPackets, "77.1"}, {uapi.PeerVPNTxPackets, "77.1"},
		{uapi.PeerLinkRxBytes, "77.1"}, {uapi.PeerLinkTxBytes, "77.1"}, {uapi.PeerLinkRxPackets, "77.1"}, {uapi.PeerLinkTxPackets, "77.1"},
		{uapi.PeerTxID, "...1"},
		{uapi.PeerTxID + 1, "1111"},
	}
	keyTable := []struct {
		number uint16
		byOp   string // KEY_NEW, KEY_GET, KEY_SWAP, KEY_DEL
	}{
		{uapi.KeyPeerID, "...."},
		{uapi.KeySlot, "..1."},
		{uapi.KeyKeyID, "..11"}, {uapi.KeyCipher, "..11"},
		{uapi.KeyEncryptDir, ".111"}, {uapi.KeyDecryptDir, ".111"},
		{uapi.KeyDecryptDir + 1, "1111"},
	}
	// The form is right for the attribute, so that only its presence decides.
	valid := func(policies []attributePolicy, number uint16) field {
		if int(number) >= len(policies) {
			return fraw(number)
		}
		switch p := policies[number]; p.kind {
		case kindNest:
			return fnest(number)
		case kindBinary:
			return fraw(number, make([]byte, p.min)...)
		case kindBE16:
			return f16(number, 1)
		default:
			return f32(number, 1)
		}
	}
	check := func(t *testing.T, op *operation, nest uint16, f field, want byte) {
		t.Helper()
		err := op.do.validate(fieldsOf(fnest(nest, f)), firstAttribute)
		got := byte('.')
		switch {
		case err != nil && err.text == "Unknown attribute type":
			got = '1'
		case err != nil && err.text == "Unsupported attribute":
			got = '7'
		case err != nil:
			t.Errorf("%s: %v", op.name, err)
		}
		if got != want {
			t.Errorf("%s: %c, want %c", op.name, got, want)
		}
	}
	for _, row := range peerTable {
		t.Run(fmt.Sprintf("peer attribute %d", row.number), func(t *testing.T) {
			for i, cmd := range []uint8{uapi.CmdPeerNew, uapi.CmdPeerSet, uapi.CmdPeerGet, uapi.CmdPeerDel} {
				check(t, families[ovpnFamily].operation(cmd), uapi.AttrPeer, valid(peerPolicies, row.number), row.byOp[i])
			}
		})
	}
	for _, row := range keyTable {
		t.Run(fmt.Sprintf("keyconf attribute %d", row.number), func(t *testing.T) {
			for i, cmd := range []uint8{uapi.CmdKeyNew, uapi.CmdKeyGet, uapi.CmdKeySwap, uapi.CmdKeyDel} {
				check(t, families[ovpnFamily].operation(cmd), uapi.AttrKeyconf, valid(keyPolicies, row.number), row.byOp[i])
			}
		})
	}
	t.Run("dump", func(t *testing.T) {
		set := families[ovpnFamily].operation(uapi.CmdPeerGet).dump
		if err := set.validate(fieldsOf(f32(uapi.AttrIfindex, 1)), firstAttribute); err != nil {
			t.Errorf("ifindex: %v", err)
		}
		err := set.validate(fieldsOf(fnest(uapi.AttrPeer)), firstAttribute)
		if err == nil || err.text != "Unknown attribute type" {
			t.Errorf("peer: %v, want V1", err)
		}
	})
}
