package peers_test

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ovpn-go/crypto"
	"ovpn-go/peers"
)

func TestP2PTable(t *testing.T) {
	table := peers.NewTable(peers.P2P)
	if table.Sole() != nil || table.ByID(0) != nil || table.Len() != 0 || table.All() != nil {
		t.Error("a new table is not empty")
	}

	first := peers.New(peers.Config{ID: 10})
	table.Rebind(first, boundTo("192.0.2.1:1194"))
	if replaced, err := table.Add(first); replaced != nil || err != nil {
		t.Errorf("first Add: replaced %p, %v", replaced, err)
	}
	if table.Sole() != first || table.ByID(10) != first || table.ByID(11) != nil || table.Len() != 1 {
		t.Error("the peer is not found, or found by another id")
	}
	for remote, want := range map[string]*peers.Peer{
		"192.0.2.1:1194":          first,
		"[::ffff:192.0.2.1]:1194": first,
		"192.0.2.1:1195":          nil,
		"192.0.2.2:1194":          nil,
		"[2001:db8::1]:1194":      nil,
	} {
		if got := table.ByTransport(netip.MustParseAddrPort(remote)); got != want {
			t.Errorf("ByTransport(%s) = %p, want %p", remote, got, want)
		}
	}

	// Same id, and another binding: still a replacement.
	second := peers.New(peers.Config{ID: 10})
	if replaced, err := table.Add(second); replaced != first || err != nil {
		t.Errorf("second Add: replaced %p, %v; want %p", replaced, err, first)
	}
	if table.Remove(first) {
		t.Error("a replaced peer was removed")
	}
	if table.ByTransport(netip.MustParseAddrPort("192.0.2.1:1194")) != nil {
		t.Error("a peer without binding was found by address")
	}
	table.Rebind(second, boundTo("[fe80::1]:5900"))
	if table.ByTransport(netip.MustParseAddrPort("[fe80::1%eth0]:5900")) != second {
		t.Error("the zone was compared")
	}
	if got := table.ByVPN4([4]byte{10, 0, 0, 1}); got != nil {
		t.Error("a VPN address was looked up")
	}
	if got := table.ByVPN6([16]byte{0xfd}); got != nil {
		t.Error("a VPN address was looked up")
	}
	if diff := cmp.Diff([]uint32{10}, idsOf(table.All())); diff != "" {
		t.Error(diff)
	}
	if !table.Remove(second) || table.Remove(second) || table.Len() != 0 {
		t.Error("Remove must be true once")
	}
}

func TestMPTableRefusesDuplicates(t *testing.T) {
	table := peers.NewTable(peers.MP)
	one := mustAdd(t, table, peers.New(peers.Config{ID: 1, VPN4: addr("10.0.0.1"), VPN6: addr("fd00::1")}))
	two := mustAdd(t, table, peers.New(peers.Config{ID: 2, VPN4: addr("10.0.0.2"), VPN6: addr("::")}))

	for _, c := range []struct {
		name   string
		config peers.Config
		want   error
	}{
		{"id", peers.Config{ID: 1, VPN4: addr("10.0.0.3")}, peers.ErrIDInUse},
		{"id before address", peers.Config{ID: 2, VPN4: addr("10.0.0.1")}, peers.ErrIDInUse},
		{"IPv4 address", peers.Config{ID: 3, VPN4: addr("10.0.0.2")}, peers.ErrAddrInUse},
		{"IPv6 address", peers.Config{ID: 3, VPN4: addr("10.0.0.3"), VPN6: addr("fd00::1")}, peers.ErrAddrInUse},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := peers.New(c.config)
			if _, err := table.Add(p); err != c.want {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if table.Len() != 2 || table.ByID(3) != nil || table.ByVPN4([4]byte{10, 0, 0, 3}) != nil || table.Remove(p) {
				t.Error("a refused peer left something behind")
			}
		})
	}
	for _, c := range []struct {
		name   string
		v4, v6 netip.Addr
		want   error
	}{
		{"other's IPv4", addr("10.0.0.1"), netip.Addr{}, peers.ErrAddrInUse},
		{"other's IPv6", addr("10.0.0.9"), addr("fd00::1"), peers.ErrAddrInUse},
		{"own again", addr("10.0.0.2"), netip.Addr{}, nil},
	} {
		t.Run("set "+c.name, func(t *testing.T) {
			if err := table.SetVPN(two, c.v4, c.v6); err != c.want {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if two.VPN4() != addr("10.0.0.2") || two.VPN6().IsValid() || table.ByVPN4([4]byte{10, 0, 0, 2}) != two ||
				table.ByVPN4([4]byte{10, 0, 0, 9}) != nil || table.ByVPN6(addr("fd00::1").As16()) != one {
				t.Error("addresses are not what they were")
			}
		})
	}
	if err := table.SetVPN(peers.New(peers.Config{ID: 2}), addr("10.0.0.7"), netip.Addr{}); err != peers.ErrNotFound {
		t.Errorf("peer that is not in the table: got %v, want ErrNotFound", err)
	}
}

