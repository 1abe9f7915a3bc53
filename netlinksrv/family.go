package netlinksrv

import (
	"ovpn-go/crypto"
	"ovpn-go/datapath"
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

const (
	familyName    = "ovpn"
	dcoFamilyName = "ovpn-dco-v2"
)

// All families have this version, and one multicast group of this name.
const (
	familyVersion = 1
	groupName     = "peers"
)

// Commands (enum ovpn_cmd). Those that end in Ntf are only ever sent by the server.
const (
	cmdPeerNew      = 1
	cmdPeerSet      = 2
	cmdPeerGet      = 3
	cmdPeerDel      = 4
	cmdPeerDelNtf   = 5
	cmdKeyNew       = 6
	cmdKeyGet       = 7
	cmdKeySwap      = 8
	cmdKeySwapNtf   = 9
	cmdKeyDel       = 10
	cmdPeerFloatNtf = 11
)

// Attributes of a message (OVPN_A_*).
const (
	attrIfindex = 1
	attrPeer    = 2
	attrKeyconf = 3
)

// Attributes of a peer (OVPN_A_PEER_*).
const (
	peerID                = 1
	peerRemoteIPv4        = 2
	peerRemoteIPv6        = 3
	peerRemoteScopeID     = 4
	peerRemotePort        = 5
	peerSocket            = 6
	peerSocketNetNSID     = 7
	peerVPNIPv4           = 8
	peerVPNIPv6           = 9
	peerLocalIPv4         = 10
	peerLocalIPv6         = 11
	peerLocalPort         = 12
	peerKeepaliveInterval = 13
	peerKeepaliveTimeout  = 14
	peerDelReason         = 15
	peerVPNRxBytes        = 16
	peerVPNTxBytes        = 17
	peerVPNRxPackets      = 18
	peerVPNTxPackets      = 19
	peerLinkRxBytes       = 20
	peerLinkTxBytes       = 21
	peerLinkRxPackets     = 22
	peerLinkTxPackets     = 23
	peerTxID              = 24
)

// Attributes of a key (OVPN_A_KEYCONF_*) and of one direction of it (OVPN_A_KEYDIR_*).
const (
	keyPeerID     = 1
	keySlot       = 2
	keyKeyID      = 3
	keyCipher     = 4
	keyEncryptDir = 5
	keyDecryptDir = 6

	dirCipherKey = 1
	dirNonceTail = 2
)

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
	peerID:                u32("id", crypto.MaxPeerID),
	peerRemoteIPv4:        be32("remote-ipv4"),
	peerRemoteIPv6:        exactly("remote-ipv6", 16),
	peerRemoteScopeID:     fullU32("remote-ipv6-scope-id"),
	peerRemotePort:        port("remote-port"),
	peerSocket:            fullU32("socket"),
	peerSocketNetNSID:     s32("socket-netnsid"),
	peerVPNIPv4:           be32("vpn-ipv4"),
	peerVPNIPv6:           exactly("vpn-ipv6", 16),
	peerLocalIPv4:         be32("local-ipv4"),
	peerLocalIPv6:         exactly("local-ipv6", 16),
	peerLocalPort:         port("local-port"),
	peerKeepaliveInterval: u32("keepalive-interval", maxKeepalive),
	peerKeepaliveTimeout:  u32("keepalive-timeout", maxKeepalive),
	peerDelReason:         u32("del-reason", 4),
	peerVPNRxBytes:        uintOf("vpn-rx-bytes"),
	peerVPNTxBytes:        uintOf("vpn-tx-bytes"),
	peerVPNRxPackets:      uintOf("vpn-rx-packets"),
	peerVPNTxPackets:      uintOf("vpn-tx-packets"),
	peerLinkRxBytes:       uintOf("link-rx-bytes"),
	peerLinkTxBytes:       uintOf("link-tx-bytes"),
	peerLinkRxPackets:     uintOf("link-rx-packets"),
	peerLinkTxPackets:     uintOf("link-tx-packets"),
	peerTxID:              u32("tx-id", crypto.MaxPeerID),
}

