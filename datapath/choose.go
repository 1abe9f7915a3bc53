package datapath

import (
	"net/netip"

	"ovpn-go/crypto"
	"ovpn-go/peers"
)

// peerByDestination chooses the peer an inner packet goes to (kernel: the next hop of its route; multicast,
// broadcast and link-local have none in MP mode). It returns nil when there is none or the packet is no IP.
func (d *Device) peerByDestination(packet []byte) *peers.Peer {
	if !isIP(packet) {
		return nil
	}
	if d.mode == peers.P2P {
		return d.table.Sole()
	}
	return d.peerByHop(d.routes.Load().NextHop(destinationOf(packet), d.link.Ifindex()))
}

// sourceBelongsTo is the reverse path check: the route back to the packet's source must lead to p.
func (d *Device) sourceBelongsTo(p *peers.Peer, packet []byte) bool {
	if d.mode == peers.P2P {
		return d.table.Sole() == p
	}
	return d.peerByHop(d.routes.Load().SourceHop(sourceOf(packet))) == p
}

func (d *Device) peerByHop(hop netip.Addr) *peers.Peer {
	if hop.Is4() {
		return d.table.ByVPN4(hop.As4())
	}
	return d.table.ByVPN6(hop.As16())
}

// peerByPacket finds the peer that a DATA_V2 packet names, or, with the undefined id, the one at its source.
func (d *Device) peerByPacket(packet []byte, from netip.AddrPort) *peers.Peer {
	if id := crypto.PeerID(packet); id != crypto.PeerIDUndefined {
		return d.table.ByID(id)
	}
	return d.table.ByTransport(from)
}

// sourceOf and destinationOf take a packet that isIP has passed.
func sourceOf(packet []byte) netip.Addr {
	if packet[0]>>4 == 4 {
		return netip.AddrFrom4([4]byte(packet[12:16]))
	}
	return netip.AddrFrom16([16]byte(packet[8:24]))
}

func destinationOf(packet []byte) netip.Addr {
	if packet[0]>>4 == 4 {
		return netip.AddrFrom4([4]byte(packet[16:20]))
	}
	return netip.AddrFrom16([16]byte(packet[24:40]))
}
