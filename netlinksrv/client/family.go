package client

// The family's numbers (include/uapi/linux/ovpn.h).
const (
	familyName    = "ovpn"
	familyVersion = 1
	groupName     = "peers"

	linkKind = "ovpn"
	linkMode = 1 // IFLA_OVPN_MODE
)

// Commands (enum ovpn_cmd).
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
