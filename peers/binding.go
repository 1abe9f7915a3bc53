package peers

import (
	"encoding/binary"
	"net/netip"
)

// Binding is the pair of transport addresses that a UDP peer's packets travel between. It must not
// be changed once a peer has it; a peer that moves gets another one.
type Binding struct {
	// Remote is where packets go and where the peer's own come from. An IPv4 address is not mapped
	// into IPv6, and there is no zone.
	Remote netip.AddrPort
	// ScopeID is the index of the interface that a link-local Remote is behind, else 0. It takes no
	// part in comparing remotes.
	ScopeID uint32
	// Local is the source address of packets to the peer. If invalid, routing chooses it.
	Local netip.Addr
}

// transportKey is a transport address as tables compare it: without scope, and with one form for
// both ways to write an IPv4 address.
type transportKey struct{ high, low, port uint64 }

func keyOf(remote netip.AddrPort) transportKey {
	addr := remote.Addr().As16()
	return transportKey{
		high: binary.BigEndian.Uint64(addr[:8]),
		low:  binary.BigEndian.Uint64(addr[8:]),
		port: uint64(remote.Port()),
	}
}
