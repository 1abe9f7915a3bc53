package peers_test

import (
	"net/netip"
	"slices"
	"testing"

	"ovpn-go/peers"
)

// plainTable is an MP table as a list that every question walks through. Each peer notes what it
// should be found by.
type plainTable struct {
	entries []*plainEntry // in the order of being added
	indexed []*plainEntry // those with a binding, in the order of being bound
}

type plainEntry struct {
	peer   *peers.Peer
	v4, v6 netip.Addr
	remote netip.AddrPort
}

func (m *plainTable) find(match func(*plainEntry) bool) *peers.Peer {
	for _, e := range m.entries {
		if match(e) {
			return e.peer
		}
	}
	return nil
}

func (m *plainTable) byTransport(remote netip.AddrPort) *peers.Peer {
	for _, e := range slices.Backward(m.indexed) {
		if e.remote == remote {
			return e.peer
		}
	}
	return nil
}

func (m *plainTable) addrTaken(besides *plainEntry, v4, v6 netip.Addr) bool {
	return m.find(func(e *plainEntry) bool {
		return e != besides && (v4.IsValid() && e.v4 == v4 || v6.IsValid() && e.v6 == v6)
	}) != nil
}

func (m *plainTable) add(e *plainEntry) error {
	if m.find(func(o *plainEntry) bool { return o.peer.ID() == e.peer.ID() }) != nil {
		return peers.ErrIDInUse
	}
	if m.addrTaken(e, e.v4, e.v6) {
		return peers.ErrAddrInUse
	}
	m.entries = append(m.entries, e)
	m.index(e)
	return nil
}

func (m *plainTable) index(e *plainEntry) {
	m.unindex(e)
	if e.remote.IsValid() {
		m.indexed = append(m.indexed, e)
	}
}

func (m *plainTable) unindex(e *plainEntry) {
	m.indexed = slices.DeleteFunc(m.indexed, func(o *plainEntry) bool { return o == e })
}

func (m *plainTable) remove(e *plainEntry) {
	m.unindex(e)
	m.entries = slices.DeleteFunc(m.entries, func(o *plainEntry) bool { return o == e })
}

// all sorts by bucket, the newest first within one.
func (m *plainTable) all() []*peers.Peer {
	var all []*peers.Peer
	for _, e := range slices.Backward(m.entries) {
		all = append(all, e.peer)
	}
	slices.SortStableFunc(all, func(a, b *peers.Peer) int {
		return int(peers.DumpBucket(a.ID())) - int(peers.DumpBucket(b.ID()))
	})
	return all
}

// TestTableLikePlain does random things to a table and to the plain one. Ids and addresses are few,
// so that they collide, and the number of peers rises and falls, so that the table grows, leaves
// tombstones behind and becomes empty.
func TestTableLikePlain(t *testing.T) {
	rng := newRand(t)
	const steps, space = 20_000, 120
	table, model := peers.NewTable(peers.MP), &plainTable{}

	id := func() uint32 { return rng.Uint32N(space) * 139_810 } // spread over many leaves
	v4 := func() netip.Addr {
		if n := rng.Uint32N(space); n > 10 {
			return vpn4(n)
		}
		return netip.Addr{}
	}
	v6 := func() netip.Addr {
		if n := rng.Uint32N(space); n > 40 {
			return vpn6(n)
		}
		return netip.Addr{}
	}
	binding := func() (*peers.Binding, netip.AddrPort) {
		n := rng.Uint32N(space / 2)
		if n == 0 {
			return nil, netip.AddrPort{}
		}
		r := remote(n)
		if n%3 == 0 {
			r = netip.AddrPortFrom(vpn6(n), 1194)
		}
		return &peers.Binding{Remote: r}, r
	}

	for step := range steps {
		growing := step/2000%2 == 0
		var e *plainEntry
		if len(model.entries) > 0 {
			e = model.entries[rng.IntN(len(model.entries))]
		}
		switch p := rng.IntN(10); {
		case e == nil && growing, p < 3 && growing, p == 0:
			b, r := binding()
			e = &plainEntry{v4: v4(), v6: v6(), remote: r}
			e.peer = peers.New(peers.Config{ID: id(), VPN4: e.v4, VPN6: e.v6})
			table.Rebind(e.peer, b)
			_, got := table.Add(e.peer)
			if want := model.add(e); got != want {
				t.Fatalf("step %d: Add: got %v, want %v", step, got, want)
			}
		case e == nil:
		case p < 3:
			model.remove(e)
			if !table.Remove(e.peer) || table.Remove(e.peer) {
				t.Fatalf("step %d: Remove must be true once", step)
			}
		case p < 5:
			a4, a6 := v4(), v6()
			var want error
			if model.addrTaken(e, a4, a6) {
				want = peers.ErrAddrInUse
			} else {
				e.v4, e.v6 = a4, a6
			}
			if got := table.SetVPN(e.peer, a4, a6); got != want {
				t.Fatalf("step %d: SetVPN: got %v, want %v", step, got, want)
			}
		case p < 6:
			table.SetLocal(e.peer, vpn4(1))
		default:
			b, r := binding()
			table.Rebind(e.peer, b)
			e.remote = r
			model.index(e)
		}

		if got := table.Len(); got != len(model.entries) {
			t.Fatalf("step %d: Len = %d, want %d", step, got, len(model.entries))
		}
		n := rng.Uint32N(space)
		if got, want := table.ByID(n*139_810), model.find(func(e *plainEntry) bool { return e.peer.ID() == n*139_810 }); got != want {
			t.Fatalf("step %d: ByID = %p, want %p", step, got, want)
		}
		if got, want := table.ByVPN4(vpn4(n).As4()), model.find(func(e *plainEntry) bool { return e.v4 == vpn4(n) }); got != want {
			t.Fatalf("step %d: ByVPN4 = %p, want %p", step, got, want)
		}
		if got, want := table.ByVPN6(vpn6(n).As16()), model.find(func(e *plainEntry) bool { return e.v6 == vpn6(n) }); got != want {
			t.Fatalf("step %d: ByVPN6 = %p, want %p", step, got, want)
		}
		for _, r := range []netip.AddrPort{remote(n), netip.AddrPortFrom(vpn6(n), 1194)} {
			if got, want := table.ByTransport(r), model.byTransport(r); got != want {
				t.Fatalf("step %d: ByTransport(%v) = %p, want %p", step, r, got, want)
			}
		}
		for _, e := range model.entries {
			if e.peer.VPN4() != e.v4 || e.peer.VPN6() != e.v6 {
				t.Fatalf("step %d: peer %d has %v and %v, want %v and %v", step, e.peer.ID(), e.peer.VPN4(), e.peer.VPN6(), e.v4, e.v6)
			}
		}
		if step%50 == 0 && !slices.Equal(table.All(), model.all()) {
			t.Fatalf("step %d: All = %v, want %v", step, idsOf(table.All()), idsOf(model.all()))
		}
	}
}