func TestUnspecifiedVPNAddressIsNone(t *testing.T) {
	table := peers.NewTable(peers.MP)
	a := mustAdd(t, table, peers.New(peers.Config{ID: 1, VPN4: addr("0.0.0.0"), VPN6: addr("fd00::1")}))
	b := mustAdd(t, table, peers.New(peers.Config{ID: 2, VPN4: addr("0.0.0.0"), VPN6: addr("::")}))
	if a.VPN4().IsValid() || b.VPN6().IsValid() {
		t.Error("an unspecified address was kept")
	}
	if table.ByVPN4([4]byte{}) != nil || table.ByVPN6([16]byte{}) != nil {
		t.Error("an unspecified address was indexed")
	}
	if err := table.SetVPN(a, addr("10.0.0.1"), addr("::")); err != nil {
		t.Error(err)
	}
	if table.ByVPN6(addr("fd00::1").As16()) != nil || table.ByVPN4([4]byte{10, 0, 0, 1}) != a {
		t.Error("clearing one address and setting the other did not work")
	}
}

func TestSharedTransportAddress(t *testing.T) {
	const here, there = "192.0.2.1:1194", "192.0.2.2:1194"
	table := peers.NewTable(peers.MP)
	found := func(remote string) uint32 {
		if p := table.ByTransport(netip.MustParseAddrPort(remote)); p != nil {
			return p.ID()
		}
		return 0
	}
	expect := func(when string, atHere, atThere uint32) {
		t.Helper()
		if h, th := found(here), found(there); h != atHere || th != atThere {
			t.Errorf("%s: found %d and %d, want %d and %d", when, h, th, atHere, atThere)
		}
	}
	var p [4]*peers.Peer
	for id := uint32(1); id <= 3; id++ {
		p[id] = peers.New(peers.Config{ID: id, VPN4: vpn4(id)})
		table.Rebind(p[id], boundTo(here))
		expect("before it was added", id-1, 0)
		mustAdd(t, table, p[id])
	}
	expect("the last added wins", 3, 0)
	table.Rebind(p[1], boundTo(here))
	expect("rebinding to the same address counts", 1, 0)
	table.SetLocal(p[2], addr("198.51.100.1"))
	expect("a new local address does not", 1, 0)
	if b := p[2].Binding(); b.Local != addr("198.51.100.1") || b.Remote != netip.MustParseAddrPort(here) {
		t.Errorf("got binding %+v", b)
	}
	table.Rebind(p[1], boundTo(there))
	expect("one moved away", 3, 1)
	table.Remove(p[2])
	expect("one below was removed", 3, 1)
	table.Remove(p[3])
	expect("all at the address are gone", 0, 1)
	table.Rebind(p[1], nil)
	expect("without a binding", 0, 0)
	table.SetLocal(p[1], addr("198.51.100.1"))
	if p[1].Binding() != nil {
		t.Error("a local address made a binding")
	}
}

// TestDumpOrder holds the example of the kernel's order: buckets 177, 1359, 2486, 2715, 3198, 3274.
func TestDumpOrder(t *testing.T) {
	table := peers.NewTable(peers.MP)
	for id := uint32(1); id <= 6; id++ {
		mustAdd(t, table, peers.New(peers.Config{ID: id, VPN4: vpn4(id)}))
	}
	if diff := cmp.Diff([]uint32{4, 3, 5, 1, 6, 2}, idsOf(table.All())); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for i, id := range []uint32{4, 3, 5, 1, 6, 2} {
		want := []uint32{177, 1359, 2486, 2715, 3198, 3274}[i]
		if got := peers.DumpBucket(id); got != want {
			t.Errorf("id %d is in bucket %d, want %d", id, got, want)
		}
	}
	table.Remove(table.ByID(5))
	if diff := cmp.Diff([]uint32{4, 3, 1, 6, 2}, idsOf(table.All())); diff != "" {
		t.Errorf("after a removal (-want +got):\n%s", diff)
	}
}

