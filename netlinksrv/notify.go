package netlinksrv

import (
	"context"
	"log/slog"

	"golang.org/x/sys/unix"

	"ovpn-go/datapath"
	"ovpn-go/netlinksrv/uapi"
)

// notify multicasts an event of a device to the members of each family's group "peers" in the network namespace of the peer's
// transport socket, which need not be the device's. It is called by the device, within requests too, so it must
// only deliver.
func (s *Server) notify(ev datapath.Event) {
	for i := range families {
		// As everything that nobody asked for, it has no sequence number and no port.
		var b builder
		if !families[i].announce(&b, header{kind: s.ids[i].family}, ev) {
			continue
		}
		if s.log.Enabled(context.Background(), slog.LevelDebug) {
			s.log.Debug("netlink notification", "family", families[i].name, "message", families[i].decode(b.buf))
		}
		for _, g := range s.genericSockets() {
			if g.member[i].Load() && g.ns.ID() == ev.NetNS {
				// Each its own copy: a delivered datagram is the callee's.
				g.post(append([]byte(nil), b.buf...))
			}
		}
	}
}

// announce is the kernel's family's.
func announce(b *builder, h header, ev datapath.Event) bool {
	begin := func(cmd uint8, nest uint16) (message, inner int) {
		message = b.generic(h, cmd, uapi.FamilyVersion)
		b.u32(uapi.AttrIfindex, uint32(ev.Ifindex))
		return message, b.nest(nest | unix.NLA_F_NESTED)
	}
	var message, inner int
	switch ev.Kind {
	case datapath.PeerDeleted:
		message, inner = begin(uapi.CmdPeerDelNtf, uapi.AttrPeer)
		b.u32(uapi.PeerDelReason, uint32(ev.Reason))
		b.u32(uapi.PeerID, ev.PeerID)
	case datapath.PeerFloated:
		message, inner = begin(uapi.CmdPeerFloatNtf, uapi.AttrPeer)
		b.u32(uapi.PeerID, ev.PeerID)
		b.remote(ev.Remote, ev.ScopeID)
	case datapath.KeyExhausted:
		message, inner = begin(uapi.CmdKeySwapNtf, uapi.AttrKeyconf)
		b.u32(uapi.KeyPeerID, ev.PeerID)
		// 16 bits, although the attribute has 32 everywhere else: that is what the kernel sends and clients read.
		b.u16(uapi.KeyKeyID, uint16(ev.KeyID))
	default:
		return false
	}
	b.endNest(inner)
	b.endMessage(message)
	return true
}
