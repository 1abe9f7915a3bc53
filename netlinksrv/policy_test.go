package netlinksrv

import (
	"encoding/hex"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
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
	peerNew, keyNew := families[ovpnFamily].operation(cmdPeerNew).do, families[ovpnFamily].operation(cmdKeyNew).do
	peerGet := families[ovpnFamily].operation(cmdPeerGet).do
	peer := func(fields ...field) []byte {
		return fieldsOf(f32(attrIfindex, 7), fnest(attrPeer, fields...))
	}
	key := func(fields ...field) []byte {
		return fieldsOf(f32(attrIfindex, 7), fnest(attrKeyconf, fields...))
	}
	nonceTail := fraw(dirNonceTail, make([]byte, 8)...)
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
		{"V1 above the set", peerNew, fieldsOf(f32(attrIfindex, 7), fnest(attrKeyconf)),
			refusal{unix.EINVAL, unknown, nestAt, "", 0, 0}},
		{"V1 above an inner set", peerNew, peer(f32(peerTxID+1, 1)), refusal{unix.EINVAL, unknown, innerAt, "", 0, 0}},
		{"V1 highest possible type", peerNew, fieldsOf(fraw(0x3fff)), refusal{unix.EINVAL, unknown, ifindexAt, "", 0, 0}},
		{"V1 type 0 with a flag", peerNew, fieldsOf(fraw(unix.NLA_F_NESTED)), refusal{unix.EINVAL, unknown, ifindexAt, "", 0, 0}},
		{"V2 u32 too short", peerNew, fieldsOf(fraw(attrIfindex, 1, 2, 3)),
			refusal{unix.EINVAL, length, ifindexAt, described(&peerNew.attrs[attrIfindex]), 0, 0}},
		{"V2 u32 too long", peerNew, fieldsOf(fraw(attrIfindex, 1, 2, 3, 4, 5)),
			refusal{unix.EINVAL, length, ifindexAt, described(&peerNew.attrs[attrIfindex]), 0, 0}},
		{"V2 empty", peerNew, fieldsOf(fraw(attrIfindex)),
			refusal{unix.EINVAL, length, ifindexAt, described(&peerNew.attrs[attrIfindex]), 0, 0}},
		{"V2 be32", peerNew, peer(fraw(peerRemoteIPv4, 1, 2, 3)), refusal{unix.EINVAL, length, innerAt, "", 0, 0}},
		{"V2 be16", peerNew, peer(fraw(peerRemotePort, 1, 2, 3)), refusal{unix.EINVAL, length, innerAt, "", 0, 0}},
		{"V2 s32", peerGet, peer(fraw(peerSocketNetNSID, 1)),
			refusal{unix.EINVAL, length, innerAt, described(&peerPolicies[peerSocketNetNSID]), 0, 0}},
		{"V2 before V4", peerNew, fieldsOf(fraw(attrIfindex|unix.NLA_F_NESTED, 1)),
			refusal{unix.EINVAL, length, ifindexAt, described(&peerNew.attrs[attrIfindex]), 0, 0}},
		{"V3", peerNew, fieldsOf(fraw(attrPeer, 8, 0, 1, 0, 1, 0, 0, 0)),
			refusal{unix.EINVAL, noFlag, ifindexAt, described(&peerNew.attrs[attrPeer]), 0, 0}},
		{"V3 inner nest", keyNew, key(fraw(keyEncryptDir)),
			refusal{unix.EINVAL, noFlag, innerAt, described(&keyPolicies[keyEncryptDir]), 0, 0}},
		{"V4", peerNew, fieldsOf(f32(attrIfindex|unix.NLA_F_NESTED, 7)),
			refusal{unix.EINVAL, flag, ifindexAt, described(&peerNew.attrs[attrIfindex]), 0, 0}},
		{"V4 be16", peerNew, peer(f16(peerRemotePort|unix.NLA_F_NESTED, 1)), refusal{unix.EINVAL, flag, innerAt, "", 0, 0}},
		{"V4 binary", peerNew, peer(fraw(peerVPNIPv6 | unix.NLA_F_NESTED)),
			refusal{unix.EINVAL, flag, innerAt, described(&peerPolicies[peerVPNIPv6]), 0, 0}},
		{"V5", peerGet, peer(fraw(peerVPNRxBytes, 1, 2)),
			refusal{unix.EINVAL, length, innerAt, described(&peerPolicies[peerVPNRxBytes]), 0, 0}},
		{"V5 of 4 bytes", peerGet, peer(fraw(peerVPNRxBytes, 1, 2, 3, 4)), refusal{}},
		{"V5 of 8 bytes", peerGet, peer(fraw(peerVPNRxBytes, 1, 2, 3, 4, 5, 6, 7, 8)), refusal{}},
		{"V6", peerNew, fieldsOf(fraw(attrPeer|unix.NLA_F_NESTED, 1, 2, 3)),
			refusal{unix.ERANGE, failed, ifindexAt, described(&peerNew.attrs[attrPeer]), 0, 0}},
		{"V7", peerNew, peer(f32(peerSocketNetNSID, 1)), refusal{unix.EINVAL, unsupported, innerAt, "", 0, 0}},
		{"V7 whatever its form", peerNew, peer(fraw(peerSocketNetNSID|unix.NLA_F_NESTED, 1)),
			refusal{unix.EINVAL, unsupported, innerAt, "", 0, 0}},
		{"V7 at the top", keyNew, fieldsOf(fnest(attrPeer)), refusal{unix.EINVAL, unsupported, ifindexAt, "", 0, 0}},
		{"V8 id", peerNew, peer(f32(peerID, 0x1000000)), refusal{unix.ERANGE, integer, innerAt, described(&peerPolicies[peerID]), 0, 0}},
		{"V8 highest id", peerNew, peer(f32(peerID, 0xffffff)), refusal{}},
		{"V8 port", peerNew, peer(f16(peerRemotePort, 0)), refusal{unix.ERANGE, integer, innerAt, "", 0, 0}},
		{"V8 keepalive", peerNew, peer(f32(peerKeepaliveTimeout, 86401)),
			refusal{unix.ERANGE, integer, innerAt, described(&peerPolicies[peerKeepaliveTimeout]), 0, 0}},
		{"V8 slot", keyNew, key(f32(keySlot, 2)), refusal{unix.ERANGE, integer, innerAt, described(&keyPolicies[keySlot]), 0, 0}},
		{"V8 key id", keyNew, key(f32(keyKeyID, 8)), refusal{unix.ERANGE, integer, innerAt, described(&keyPolicies[keyKeyID]), 0, 0}},
		{"V8 cipher", keyNew, key(f32(keyCipher, 3)), refusal{unix.ERANGE, integer, innerAt, described(&keyPolicies[keyCipher]), 0, 0}},
		{"V8 del-reason", peerGet, peer(f32(peerDelReason, 5)),
			refusal{unix.ERANGE, integer, innerAt, described(&peerPolicies[peerDelReason]), 0, 0}},
		{"V9 address", peerNew, peer(fraw(peerVPNIPv6, make([]byte, 15)...)),
			refusal{unix.ERANGE, binary, innerAt, described(&peerPolicies[peerVPNIPv6]), 0, 0}},
		{"V9 key", keyNew, key(fnest(keyEncryptDir, fraw(dirCipherKey, make([]byte, 257)...))),
			refusal{unix.ERANGE, binary, innerAt + attributeHeader, described(&keyDirection.attrs[dirCipherKey]), 0, 0}},
		{"V9 empty key", keyNew, key(fnest(keyEncryptDir, fraw(dirCipherKey), nonceTail)), refusal{}},
		{"V9 nonce tail", keyNew, key(fnest(keyDecryptDir, fraw(dirNonceTail, 1))),
			refusal{unix.ERANGE, binary, innerAt + attributeHeader, described(&keyDirection.attrs[dirNonceTail]), 0, 0}},
		{"V10", peerNew, append(peer(), 0), refusal{Errno: unix.EINVAL, Text: leftover}},
		{"V10 attribute longer than its message", peerNew, []byte{8, 0, 1, 0, 1, 0, 0}, refusal{Errno: unix.EINVAL, Text: leftover}},
		{"V10 attribute shorter than its header", peerNew, []byte{3, 0, 1, 0}, refusal{Errno: unix.EINVAL, Text: leftover}},
		{"V10 in a nest", peerNew, peer(func(b *builder) { b.buf = append(b.buf, 3, 0, 1, 0, 0) }),
			refusal{Errno: unix.EINVAL, Text: leftover}},
		{"last attribute without padding", peerNew,
			peer(f32(peerID, 1), func(b *builder) { b.buf = append(b.buf, 6, 0, peerRemotePort, 0, 1, 1) }), refusal{}},
		{"NLA_F_NET_BYTEORDER is ignored", peerNew, peer(f16(peerRemotePort|unix.NLA_F_NET_BYTEORDER, 1)), refusal{}},
		{"first failure wins", peerNew, peer(f32(peerID, 0x1000000), f32(peerSocketNetNSID, 1)),
			refusal{unix.ERANGE, integer, innerAt, described(&peerPolicies[peerID]), 0, 0}},
		{"overridden attributes count", peerNew, peer(f32(peerID, 0x1000000), f32(peerID, 1)),
			refusal{unix.ERANGE, integer, innerAt, described(&peerPolicies[peerID]), 0, 0}},
		{"overridden nests count", peerNew, fieldsOf(fnest(attrPeer, f32(peerID, 0x1000000)), fnest(attrPeer)),
			refusal{unix.ERANGE, integer, ifindexAt + attributeHeader, described(&peerPolicies[peerID]), 0, 0}},
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
	set := families[ovpnFamily].operation(cmdPeerNew).do
	data := fieldsOf(fnest(attrPeer, f32(peerID, 1)), fnest(attrPeer, f32(peerID, 2), f32(peerID, 3)))
	p := set.parse(data, firstAttribute, attribute{})
	inner := p.inside(attrPeer)
	if got := inner.u32(peerID); got != 3 {
		t.Errorf("peer id %d, want the last one, 3", got)
	}
}

