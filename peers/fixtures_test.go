package peers_test

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"ovpn-go/peers"
)

// newRand returns a generator whose seed is printed when the test fails.
func newRand(t testing.TB) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %#x", seed)
	return rand.New(rand.NewPCG(seed, seed))
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func boundTo(s string) *peers.Binding {
	return &peers.Binding{Remote: netip.MustParseAddrPort(s)}
}

// vpn4 and vpn6 give every number an address of its own.
func vpn4(n uint32) netip.Addr {
	var a [4]byte
	binary.BigEndian.PutUint32(a[:], 0x0a000001+n)
	return netip.AddrFrom4(a)
}

func vpn6(n uint32) netip.Addr {
	a := [16]byte{0: 0xfd}
	binary.BigEndian.PutUint32(a[12:], 1+n)
	return netip.AddrFrom16(a)
}

func remote(n uint32) netip.AddrPort {
	return netip.AddrPortFrom(vpn4(0x01000000+n), uint16(1000+n%50000))
}

func mustAdd(t testing.TB, table *peers.Table, p *peers.Peer) *peers.Peer {
	t.Helper()
	if _, err := table.Add(p); err != nil {
		t.Fatal(err)
	}
	return p
}

func idsOf(all []*peers.Peer) []uint32 {
	ids := make([]uint32, 0, len(all))
	for _, p := range all {
		ids = append(ids, p.ID())
	}
	return ids
}
