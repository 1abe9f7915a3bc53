package client

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv/uapi"
)

// Peer describes one peer as it is.
type Peer struct {
	// ID is the one in the packets that come from the peer, TxID the one in packets to it; 0 to 0xffffff.
	ID, TxID uint32
	// VPN4 and VPN6 are the peer's addresses inside the tunnel; invalid if it has none, as all peers of a P2P link.
	VPN4, VPN6 netip.Addr
	// Remote is where packets are sent to, with the interface index as the zone of an IPv6 address; invalid over TCP.
	Remote netip.AddrPort
	// Local is where they are sent from. The address is unspecified until it is known, and invalid over TCP.
	Local     netip.Addr
	LocalPort uint16
	Keepalive Keepalive
	// SocketNetNSID is the id, in the caller's namespace, of the namespace that the transport socket is in; nil if
	// it is the caller's own.
	SocketNetNSID *int32
	// VPN counts inner packets, Link what is sent and received for them outside, with OpenVPN's header and without
	// UDP's or TCP's.
	VPN, Link Traffic
}

// Traffic counts packets and bytes, received and sent.
type Traffic struct {
	RxBytes, RxPackets, TxBytes, TxPackets uint64
}

// Keepalive says after how long without traffic a ping is sent, and after how long a silent peer is removed.
// Whole seconds, up to a day; both are set or both are zero, which is off.
type Keepalive struct {
	Interval, Timeout time.Duration
}

// PeerConfig is a new peer. Socket is required, and over UDP Remote.
type PeerConfig struct {
	ID uint32
	// TxID is the id in packets to the peer; nil means ID.
	TxID *uint32
	// Socket is the descriptor of the transport socket, which stays the caller's and must stay open for as long as the
	// peer is to live. A daemon has a TCP connection for itself: NewPeer then puts another socket at this number, and the
	// peer lives as long as that one. Duplicates of the connection are to be closed, and nobody may read from one meanwhile.
	Socket int
	// Remote must be set over UDP and must not over TCP. The zone of an IPv6 address is a number.
	Remote netip.AddrPort
	// Local is the address to send from, of the same family as Remote; invalid leaves the choice to the system.
	Local netip.Addr
	// VPN4 and VPN6 are the peer's addresses inside the tunnel. On an MP link there is at least one, on a P2P link none.
	VPN4, VPN6 netip.Addr
	Keepalive  Keepalive
}

// PeerChange is what is to change; the zero values leave things as they are.
type PeerChange struct {
	TxID *uint32
	// Remote moves the peer, which then is sent to from Local, or if that is invalid from an address of the system's choice.
	Remote netip.AddrPort
	Local  netip.Addr
	// An unspecified address takes the peer's of that family away.
	VPN4, VPN6 netip.Addr
	// Keepalive restarts both timers. A pointer to its zero value turns keepalive off.
	Keepalive *Keepalive
}

// NewPeer adds a peer. On a P2P link it replaces the one that is there.
func (c *Conn) NewPeer(ifindex int, p PeerConfig) error {
	remote, local, err := endpoints(p.Remote, p.Local)
	if err != nil {
		return fmt.Errorf("new peer %d: %w", p.ID, err)
	}
	c.adding.Lock()
	defer c.adding.Unlock()
	_, err = c.request(uapi.CmdPeerNew, netlink.Acknowledge, ifindex, func(a *netlink.AttributeEncoder) {
		a.Nested(uapi.AttrPeer, func(a *netlink.AttributeEncoder) error {
			a.Uint32(uapi.PeerID, p.ID)
			a.Uint32(uapi.PeerSocket, uint32(p.Socket))
			encodeTxID(a, p.TxID)
			remote.encode(a)
			local.encode(a)
			encodeVPN(a, p.VPN4, p.VPN6)
			if p.Keepalive != (Keepalive{}) {
				p.Keepalive.encode(a)
			}
			return nil
		})
	})
	if replacement := c.replacement.Swap(nil); replacement != nil {
		defer replacement.Close()
		if err == nil {
			err = replace(p.Socket, replacement)
		}
	}
	if err != nil {
		return fmt.Errorf("new peer %d: %w", p.ID, err)
	}
	return nil
}

