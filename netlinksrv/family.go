package netlinksrv

import (
	"ovpn-go/crypto"
	"ovpn-go/datapath"
	"ovpn-go/netlinksrv/uapi"
)

// family is a generic netlink family that the server answers for.
type family struct {
	name string
	// operations is ordered by command, the order in which nlctrl lists them.
	operations []operation
	// describe builds the message that describes a peer to the requester, to whose namespace ids belongs.
	describe func(r *request, info *datapath.PeerInfo, flags uint16, ids *namespaceIDs) []byte
	// announce appends the notification of an event. It returns false, and appends nothing, if the family has no word
	// for it.
	announce func(b *builder, h header, ev datapath.Event) bool
	// messages is all that can stand in a message, in either direction, and notifications are the names of commands that only
	// the server sends: for the log.
	messages      *attributeSet
	notifications map[uint8]string
}

// families are those that the server answers for: the kernel's, and the one that came before it. They are set up by init
// because the handlers refer to them in turn.
var families [familyCount]family

const (
	ovpnFamily = iota // of the kernel (include/uapi/linux/ovpn.h)
	dcoFamily         // of the module that OpenVPN 2.6 was written for
	familyCount
)

const dcoFamilyName = "ovpn-dco-v2"

const (
	maxKeepalive = 86400 // seconds
	maxCipherKey = 256   // bytes; what a cipher takes is checked later
)

// The constructors below make the rows of the sets read like the kernel's netlink specification.

func u32(name string, max uint64) attributePolicy {
	return attributePolicy{name: name, kind: kindU32, max: max}
}

func u8(name string, max uint64) attributePolicy {
	return attributePolicy{name: name, kind: kindU8, max: max}
}

func u16(name string, max uint64) attributePolicy {
	return attributePolicy{name: name, kind: kindU16, max: max}
}

func fullU32(name string) attributePolicy { return u32(name, 0xffffffff) }

func s32(name string) attributePolicy { return attributePolicy{name: name, kind: kindS32} }

func uintOf(name string) attributePolicy { return attributePolicy{name: name, kind: kindUint} }

func be32(name string) attributePolicy { return attributePolicy{name: name, kind: kindBE32} }

func port(name string) attributePolicy {
	return attributePolicy{name: name, kind: kindBE16, min: 1, max: 65535}
}

func exactly(name string, n uint64) attributePolicy {
	return attributePolicy{name: name, kind: kindBinary, min: n, max: n}
}

func atMost(name string, n uint64) attributePolicy {
	return attributePolicy{name: name, kind: kindBinary, max: n, atMost: true}
}

func nest(name string, set *attributeSet) attributePolicy {
	return attributePolicy{name: name, kind: kindNest, nest: set}
}

// peerPolicies are all attributes of a peer.
var peerPolicies = []attributePolicy{
	uapi.PeerID:                u32("id", crypto.MaxPeerID),
	uapi.PeerRemoteIPv4:        be32("remote-ipv4"),
	uapi.PeerRemoteIPv6:        exactly("remote-ipv6", 16),
	uapi.PeerRemoteScopeID:     fullU32("remote-ipv6-scope-id"),
	uapi.PeerRemotePort:        port("remote-port"),
	uapi.PeerSocket:            fullU32("socket"),
	uapi.PeerSocketNetNSID:     s32("socket-netnsid"),
	uapi.PeerVPNIPv4:           be32("vpn-ipv4"),
	uapi.PeerVPNIPv6:           exactly("vpn-ipv6", 16),
	uapi.PeerLocalIPv4:         be32("local-ipv4"),
	uapi.PeerLocalIPv6:         exactly("local-ipv6", 16),
	uapi.PeerLocalPort:         port("local-port"),
	uapi.PeerKeepaliveInterval: u32("keepalive-interval", maxKeepalive),
	uapi.PeerKeepaliveTimeout:  u32("keepalive-timeout", maxKeepalive),
	uapi.PeerDelReason:         u32("del-reason", 4),
	uapi.PeerVPNRxBytes:        uintOf("vpn-rx-bytes"),
	uapi.PeerVPNTxBytes:        uintOf("vpn-tx-bytes"),
	uapi.PeerVPNRxPackets:      uintOf("vpn-rx-packets"),
	uapi.PeerVPNTxPackets:      uintOf("vpn-tx-packets"),
	uapi.PeerLinkRxBytes:       uintOf("link-rx-bytes"),
	uapi.PeerLinkTxBytes:       uintOf("link-tx-bytes"),
	uapi.PeerLinkRxPackets:     uintOf("link-rx-packets"),
	uapi.PeerLinkTxPackets:     uintOf("link-tx-packets"),
	uapi.PeerTxID:              u32("tx-id", crypto.MaxPeerID),
}

