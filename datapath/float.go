package datapath

import (
	"net/netip"

	"ovpn-go/peers"
)

// learnEndpoint follows a peer to where its last packet came from. It is called for every packet that was
// authentic and not a replay, whatever its payload, and never before: an address is believed on
// nothing less. As in the kernel there is no holdoff.
func (d *Device) learnEndpoint(p *peers.Peer, in *received) {
	binding := p.Binding()
	if binding == nil {
		return
	}
	if binding.Remote != in.remote {
		next := &peers.Binding{Remote: in.remote, ScopeID: scopeOf(in.remote.Addr(), in.ifindex), Local: in.local}
		d.table.Rebind(p, next)
		tr := transportOf(p)
		tr.path.moved()
		d.measurePath(tr, next.Remote, next.ScopeID, d.worker.clock.boot)
		d.events.push(Event{
			Kind: PeerFloated, Ifindex: d.link.Ifindex(), NetNS: tr.netns().ID(),
			PeerID: p.ID(), Remote: next.Remote, ScopeID: next.ScopeID,
		})
		return
	}
	if in.local.IsValid() && binding.Local != in.local {
		d.table.SetLocal(p, in.local)
	}
}

// scopeOf is the scope id of an address that means nothing without one.
func scopeOf(addr netip.Addr, ifindex uint32) uint32 {
	if addr.Is6() && (addr.IsLinkLocalUnicast() || addr.IsLinkLocalMulticast() || addr.IsInterfaceLocalMulticast()) {
		return ifindex
	}
	return 0
}