// replace puts file in place of a descriptor, as close-on-exec as that.
func replace(fd int, file *os.File) error {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	cloexec := 0
	if flags&unix.FD_CLOEXEC != 0 {
		cloexec = unix.O_CLOEXEC
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(own uintptr) { inner = unix.Dup3(int(own), fd, cloexec) })
	return errors.Join(err, os.NewSyscallError("dup3", inner))
}

// SetPeer changes a peer. The error is ENOENT if there is none with that id.
func (c *Conn) SetPeer(ifindex int, id uint32, change PeerChange) error {
	remote, local, err := endpoints(change.Remote, change.Local)
	if err != nil {
		return fmt.Errorf("set peer %d: %w", id, err)
	}
	_, err = c.request(uapi.CmdPeerSet, netlink.Acknowledge, ifindex, func(a *netlink.AttributeEncoder) {
		a.Nested(uapi.AttrPeer, func(a *netlink.AttributeEncoder) error {
			a.Uint32(uapi.PeerID, id)
			encodeTxID(a, change.TxID)
			remote.encode(a)
			local.encode(a)
			encodeVPN(a, change.VPN4, change.VPN6)
			if change.Keepalive != nil {
				change.Keepalive.encode(a)
			}
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("set peer %d: %w", id, err)
	}
	return nil
}

// DeletePeer removes a peer and its keys. When it returns the peer's socket is free again. The error is ENOENT if there
// is no such peer.
func (c *Conn) DeletePeer(ifindex int, id uint32) error {
	_, err := c.request(uapi.CmdPeerDel, netlink.Acknowledge, ifindex, onlyPeer(id))
	if err != nil {
		return fmt.Errorf("delete peer %d: %w", id, err)
	}
	return nil
}

// Peer returns one peer. The error is ENOENT if there is none with that id.
func (c *Conn) Peer(ifindex int, id uint32) (Peer, error) {
	replies, err := c.request(uapi.CmdPeerGet, 0, ifindex, onlyPeer(id))
	if err != nil {
		return Peer{}, fmt.Errorf("get peer %d: %w", id, err)
	}
	peers, err := parsePeers(replies)
	if err != nil {
		return Peer{}, fmt.Errorf("get peer %d: %w", id, err)
	}
	if len(peers) != 1 {
		return Peer{}, fmt.Errorf("get peer %d: %d peers in the answer", id, len(peers))
	}
	return peers[0], nil
}

// Peers returns the peers of a link, in no particular order. One that comes or goes meanwhile may be missing or
// appear twice.
func (c *Conn) Peers(ifindex int) ([]Peer, error) {
	replies, err := c.request(uapi.CmdPeerGet, netlink.Dump, ifindex, nil)
	if err != nil {
		return nil, fmt.Errorf("list peers: %w", err)
	}
	peers, err := parsePeers(replies)
	if err != nil {
		return nil, fmt.Errorf("list peers: %w", err)
	}
	return peers, nil
}

func onlyPeer(id uint32) func(*netlink.AttributeEncoder) {
	return func(a *netlink.AttributeEncoder) {
		a.Nested(uapi.AttrPeer, func(a *netlink.AttributeEncoder) error {
			a.Uint32(uapi.PeerID, id)
			return nil
		})
	}
}

func encodeTxID(a *netlink.AttributeEncoder, id *uint32) {
	if id != nil {
		a.Uint32(uapi.PeerTxID, *id)
	}
}

func encodeVPN(a *netlink.AttributeEncoder, v4, v6 netip.Addr) {
	if v4.IsValid() {
		a.Bytes(uapi.PeerVPNIPv4, v4.AsSlice())
	}
	if v6.IsValid() {
		a.Bytes(uapi.PeerVPNIPv6, v6.AsSlice())
	}
}

func (k Keepalive) encode(a *netlink.AttributeEncoder) {
	a.Uint32(uapi.PeerKeepaliveInterval, uint32(k.Interval/time.Second))
	a.Uint32(uapi.PeerKeepaliveTimeout, uint32(k.Timeout/time.Second))
}

func parsePeers(messages []genetlink.Message) ([]Peer, error) {
	peers := make([]Peer, 0, len(messages))
	for _, m := range messages {
		ad, err := netlink.NewAttributeDecoder(m.Data)
		if err != nil {
			return nil, fmt.Errorf("decode answer: %w", err)
		}
		for ad.Next() {
			if ad.Type() != uapi.AttrPeer {
				continue
			}
			var p Peer
			ad.Nested(p.decode)
			peers = append(peers, p)
		}
		if err := ad.Err(); err != nil {
			return nil, fmt.Errorf("decode answer: %w", err)
		}
	}
	return peers, nil
}

// decode reads a peer's attributes. Unknown ones are a newer kernel's and are passed over.
func (p *Peer) decode(ad *netlink.AttributeDecoder) error {
	var remote endpoint
	var local netip.Addr
	for ad.Next() {
		switch ad.Type() {
		case uapi.PeerID:
			p.ID = ad.Uint32()
		case uapi.PeerTxID:
			p.TxID = ad.Uint32()
		case uapi.PeerRemoteIPv4, uapi.PeerRemoteIPv6:
			remote.addr = decodeAddr(ad)
		case uapi.PeerRemoteScopeID:
			remote.scope = ad.Uint32()
		case uapi.PeerRemotePort:
			remote.port = decodePort(ad)
		case uapi.PeerSocketNetNSID:
			id := ad.Int32()
			p.SocketNetNSID = &id
		case uapi.PeerVPNIPv4:
			p.VPN4 = decodeAddr(ad)
		case uapi.PeerVPNIPv6:
			p.VPN6 = decodeAddr(ad)
		case uapi.PeerLocalIPv4, uapi.PeerLocalIPv6:
			local = decodeAddr(ad)
		case uapi.PeerLocalPort:
			p.LocalPort = decodePort(ad)
		case uapi.PeerKeepaliveInterval:
			p.Keepalive.Interval = time.Duration(ad.Uint32()) * time.Second
		case uapi.PeerKeepaliveTimeout:
			p.Keepalive.Timeout = time.Duration(ad.Uint32()) * time.Second
		case uapi.PeerVPNRxBytes:
			p.VPN.RxBytes = decodeUint(ad)
		case uapi.PeerVPNTxBytes:
			p.VPN.TxBytes = decodeUint(ad)
		case uapi.PeerVPNRxPackets:
			p.VPN.RxPackets = decodeUint(ad)
		case uapi.PeerVPNTxPackets:
			p.VPN.TxPackets = decodeUint(ad)
		case uapi.PeerLinkRxBytes:
			p.Link.RxBytes = decodeUint(ad)
		case uapi.PeerLinkTxBytes:
			p.Link.TxBytes = decodeUint(ad)
		case uapi.PeerLinkRxPackets:
			p.Link.RxPackets = decodeUint(ad)
		case uapi.PeerLinkTxPackets:
			p.Link.TxPackets = decodeUint(ad)
		}
	}
	p.Remote, p.Local = remote.addrPort(), local
	return nil // the decoder keeps what went wrong
}

// decodeUint reads a number of the type "uint": of four bytes where it fits, of eight otherwise.
func decodeUint(ad *netlink.AttributeDecoder) uint64 {
	if len(ad.Bytes()) == 4 {
		return uint64(ad.Uint32())
	}
	return ad.Uint64()
}

// decodeAddr returns an invalid address if the attribute is neither 4 nor 16 bytes long.
func decodeAddr(ad *netlink.AttributeDecoder) netip.Addr {
	addr, _ := netip.AddrFromSlice(ad.Bytes())
	return addr
}

func decodePort(ad *netlink.AttributeDecoder) uint16 {
	b := ad.Bytes()
	if len(b) != 2 {
		return 0
	}
	return binary.BigEndian.Uint16(b)
}
