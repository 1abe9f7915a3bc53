package datapath

import (
	"net/netip"

	"ovpn-go/peers"
)

// learnEndpoint follows a peer to where its last packet came from. It is called for every packet that was
// authentic and not a replay, whatever its payload, and never before: an address is believed on
// nothing less. As in the kernel there is no holdoff. now is the boot-time second.
func (d *Device) learnEndpoint(p *peers.Peer, in *received, now int64) {
	binding := p.Binding()
	if binding == nil || cameFrom(binding, in) {
		return
	}
	d.bindings.Lock()
	defer d.bindings.Unlock()
	binding = p.Binding() // which may be the work of another worker by now
	switch {
	case binding.Remote != in.remote:
		next := &peers.Binding{Remote: in.remote, ScopeID: scopeOf(in.remote.Addr(), in.ifindex), Local: in.local}
		d.table.Rebind(p, next)
		tr := transportOf(p)
		tr.path.moved()
		d.measurePath(tr, next.Remote, next.ScopeID, now)
		d.events.push(Event{
			Kind: PeerFloated, Ifindex: d.link.Ifindex(), NetNS: tr.netns().ID(),
			PeerID: p.ID(), Remote: next.Remote, ScopeID: next.ScopeID,
		})
	case !cameFrom(binding, in):
		d.table.SetLocal(p, in.local)
	}
}

// cameFrom reports whether a binding is what a packet tells of its sender.
func cameFrom(binding *peers.Binding, in *received) bool {
	return binding.Remote == in.remote && (!in.local.IsValid() || binding.Local == in.local)
}

// forgetLocal leaves the local address of p's binding to the kernel, unless the binding is another one by now.
func (d *Device) forgetLocal(p *peers.Peer, binding *peers.Binding) {
	d.bindings.Lock()
	defer d.bindings.Unlock()
	if p.Binding() == binding {
		d.table.SetLocal(p, netip.Addr{})
	}
}

// scopeOf is the scope id of an address that means nothing without one.
func scopeOf(addr netip.Addr, ifindex uint32) uint32 {
	if addr.Is6() && (addr.IsLinkLocalUnicast() || addr.IsLinkLocalMulticast() || addr.IsInterfaceLocalMulticast()) {
		return ifindex
	}
	return 0
}
