package peers_test

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"ovpn-go/crypto"
	"ovpn-go/peers"
)

// fullTable holds n bound peers with addresses of both families.
func fullTable(t testing.TB, n int) *peers.Table {
	t.Helper()
	table := peers.NewTable(peers.MP)
	for id := range uint32(n) {
		p := peers.New(peers.Config{ID: id, VPN4: vpn4(id), VPN6: vpn6(id)})
		table.Rebind(p, &peers.Binding{Remote: remote(id)})
		mustAdd(t, table, p)
	}
	return table
}

func TestLookupsDoNotAllocate(t *testing.T) {
	table := fullTable(t, 1000)
	p2p := peers.NewTable(peers.P2P)
	mustAdd(t, p2p, peers.New(peers.Config{ID: 1}))
	a4, a6, r := vpn4(77).As4(), vpn6(77).As16(), remote(77)
	p := table.ByID(77)
	got := testing.AllocsPerRun(100, func() {
		if table.ByID(77) != p || table.ByVPN4(a4) != p || table.ByVPN6(a6) != p || table.ByTransport(r) != p {
			t.Fatal("not found")
		}
		if p2p.Sole() == nil || p2p.ByID(1) == nil || p2p.ByTransport(r) != nil {
			t.Fatal("not found")
		}
		if p.Binding() == nil || p.Keys.Primary() != nil || p.Transport() != nil {
			t.Fatal("not as made")
		}
		p.MarkSent(1)
		p.MarkReceived(1)
		p.Counters.AddVPNRx(1, 1)
		p.Counters.AddLinkTx(1, 1)
	})
	if got != 0 {
		t.Errorf("%v allocations", got)
	}
}

// BenchmarkLookup looks peers up in random order. Each lookup waits for the peer that the last one
// found, as a packet would, so at large sizes it measures the memory's latency.
func BenchmarkLookup(b *testing.B) {
	for _, n := range []int{1, 1_000, 10_000, 100_000} {
		table := fullTable(b, n)
		order := make([]uint32, 1<<17)
		rng := newRand(b)
		for i := range order {
			order[i] = rng.Uint32N(uint32(n))
		}
		keys4 := make([][4]byte, len(order))
		keys6 := make([][16]byte, len(order))
		remotes := make([]netip.AddrPort, len(order))
		for i, id := range order {
			keys4[i], keys6[i], remotes[i] = vpn4(id).As4(), vpn6(id).As16(), remote(id)
		}
		for _, kind := range []struct {
			name string
			find func(i int) *peers.Peer
		}{
			{"id", func(i int) *peers.Peer { return table.ByID(order[i]) }},
			{"vpn4", func(i int) *peers.Peer { return table.ByVPN4(keys4[i]) }},
			{"vpn6", func(i int) *peers.Peer { return table.ByVPN6(keys6[i]) }},
			{"transport", func(i int) *peers.Peer { return table.ByTransport(remotes[i]) }},
		} {
			b.Run(fmt.Sprintf("%s/%d", kind.name, n), func(b *testing.B) {
				b.ReportAllocs()
				for i := uint32(0); b.Loop(); {
					at := i % uint32(len(order))
					id := kind.find(int(at)).ID()
					if id != order[at] {
						b.Fatal("wrong peer")
					}
					i += 1 + id>>31
				}
			})
		}
	}
}

func BenchmarkRebind(b *testing.B) {
	for _, n := range []int{1, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			table := fullTable(b, n)
			p := table.ByID(0)
			bindings := make([]*peers.Binding, 1<<10)
			for i := range bindings {
				bindings[i] = &peers.Binding{Remote: remote(uint32(200_000 + i))}
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				table.Rebind(p, bindings[i&(len(bindings)-1)])
			}
		})
	}
}

func BenchmarkAll(b *testing.B) {
	for _, n := range []int{1, 1_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			table := fullTable(b, n)
			for b.Loop() {
				table.All()
			}
		})
	}
}

func BenchmarkMark(b *testing.B) {
	p := peers.New(peers.Config{})
	for b.Loop() {
		p.MarkSent(1)
	}
}

func BenchmarkCounters(b *testing.B) {
	var c peers.Counters
	for b.Loop() {
		c.AddVPNTx(45, 63900)
		c.AddLinkTx(45, 65000)
	}
}

// BenchmarkLifetimes is one second in the life of many peers that are all kept alive: each gets a
// keepalive every ten seconds and answers it.
func BenchmarkLifetimes(b *testing.B) {
	for _, n := range []int{1, 1_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			l := peers.NewLifetimes()
			now := int64(0)
			for id := range uint32(n) {
				l.Set(peers.New(peers.Config{ID: id}), peers.Keepalive{Interval: 10, Timeout: 60}, int64(id%10))
			}
			pings := 0
			ping := func(p *peers.Peer) {
				p.MarkSent(now)
				p.MarkReceived(now)
				pings++
			}
			expire := func(p *peers.Peer) { b.Fatal("expired") }
			for now = range int64(10) {
				l.Advance(now, expire, ping)
			}
			b.ReportAllocs()
			pings = 0
			for b.Loop() {
				now++
				l.Advance(now, expire, ping)
			}
			b.ReportMetric(float64(pings)/float64(b.N), "pings/op")
		})
	}
}

// BenchmarkIdlePeer reports the memory of peers that are in a table, bound, kept alive and have keys.
func BenchmarkIdlePeer(b *testing.B) {
	const n = 10_000
	for _, keys := range []int{0, 1, 2} {
		b.Run(fmt.Sprintf("%d keys", keys), func(b *testing.B) {
			heap := func() uint64 {
				runtime.GC()
				var stats runtime.MemStats
				runtime.ReadMemStats(&stats)
				return stats.HeapAlloc
			}
			var used uint64
			for b.Loop() {
				before := heap()
				table := fullTable(b, n)
				l := peers.NewLifetimes()
				for _, p := range table.All() {
					l.Set(p, peers.Keepalive{Interval: 10, Timeout: 60}, 0)
					for slot := range crypto.Slot(keys) {
						secret := crypto.Direction{Key: make([]byte, 32)}
						key, err := crypto.NewKey(crypto.KeyConfig{Cipher: crypto.AESGCM, Encrypt: secret, Decrypt: secret})
						if err != nil {
							b.Fatal(err)
						}
						p.Keys.Install(slot, key)
					}
				}
				used = heap() - before
				runtime.KeepAlive(table)
				runtime.KeepAlive(l)
			}
			b.ReportMetric(float64(used)/n, "B/peer")
		})
	}
}