// keyPolicies are all attributes of a key.
var keyPolicies = []attributePolicy{
	uapi.KeyPeerID:     u32("peer-id", crypto.MaxPeerID),
	uapi.KeySlot:       u32("slot", 1),
	uapi.KeyKeyID:      u32("key-id", crypto.MaxKeyID),
	uapi.KeyCipher:     u32("cipher-alg", uint64(crypto.ChaCha20Poly1305)),
	uapi.KeyEncryptDir: nest("encrypt-dir", keyDirection),
	uapi.KeyDecryptDir: nest("decrypt-dir", keyDirection),
}

var keyDirection = &attributeSet{name: "keydir", attrs: []attributePolicy{
	uapi.DirCipherKey: atMost("cipher-key", maxCipherKey),
	uapi.DirNonceTail: exactly("nonce-tail", crypto.NonceTailSize),
}}

// subset makes a set of some of the attributes of all. Its highest number is the last one that it has.
func subset(name string, all []attributePolicy, numbers ...uint16) *attributeSet {
	s := &attributeSet{name: name}
	for _, n := range numbers {
		for len(s.attrs) <= int(n) {
			s.attrs = append(s.attrs, attributePolicy{})
		}
		s.attrs[n] = all[n]
	}
	return s
}

// peerMessage and keyMessage make the set of a message with an interface and one nest.
func peerMessage(name string, inner *attributeSet) *attributeSet {
	return &attributeSet{name: name, attrs: []attributePolicy{
		uapi.AttrIfindex: fullU32("ifindex"),
		uapi.AttrPeer:    nest("peer", inner),
	}}
}

func keyMessage(name string, inner *attributeSet) *attributeSet {
	return &attributeSet{name: name, attrs: []attributePolicy{
		uapi.AttrIfindex: fullU32("ifindex"),
		uapi.AttrKeyconf: nest("keyconf", inner),
	}}
}

// settable are the attributes of a peer that a request may give it after its creation.
var settable = []uint16{
	uapi.PeerID, uapi.PeerRemoteIPv4, uapi.PeerRemoteIPv6, uapi.PeerRemoteScopeID, uapi.PeerRemotePort, uapi.PeerVPNIPv4, uapi.PeerVPNIPv6,
	uapi.PeerLocalIPv4, uapi.PeerLocalIPv6, uapi.PeerKeepaliveInterval, uapi.PeerKeepaliveTimeout, uapi.PeerTxID,
}

// operation is what the server does for one command. A command without a row is not supported.
type operation struct {
	cmd  uint8
	name string
	// do and dump are what a request of either kind may hold; nil if there is no such request.
	do, dump *attributeSet
	// nest is the attribute of a do request that must be there, and required what must be in it, in the order
	// in which it is missed. Both are checked after the interface is found and before handle runs.
	nest     uint16
	required []uint16
	// tcpRemote: a peer over TCP may come with a remote address, which then means nothing.
	tcpRemote bool
	// secret: the request holds keys.
	secret bool
	// exclusive: nothing but what is required may be in the nest.
	exclusive bool
	// translate, unless nil, puts what is in the nest into the words of the kernel's family, which handle knows. The nest has
	// been checked as above.
	translate func(*request) (parsed, error)
	// handle does the work and returns the reply, nil if there is none beyond the acknowledgement.
	handle func(*request) ([]byte, error)
}