// TestSetsPerOperation is the table of what each operation takes: . taken, 1 V1, 7 V7.
func TestSetsPerOperation(t *testing.T) {
	peerTable := []struct {
		number uint16
		byOp   string // PEER_NEW, PEER_SET, PEER_GET, PEER_DEL
	}{
		{peerID, "...."},
		{peerRemoteIPv4, "...1"}, {peerRemoteIPv6, "...1"}, {peerRemoteScopeID, "...1"}, {peerRemotePort, "...1"},
		{peerSocket, ".7.1"},
		{peerSocketNetNSID, "77.1"},
		{peerVPNIPv4, "...1"}, {peerVPNIPv6, "...1"},
		{peerLocalIPv4, "...1"}, {peerLocalIPv6, "...1"},
		{peerLocalPort, "77.1"},
		{peerKeepaliveInterval, "...1"}, {peerKeepaliveTimeout, "...1"},
		{peerDelReason, "77.1"},
		{peerVPNRxBytes, "77.1"}, {peerVPNTxBytes, "77.1"}, {peerVPNRxPackets, "77.1"}, {peerVPNTxPackets, "77.1"},
		{peerLinkRxBytes, "77.1"}, {peerLinkTxBytes, "77.1"}, {peerLinkRxPackets, "77.1"}, {peerLinkTxPackets, "77.1"},
		{peerTxID, "...1"},
		{peerTxID + 1, "1111"},
	}
	keyTable := []struct {
		number uint16
		byOp   string // KEY_NEW, KEY_GET, KEY_SWAP, KEY_DEL
	}{
		{keyPeerID, "...."},
		{keySlot, "..1."},
		{keyKeyID, "..11"}, {keyCipher, "..11"},
		{keyEncryptDir, ".111"}, {keyDecryptDir, ".111"},
		{keyDecryptDir + 1, "1111"},
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
			for i, cmd := range []uint8{cmdPeerNew, cmdPeerSet, cmdPeerGet, cmdPeerDel} {
				check(t, families[ovpnFamily].operation(cmd), attrPeer, valid(peerPolicies, row.number), row.byOp[i])
			}
		})
	}
	for _, row := range keyTable {
		t.Run(fmt.Sprintf("keyconf attribute %d", row.number), func(t *testing.T) {
			for i, cmd := range []uint8{cmdKeyNew, cmdKeyGet, cmdKeySwap, cmdKeyDel} {
				check(t, families[ovpnFamily].operation(cmd), attrKeyconf, valid(keyPolicies, row.number), row.byOp[i])
			}
		})
	}
	t.Run("dump", func(t *testing.T) {
		set := families[ovpnFamily].operation(cmdPeerGet).dump
		if err := set.validate(fieldsOf(f32(attrIfindex, 1)), firstAttribute); err != nil {
			t.Errorf("ifindex: %v", err)
		}
		err := set.validate(fieldsOf(fnest(attrPeer)), firstAttribute)
		if err == nil || err.text != "Unknown attribute type" {
			t.Errorf("peer: %v, want V1", err)
		}
	})
}