// keyPolicies are all attributes of a key.
var keyPolicies = []attributePolicy{
	keyPeerID:     u32("peer-id", crypto.MaxPeerID),
	keySlot:       u32("slot", 1),
	keyKeyID:      u32("key-id", crypto.MaxKeyID),
	keyCipher:     u32("cipher-alg", uint64(crypto.ChaCha20Poly1305)),
	keyEncryptDir: nest("encrypt-dir", keyDirection),
	keyDecryptDir: nest("decrypt-dir", keyDirection),
}

var keyDirection = &attributeSet{name: "keydir", attrs: []attributePolicy{
	dirCipherKey: atMost("cipher-key", maxCipherKey),
	dirNonceTail: exactly("nonce-tail", crypto.NonceTailSize),
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
		attrIfindex: fullU32("ifindex"),
		attrPeer:    nest("peer", inner),
	}}
}

func keyMessage(name string, inner *attributeSet) *attributeSet {
	return &attributeSet{name: name, attrs: []attributePolicy{
		attrIfindex: fullU32("ifindex"),
		attrKeyconf: nest("keyconf", inner),
	}}
}

// settable are the attributes of a peer that a request may give it after its creation.
var settable = []uint16{
	peerID, peerRemoteIPv4, peerRemoteIPv6, peerRemoteScopeID, peerRemotePort, peerVPNIPv4, peerVPNIPv6,
	peerLocalIPv4, peerLocalIPv6, peerKeepaliveInterval, peerKeepaliveTimeout, peerTxID,
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
	f.name, f.describe, f.announce = familyName, (*request).peerReply, announce
	f.messages = &attributeSet{attrs: []attributePolicy{
		attrIfindex: fullU32("ifindex"),
		attrPeer:    nest("peer", peer),
		attrKeyconf: nest("keyconf", keyconf),
	}}
	f.notifications = map[uint8]string{
		cmdPeerDelNtf:   "peer-del-ntf",
		cmdKeySwapNtf:   "key-swap-ntf",
		cmdPeerFloatNtf: "peer-float-ntf",
	}
	f.operations = []operation{
		{
			cmd: cmdPeerNew, name: "peer-new", handle: newPeer,
			do: peerMessage("peer-new", subset("peer-new-input", peerPolicies,
				append([]uint16{peerSocket}, settable...)...)),
			nest: attrPeer, required: []uint16{peerID},
		},
		{
			cmd: cmdPeerSet, name: "peer-set", handle: setPeer,
			do:   peerMessage("peer-set", subset("peer-set-input", peerPolicies, settable...)),
			nest: attrPeer, required: []uint16{peerID},
		},
		{
			cmd: cmdPeerGet, name: "peer-get", handle: getPeer,
			do: peerMessage("peer-get", peer),
			dump: &attributeSet{name: "peer-get-dump", attrs: []attributePolicy{
				attrIfindex: fullU32("ifindex"),
			}},
			nest: attrPeer, required: []uint16{peerID}, exclusive: true,
		},
		{
			cmd: cmdPeerDel, name: "peer-del", handle: deletePeer,
			do:   peerMessage("peer-del", subset("peer-del-input", peerPolicies, peerID)),
			nest: attrPeer, required: []uint16{peerID},
		},
		{
			cmd: cmdKeyNew, name: "key-new", handle: newKey, secret: true,
			do:   keyMessage("key-new", keyconf),
			nest: attrKeyconf,
			required: []uint16{
				keyPeerID, keySlot, keyKeyID, keyCipher, keyEncryptDir, keyDecryptDir,
			},
		},
		{
			cmd: cmdKeyGet, name: "key-get", handle: getKey,
			do: keyMessage("key-get", subset("keyconf-get", keyPolicies,
				keyPeerID, keySlot, keyKeyID, keyCipher)),
			nest: attrKeyconf, required: []uint16{keyPeerID, keySlot}, exclusive: true,
		},
		{
			cmd: cmdKeySwap, name: "key-swap", handle: swapKeys,
			do:   keyMessage("key-swap", subset("keyconf-swap-input", keyPolicies, keyPeerID)),
			nest: attrKeyconf, required: []uint16{keyPeerID},
		},
		{
			cmd: cmdKeyDel, name: "key-del", handle: deleteKey,
			do:   keyMessage("key-del", subset("keyconf-del-input", keyPolicies, keyPeerID, keySlot)),
			nest: attrKeyconf, required: []uint16{keyPeerID, keySlot},
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
