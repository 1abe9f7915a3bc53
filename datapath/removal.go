package datapath

import (
	"ovpn-go/crypto"
	"ovpn-go/peers"
)

// What is in this file is done between the turns of all workers, but for exhausted.

// remove takes a peer out of the device.
func (d *Device) remove(p *peers.Peer, reason peers.DelReason) {
	if !d.table.Remove(p) {
		return
	}
	if d.mode == peers.P2P {
		d.setCarrier(false)
	}
	d.removed(p, reason)
}

// removed does what follows when a peer has left the table: the controller is told, then the socket released.
func (d *Device) removed(p *peers.Peer, reason peers.DelReason) {
	d.owner(p.ID()).lifetimes.Forget(p)
	p.Keys.Delete(crypto.Primary)
	p.Keys.Delete(crypto.Secondary)
	s := p.Counters.Stats()
	d.log.Info("peer removed", "peer", p.ID(), "reason", reason.String(),
		"vpn_rx_packets", s.VPNRxPackets, "vpn_rx_bytes", s.VPNRxBytes,
		"vpn_tx_packets", s.VPNTxPackets, "vpn_tx_bytes", s.VPNTxBytes,
		"link_rx_packets", s.LinkRxPackets, "link_rx_bytes", s.LinkRxBytes,
		"link_tx_packets", s.LinkTxPackets, "link_tx_bytes", s.LinkTxBytes)
	tr := transportOf(p)
	d.events.push(Event{
		Kind: PeerDeleted, Ifindex: d.link.Ifindex(), NetNS: tr.netns().ID(), PeerID: p.ID(), Reason: reason,
	})
	if tr.tcp != nil {
		tr.tcp.detach()
		return
	}
	d.sockets.release(tr.udp)
}

// removeAll takes the device's peers out, in the order in which they are listed.
func (d *Device) removeAll() {
	for _, p := range d.table.All() {
		d.remove(p, peers.Teardown)
	}
}

// expire removes a peer that the keepalive schedule has found silent, unless it has been given a new setting since.
func (d *Device) expire(p *peers.Peer) {
	if p.Keepalive().Enabled() && !d.owner(p.ID()).lifetimes.Has(p) {
		d.remove(p, peers.Expired)
	}
}

// socketGone removes the peers that used a client's socket which the client has closed for good.
func (d *Device) socketGone(sock *udpSocket) {
	for _, p := range d.table.All() {
		if transportOf(p).udp == sock {
			d.remove(p, peers.TransportDisconnect)
		}
	}
}

// exhausted takes a key without packet ids out of use, and says so once. Several workers may find out at once.
func (d *Device) exhausted(p *peers.Peer, key *crypto.Key) {
	if !key.ReportExhaustion() || !p.Keys.Remove(key) {
		return
	}
	d.log.Warn("packet ids exhausted, key removed", "peer", p.ID(), "key_id", key.ID())
	d.events.push(Event{
		Kind: KeyExhausted, Ifindex: d.link.Ifindex(), NetNS: transportOf(p).netns().ID(), PeerID: p.ID(), KeyID: key.ID(),
	})
}

// setCarrier shows the stack whether packets have somewhere to go.
func (d *Device) setCarrier(on bool) {
	if err := d.link.SetCarrier(on); err != nil {
		d.log.Debug("set carrier", "on", on, "error", err)
	}
}
