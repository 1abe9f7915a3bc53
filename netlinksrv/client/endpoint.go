package client

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"

	"github.com/mdlayher/netlink"

	"ovpn-go/netlinksrv/uapi"
)

// endpoint is a transport address as the family writes it; the zero value is none.
type endpoint struct {
	addr  netip.Addr // without zone
	scope uint32
	port  uint16
}

// source is an address to send from; the zero value is none.
type source struct{ addr netip.Addr }

// endpoints checks what the other side would not: that the zone is a number. The rest is left to it.
func endpoints(remote netip.AddrPort, local netip.Addr) (endpoint, source, error) {
	e := endpoint{addr: remote.Addr().WithZone(""), port: remote.Port()}
	if zone := remote.Addr().Zone(); zone != "" {
		scope, err := strconv.ParseUint(zone, 10, 32)
		if err != nil {
			return e, source{}, fmt.Errorf("zone %q of the remote address is not the index of an interface", zone)
		}
		e.scope = uint32(scope)
	}
	return e, source{local.WithZone("")}, nil
}

func (e endpoint) encode(a *netlink.AttributeEncoder) {
	if !e.addr.IsValid() {
		return
	}
	if e.addr.Is4() {
		a.Bytes(uapi.PeerRemoteIPv4, e.addr.AsSlice())
	} else {
		a.Bytes(uapi.PeerRemoteIPv6, e.addr.AsSlice())
		// The family refuses a scope beside an IPv4 address in IPv6's clothes.
		if e.scope != 0 {
			a.Uint32(uapi.PeerRemoteScopeID, e.scope)
		}
	}
	a.Bytes(uapi.PeerRemotePort, binary.BigEndian.AppendUint16(nil, e.port))
}

func (s source) encode(a *netlink.AttributeEncoder) {
	switch {
	case s.addr.Is4():
		a.Bytes(uapi.PeerLocalIPv4, s.addr.AsSlice())
	case s.addr.Is6():
		a.Bytes(uapi.PeerLocalIPv6, s.addr.AsSlice())
	}
}

func (e endpoint) addrPort() netip.AddrPort {
	if !e.addr.IsValid() {
		return netip.AddrPort{}
	}
	addr := e.addr
	if e.scope != 0 {
		addr = addr.WithZone(strconv.FormatUint(uint64(e.scope), 10))
	}
	return netip.AddrPortFrom(addr, e.port)
}