func init() {
	peer := &attributeSet{name: "peer", attrs: peerPolicies}
	keyconf := &attributeSet{name: "keyconf", attrs: keyPolicies}
	f := &families[ovpnFamily]
	f.name, f.describe, f.announce = uapi.FamilyName, (*request).peerReply, announce
	f.messages = &attributeSet{attrs: []attributePolicy{
		uapi.AttrIfindex: fullU32("ifindex"),
		uapi.AttrPeer:    nest("peer", peer),
		uapi.AttrKeyconf: nest("keyconf", keyconf),
	}}
	f.notifications = map[uint8]string{
		uapi.CmdPeerDelNtf:   "peer-del-ntf",
		uapi.CmdKeySwapNtf:   "key-swap-ntf",
		uapi.CmdPeerFloatNtf: "peer-float-ntf",
	}
	f.operations = []operation{
		{
			cmd: uapi.CmdPeerNew, name: "peer-new", handle: newPeer,
			do: peerMessage("peer-new", subset("peer-new-input", peerPolicies,
				append([]uint16{uapi.PeerSocket}, settable...)...)),
			nest: uapi.AttrPeer, required: []uint16{uapi.PeerID},
		},
		{
			cmd: uapi.CmdPeerSet, name: "peer-set", handle: setPeer,
			do:   peerMessage("peer-set", subset("peer-set-input", peerPolicies, settable...)),
			nest: uapi.AttrPeer, required: []uint16{uapi.PeerID},
		},
		{
			cmd: uapi.CmdPeerGet, name: "peer-get", handle: getPeer,
			do: peerMessage("peer-get", peer),
			dump: &attributeSet{name: "peer-get-dump", attrs: []attributePolicy{
				uapi.AttrIfindex: fullU32("ifindex"),
			}},
			nest: uapi.AttrPeer, required: []uint16{uapi.PeerID}, exclusive: true,
		},
		{
			cmd: uapi.CmdPeerDel, name: "peer-del", handle: deletePeer,
			do:   peerMessage("peer-del", subset("peer-del-input", peerPolicies, uapi.PeerID)),
			nest: uapi.AttrPeer, required: []uint16{uapi.PeerID},
		},
		{
			cmd: uapi.CmdKeyNew, name: "key-new", handle: newKey, secret: true,
			do:   keyMessage("key-new", keyconf),
			nest: uapi.AttrKeyconf,
			required: []uint16{
				uapi.KeyPeerID, uapi.KeySlot, uapi.KeyKeyID, uapi.KeyCipher, uapi.KeyEncryptDir, uapi.KeyDecryptDir,
			},
		},
		{
			cmd: uapi.CmdKeyGet, name: "key-get", handle: getKey,
			do: keyMessage("key-get", subset("keyconf-get", keyPolicies,
				uapi.KeyPeerID, uapi.KeySlot, uapi.KeyKeyID, uapi.KeyCipher)),
			nest: uapi.AttrKeyconf, required: []uint16{uapi.KeyPeerID, uapi.KeySlot}, exclusive: true,
		},
		{
			cmd: uapi.CmdKeySwap, name: "key-swap", handle: swapKeys,
			do:   keyMessage("key-swap", subset("keyconf-swap-input", keyPolicies, uapi.KeyPeerID)),
			nest: uapi.AttrKeyconf, required: []uint16{uapi.KeyPeerID},
		},
		{
			cmd: uapi.CmdKeyDel, name: "key-del", handle: deleteKey,
			do:   keyMessage("key-del", subset("keyconf-del-input", keyPolicies, uapi.KeyPeerID, uapi.KeySlot)),
			nest: uapi.AttrKeyconf, required: []uint16{uapi.KeyPeerID, uapi.KeySlot},
		},
	}
}

// operation returns the row of a command, nil if there is none.
func (f *family) operation(cmd uint8) *operation {
	for i := range f.operations {
		if f.operations[i].cmd == cmd {
			return &f.operations[i]
		}
	}
	return nil
}