func TestDumpPutsTheNewestOfABucketFirst(t *testing.T) {
	bucket := peers.DumpBucket(1)
	var same []uint32
	for id := uint32(1); len(same) < 4; id++ {
		if peers.DumpBucket(id) == bucket {
			same = append(same, id)
		}
	}
	table := peers.NewTable(peers.MP)
	for _, id := range same {
		mustAdd(t, table, peers.New(peers.Config{ID: id, VPN4: vpn4(id)}))
	}
	check := func(want ...uint32) {
		t.Helper()
		if diff := cmp.Diff(want, idsOf(table.All())); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	check(same[3], same[2], same[1], same[0])
	table.Remove(table.ByID(same[2]))
	check(same[3], same[1], same[0])
	table.Remove(table.ByID(same[3]))
	check(same[1], same[0])
	mustAdd(t, table, peers.New(peers.Config{ID: same[2], VPN4: vpn4(7)}))
	check(same[2], same[1], same[0])
	table.Remove(table.ByID(same[0]))
	check(same[2], same[1])
}

// TestReadersAgainstWriter looks up peers that stay while others come, move and go around them.
func TestReadersAgainstWriter(t *testing.T) {
	const stable, rounds = 50, 3000
	table := peers.NewTable(peers.MP)
	for id := range uint32(stable) {
		p := peers.New(peers.Config{ID: id, VPN4: vpn4(id), VPN6: vpn6(id)})
		p.SetTransport(id)
		table.Rebind(p, &peers.Binding{Remote: remote(id)})
		mustAdd(t, table, p)
	}
	var done atomic.Bool
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for !done.Load() {
				for id := range uint32(stable) {
					p := table.ByID(id)
					if p == nil || p.ID() != id || p.Transport() != any(id) {
						t.Errorf("id %d: got %p", id, p)
						return
					}
					if table.ByVPN4(vpn4(id).As4()) != p || table.ByVPN6(vpn6(id).As16()) != p || table.ByTransport(remote(id)) != p {
						t.Errorf("id %d is not found by an address", id)
						return
					}
					if b := p.Binding(); b == nil || b.Remote != remote(id) {
						t.Errorf("id %d: binding %+v", id, b)
						return
					}
				}
				for n := uint32(stable); n < stable+20; n++ {
					if p := table.ByTransport(remote(n)); p != nil && p.ID() < stable {
						t.Errorf("a stable peer was found at the address of another")
					}
					if p := table.ByID(n); p != nil && p.ID() != n {
						t.Errorf("id %d leads to %d", n, p.ID())
					}
				}
				table.Len()
			}
		})
	}
	rng := newRand(t)
	for range rounds {
		n := stable + rng.Uint32N(20)
		p := peers.New(peers.Config{ID: n | rng.Uint32N(4)<<22, VPN4: vpn4(n), VPN6: vpn6(n)})
		table.Rebind(p, &peers.Binding{Remote: remote(n)})
		if _, err := table.Add(p); err != nil {
			continue
		}
		table.Rebind(p, &peers.Binding{Remote: remote(stable + rng.Uint32N(20))})
		table.SetLocal(p, vpn4(n))
		if err := table.SetVPN(p, vpn4(n+100), netip.Addr{}); err != nil {
			t.Error(err)
		}
		s := table.ByID(rng.Uint32N(stable))
		table.Rebind(s, &peers.Binding{Remote: s.Binding().Remote, ScopeID: n})
		if err := table.SetVPN(s, s.VPN4(), s.VPN6()); err != nil {
			t.Error(err)
		}
		if !table.Remove(p) {
			t.Error("the peer was not there")
		}
	}
	done.Store(true)
	wg.Wait()
	if table.Len() != stable || len(table.All()) != stable {
		t.Errorf("%d peers are left, want %d", table.Len(), stable)
	}
}

func TestPeer(t *testing.T) {
	p := peers.New(peers.Config{ID: crypto.MaxPeerID, TxID: 10, VPN4: addr("10.0.0.1")})
	if p.ID() != crypto.MaxPeerID || p.TxID() != 10 || p.VPN4() != addr("10.0.0.1") || p.VPN6().IsValid() ||
		p.Binding() != nil || p.Transport() != nil || p.Keepalive() != (peers.Keepalive{}) {
		t.Error("a new peer is not as configured")
	}
	p.SetTxID(11)
	p.MarkSent(5)
	p.MarkReceived(6)
	if p.TxID() != 11 || p.LastSent() != 5 || p.LastReceived() != 6 {
		t.Errorf("tx id %d, sent %d, received %d", p.TxID(), p.LastSent(), p.LastReceived())
	}
	table := peers.NewTable(peers.MP)
	mustAdd(t, table, p)
	if table.ByID(crypto.MaxPeerID) != p || table.ByID(crypto.MaxPeerID+1) != nil || table.ByID(1<<31) != nil {
		t.Error("the largest id is not the last")
	}
}

func TestCounters(t *testing.T) {
	var c peers.Counters
	c.AddVPNRx(1, 10)
	c.AddVPNTx(2, 20)
	c.AddLinkRx(3, 30)
	c.AddLinkTx(4, 40)
	c.AddLinkTx(1, 1<<40)
	want := peers.Stats{
		VPNRxPackets: 1, VPNRxBytes: 10,
		VPNTxPackets: 2, VPNTxBytes: 20,
		LinkRxPackets: 3, LinkRxBytes: 30,
		LinkTxPackets: 5, LinkTxBytes: 40 + 1<<40,
	}
	if diff := cmp.Diff(want, c.Stats()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestNames(t *testing.T) {
	got := []string{
		peers.P2P.String(), peers.MP.String(),
		peers.Teardown.String(), peers.Userspace.String(), peers.Expired.String(),
		peers.TransportError.String(), peers.TransportDisconnect.String(),
	}
	want := []string{"p2p", "mp", "teardown", "userspace", "expired", "transport-error", "transport-disconnect"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
