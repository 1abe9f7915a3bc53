// Package uapi holds the numbers and names of Linux's generic-netlink family "ovpn" and of links of its kind, as in
// include/uapi/linux/ovpn.h and if_link.h. Whoever speaks the family, on either side, takes them from here.
package uapi

// The family, and the multicast group of its announcements.
const (
	FamilyName    = "ovpn"
	FamilyVersion = 1
	GroupName     = "peers"
)

// Links of the family's interfaces: IFLA_INFO_KIND, and the one attribute of IFLA_INFO_DATA (IFLA_OVPN_MODE).
const (
	LinkKind = "ovpn"
	// DCOLinkKind is that of the module that came before the kernel's, which OpenVPN 2.6 asks for. The links differ in its name only.
	DCOLinkKind = "ovpn-dco"
	LinkMode    = 1
)

// Commands (enum ovpn_cmd). Those that end in Ntf are only ever sent by the kernel's side.
const (
	CmdPeerNew      = 1
	CmdPeerSet      = 2
	CmdPeerGet      = 3
	CmdPeerDel      = 4
	CmdPeerDelNtf   = 5
	CmdKeyNew       = 6
	CmdKeyGet       = 7
	CmdKeySwap      = 8
	CmdKeySwapNtf   = 9
	CmdKeyDel       = 10
	CmdPeerFloatNtf = 11
)

// Attributes of a message (OVPN_A_*).
const (
	AttrIfindex = 1
	AttrPeer    = 2
	AttrKeyconf = 3
)

// Attributes of a peer (OVPN_A_PEER_*).
const (
	PeerID                = 1
	PeerRemoteIPv4        = 2
	PeerRemoteIPv6        = 3
	PeerRemoteScopeID     = 4
	PeerRemotePort        = 5
	PeerSocket            = 6
	PeerSocketNetNSID     = 7
	PeerVPNIPv4           = 8
	PeerVPNIPv6           = 9
	PeerLocalIPv4         = 10
	PeerLocalIPv6         = 11
	PeerLocalPort         = 12
	PeerKeepaliveInterval = 13
	PeerKeepaliveTimeout  = 14
	PeerDelReason         = 15
	PeerVPNRxBytes        = 16
	PeerVPNTxBytes        = 17
	PeerVPNRxPackets      = 18
	PeerVPNTxPackets      = 19
	PeerLinkRxBytes       = 20
	PeerLinkTxBytes       = 21
	PeerLinkRxPackets     = 22
	PeerLinkTxPackets     = 23
	PeerTxID              = 24
)

// Attributes of a key (OVPN_A_KEYCONF_*) and of one direction of it (OVPN_A_KEYDIR_*).
const (
	KeyPeerID     = 1
	KeySlot       = 2
	KeyKeyID      = 3
	KeyCipher     = 4
	KeyEncryptDir = 5
	KeyDecryptDir = 6

	DirCipherKey = 1
	DirNonceTail = 2
)
