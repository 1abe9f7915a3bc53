package client

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv/uapi"
	"ovpn-go/peers"
)

// ErrLost says that announcements came faster than they were read, and some are lost. What is left can be asked for; the
// monitor goes on with what comes next.
var ErrLost = errors.New("announcements were lost")

// EventKind says what happened.
type EventKind string

// What can happen.
const (
	PeerDeleted  EventKind = "peer-deleted"  // Reason says why
	PeerFloated  EventKind = "peer-floated"  // the peer is at Remote now
	KeyExhausted EventKind = "key-exhausted" // KeyID's packet ids are used up: the peer needs another key
)

// Event is one announcement about a peer.
type Event struct {
	Kind    EventKind
	Ifindex int // in the namespace of the link
	PeerID  uint32
	Reason  DeleteReason   // of PeerDeleted
	Remote  netip.AddrPort // of PeerFloated
	KeyID   uint8          // of KeyExhausted
}

// DeleteReason says why a peer was removed.
type DeleteReason = peers.DelReason

// The reasons.
const (
	Teardown            = peers.Teardown  // its link is gone, or a P2P link has got another peer
	Userspace           = peers.Userspace // somebody asked for it
	Expired             = peers.Expired   // keepalive heard nothing
	TransportError      = peers.TransportError
	TransportDisconnect = peers.TransportDisconnect // its socket was closed
)

// Monitor receives announcements about the peers whose transport sockets are in the network namespace that it was
// opened in.
type Monitor struct {
	conn    *genetlink.Conn
	family  uint16
	pending []Event
}

// OpenMonitor starts to listen in the network namespace of the calling thread. Whatever is announced after it has returned
// is received.
func OpenMonitor() (*Monitor, error) {
	conn, err := dialDaemon(new(atomic.Pointer[os.File])).generic(nil)
	if err != nil {
		return nil, err
	}
	family, err := findFamily(conn)
	if err != nil {
		conn.Close()
		return nil, err
	}
	for _, group := range family.Groups {
		if group.Name != uapi.GroupName {
			continue
		}
		if err := conn.JoinGroup(group.ID); err != nil {
			conn.Close()
			return nil, fmt.Errorf("join group %q: %w", uapi.GroupName, err)
		}
		return &Monitor{conn: conn, family: family.ID}, nil
	}
	conn.Close()
	return nil, fmt.Errorf("family %q has no group %q", uapi.FamilyName, uapi.GroupName)
}

// Close ends the monitor, and a Next that waits.
func (m *Monitor) Close() error { return m.conn.Close() }

// Next waits for the next announcement. It must not be called concurrently. After ErrLost it may be called again.
func (m *Monitor) Next() (Event, error) {
	for len(m.pending) == 0 {
		messages, raw, err := m.conn.Receive()
		if errors.Is(err, unix.ENOBUFS) {
			return Event{}, ErrLost
		}
		if err != nil {
			return Event{}, fmt.Errorf("receive announcement: %w", err)
		}
		for i, message := range messages {
			if raw[i].Header.Type != netlink.HeaderType(m.family) {
				continue
			}
			event, ok, err := parseEvent(message)
			if err != nil {
				return Event{}, err
			}
			if ok {
				m.pending = append(m.pending, event)
			}
		}
	}
	event := m.pending[0]
	m.pending = m.pending[1:]
	return event, nil
}

// parseEvent reads an announcement; ok is false for one of a kind that is not known.
func parseEvent(message genetlink.Message) (event Event, ok bool, err error) {
	switch message.Header.Command {
	case uapi.CmdPeerDelNtf:
		event.Kind = PeerDeleted
	case uapi.CmdPeerFloatNtf:
		event.Kind = PeerFloated
	case uapi.CmdKeySwapNtf:
		event.Kind = KeyExhausted
	default:
		return Event{}, false, nil
	}
	ad, err := netlink.NewAttributeDecoder(message.Data)
	if err != nil {
		return Event{}, false, fmt.Errorf("decode announcement: %w", err)
	}
	for ad.Next() {
		switch ad.Type() {
		case uapi.AttrIfindex:
			event.Ifindex = int(ad.Uint32())
		case uapi.AttrPeer:
			ad.Nested(event.decodePeer)
		case uapi.AttrKeyconf:
			ad.Nested(event.decodeKey)
		}
	}
	if err := ad.Err(); err != nil {
		return Event{}, false, fmt.Errorf("decode announcement: %w", err)
	}
	return event, true, nil
}

func (e *Event) decodePeer(ad *netlink.AttributeDecoder) error {
	var remote endpoint
	for ad.Next() {
		switch ad.Type() {
		case uapi.PeerID:
			e.PeerID = ad.Uint32()
		case uapi.PeerDelReason:
			e.Reason = DeleteReason(ad.Uint32())
		case uapi.PeerRemoteIPv4, uapi.PeerRemoteIPv6:
			remote.addr = decodeAddr(ad)
		case uapi.PeerRemoteScopeID:
			remote.scope = ad.Uint32()
		case uapi.PeerRemotePort:
			remote.port = decodePort(ad)
		}
	}
	e.Remote = remote.addrPort()
	return nil
}

func (e *Event) decodeKey(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		switch ad.Type() {
		case uapi.KeyPeerID:
			e.PeerID = ad.Uint32()
		case uapi.KeyKeyID:
			// 16 bits in an announcement, 32 elsewhere (kernel behaviour).
			if len(ad.Bytes()) == 2 {
				e.KeyID = uint8(ad.Uint16())
			} else {
				e.KeyID = uint8(ad.Uint32())
			}
		}
	}
	return nil
}
