package datapath

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// randomAddr returns an address of a space so small that prefixes nest and collide.
func randomAddr(rng *rand.Rand, is4 bool) netip.Addr {
	if is4 {
		return netip.AddrFrom4([4]byte{10, byte(rng.IntN(4)), byte(rng.IntN(4)) << 6, byte(rng.IntN(256))})
	}
	return netip.AddrFrom16([16]byte{0: 0x20, 1: 1, 7: byte(rng.IntN(4)) << 6, 8: byte(rng.IntN(4)), 15: byte(rng.IntN(256))})
}

func randomPrefix(rng *rand.Rand, is4 bool) netip.Prefix {
	a := randomAddr(rng, is4)
	return netip.PrefixFrom(a, rng.IntN(a.BitLen()+1)).Masked()
}

func randomHop(rng *rand.Rand, is4 bool) hop {
	h := hop{ifindex: int32(1 + rng.IntN(3)), dead: rng.IntN(8) == 0}
	if rng.IntN(3) > 0 {
		h.gateway = randomAddr(rng, is4)
	}
	return h
}

func randomRoute(rng *rand.Rand, is4 bool) route {
	r := route{table: routeTable(rng.IntN(int(routeTables))), metric: uint32(rng.IntN(3)), first: randomHop(rng, is4)}
	if rng.IntN(6) == 0 {
		r.kind = routeKind(rng.IntN(3))
	}
	if r.kind == routeUse && rng.IntN(5) == 0 {
		r.more = []hop{randomHop(rng, is4), randomHop(rng, is4)}
	}
	r.typ = uint8(r.kind) // same goes by the kernel's type
	return r
}

// slowHop is the look-up as the kernel's documentation has it: table by table, the longest prefix first, the most
// preferred route first, the first next hop that works.
func slowHop(routes map[netip.Prefix][]route, dst netip.Addr, ifindex int32) netip.Addr {
	tables := [][]routeTable{{tableLocal}, {tableMain}, {tableDefault}}
	if dst.Is4() {
		tables = [][]routeTable{{tableLocal, tableMain}, {tableDefault}}
	}
	for _, merged := range tables {
		kind, gateway, found := routeThrow, netip.Addr{}, false
		for bits := dst.BitLen(); bits >= 0 && !found; bits-- {
			for _, table := range merged {
				for metric := range uint32(3) {
					for _, r := range routes[netip.PrefixFrom(dst, bits).Masked()] {
						if found || r.table != table || r.metric != metric {
							continue
						}
						if r.kind != routeUse {
							if dst.Is4() || ifindex == 0 {
								found, kind = true, r.kind
							}
							continue
						}
						for _, h := range append([]hop{r.first}, r.more...) {
							if !found && !h.dead && (ifindex == 0 || h.ifindex == ifindex) {
								found, kind, gateway = true, routeUse, h.gateway
							}
						}
					}
				}
			}
		}
		if !found || kind == routeThrow {
			continue
		}
		if gateway.IsValid() {
			return gateway
		}
		return dst
	}
	return dst
}

func TestRouteSetAnswersLikeTheSlowOne(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	for round := range 200 {
		set, slow := newRouteSet([2][]rule{}), map[netip.Prefix][]route{}
		for range rng.IntN(60) {
			is4 := rng.IntN(2) == 0
			prefix, r := randomPrefix(rng, is4), randomRoute(rng, is4)
			set.insert(prefix, r)
			slow[prefix] = append(slow[prefix], r)
		}
		for range 100 {
			dst, ifindex := randomAddr(rng, rng.IntN(2) == 0), int32(rng.IntN(4))
			if got, want := set.hop(dst, ifindex), slowHop(slow, dst, ifindex); got != want {
				t.Fatalf("seed %d, round %d: hop(%v, %d) = %v, want %v\n%v", seed, round, dst, ifindex, got, want, slow)
			}
		}
	}
}

var compareRoutes = cmp.Options{
	cmp.AllowUnexported(route{}, hop{}),
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
}

// contents lists a set's routes by prefix.
func contents(s *routeSet) map[string][]route {
	all := map[string][]route{}
	for i, table := range s.tables {
		for prefix, routes := range table.All() {
			all[fmt.Sprint(i, prefix)] = routes
		}
	}
	return all
}

// TestRouteSetUpdates: a burst, which is applied to a copy, and single changes give the same set, and neither
// touches the set before.
func TestRouteSetUpdates(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	single := newRouteSet([2][]rule{})
	for range 300 {
		is4 := rng.IntN(2) == 0
		single.insert(randomPrefix(rng, is4), randomRoute(rng, is4))
	}
	bulk := single
	before := contents(single)
	first := single
	for range 20 {
		var changes []routeChange
		for range 100 {
			is4 := rng.IntN(2) == 0
			c := routeChange{prefix: randomPrefix(rng, is4), route: randomRoute(rng, is4), op: routeOp(rng.IntN(4))}
			if c.op == routeDelete {
				// Usually one that exists.
				for i, table := range single.tables {
					for prefix, routes := range table.All() {
						if rng.IntN(20) == 0 && i > 0 {
							c.prefix, c.route = prefix, routes[rng.IntN(len(routes))]
						}
					}
				}
			}
			changes = append(changes, c)
		}
		var bulkResync, singleResync bool
		bulk, bulkResync = bulk.update(changes)
		for i := range changes {
			var resync bool
			single, resync = single.update(changes[i : i+1])
			singleResync = singleResync || resync
		}
		if diff := cmp.Diff(contents(single), contents(bulk), compareRoutes); diff != "" || bulkResync != singleResync {
			t.Fatalf("seed %d: resync %v and %v, sets (-single +bulk):\n%s", seed, singleResync, bulkResync, diff)
		}
	}
	if diff := cmp.Diff(before, contents(first), compareRoutes); diff != "" {
		t.Errorf("seed %d: the first set changed (-before +after):\n%s", seed, diff)
	}
}

func TestRouteChangeApply(t *testing.T) {
	v4, v6 := netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/32")
	via := func(ifindex int32, metric uint32) route {
		return route{table: tableMain, metric: metric, first: hop{ifindex: ifindex}}
	}
	local := route{table: tableLocal, metric: 9, first: hop{ifindex: 1}}
	multi := via(7, 0)
	multi.more = []hop{{ifindex: 8}}
	dead := via(1, 0)
	dead.first.dead = true
	for _, tt := range []struct {
		name   string
		prefix netip.Prefix
		routes []route
		op     routeOp
		change route
		want   []route
		resync bool
	}{
		{"first route", v4, nil, routePrepend, via(1, 0), []route{via(1, 0)}, false},
		{"lower metric first", v4, []route{via(1, 5)}, routePrepend, via(2, 3), []route{via(2, 3), via(1, 5)}, false},
		{"higher metric last", v4, []route{via(1, 5)}, routePrepend, via(2, 7), []route{via(1, 5), via(2, 7)}, false},
		{"local before main", v4, []route{via(1, 0)}, routePrepend, local, []route{local, via(1, 0)}, false},
		{"IPv4 prepend", v4, []route{via(1, 0), via(9, 1)}, routePrepend, via(2, 0), []route{via(2, 0), via(1, 0), via(9, 1)}, false},
		{"IPv4 append", v4, []route{via(1, 0), via(9, 1)}, routeAppend, via(2, 0), []route{via(1, 0), via(2, 0), via(9, 1)}, false},
		{"IPv6 always appends", v6, []route{via(1, 0), via(9, 1)}, routePrepend, via(2, 0), []route{via(1, 0), via(2, 0), via(9, 1)}, false},
		{"announced twice", v4, []route{via(1, 0), via(2, 0)}, routePrepend, via(2, 0), []route{via(1, 0), via(2, 0)}, false},
		{"its link changed", v4, []route{via(1, 0), via(2, 0)}, routeReplace, dead, []route{dead, via(2, 0)}, false},
		{"replace", v4, []route{via(1, 0), via(9, 1)}, routeReplace, via(2, 0), []route{via(2, 0), via(9, 1)}, false},
		{"replace nothing", v4, []route{via(9, 1)}, routeReplace, via(2, 0), []route{via(2, 0), via(9, 1)}, false},
		{"replace one of several", v4, []route{via(1, 0), via(3, 0)}, routeReplace, via(2, 0), []route{via(1, 0), via(3, 0)}, true},
		{"delete", v4, []route{via(1, 0), via(2, 0), via(9, 1)}, routeDelete, via(2, 0), []route{via(1, 0), via(9, 1)}, false},
		{"delete the last", v4, []route{via(1, 0)}, routeDelete, via(1, 0), nil, false},
		{"delete a dead one", v4, []route{dead}, routeDelete, via(1, 0), nil, false},
		{"delete what is not there", v4, []route{via(1, 0)}, routeDelete, via(2, 0), []route{via(1, 0)}, true},
		{"IPv4 multipath beside another", v4, []route{via(1, 0)}, routeAppend, multi, []route{via(1, 0), multi}, false},
		{"IPv4 multipath deleted", v4, []route{via(1, 0), multi}, routeDelete, multi, []route{via(1, 0)}, false},
		{"IPv6 multipath that grew", v6, []route{via(7, 0)}, routeAppend, multi, []route{via(7, 0)}, true},
		{"IPv6 multipath that shrank", v6, []route{multi}, routeDelete, via(8, 0), []route{multi}, true},
		{"IPv6 multipath of another metric", v6, []route{multi}, routeAppend, via(8, 1), []route{multi, via(8, 1)}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := routeChange{prefix: tt.prefix, route: tt.change, op: tt.op}
			got, ok := c.apply(tt.routes)
			if ok == tt.resync {
				t.Errorf("ok = %v", ok)
			}
			if len(got)+len(tt.want) > 0 {
				if diff := cmp.Diff(tt.want, got, compareRoutes); diff != "" {
					t.Errorf("routes (-want +got):\n%s", diff)
				}
			}
		})
	}
}

// internetRoutes returns a set shaped like a full routing table.
func internetRoutes(n int) (*routeSet, []netip.Addr) {
	rng := rand.New(rand.NewPCG(1, 2))
	set := newRouteSet([2][]rule{})
	var dsts []netip.Addr
	for range n {
		a := netip.AddrFrom4([4]byte{byte(1 + rng.IntN(220)), byte(rng.IntN(256)), byte(rng.IntN(256)), byte(rng.IntN(256))})
		bits := []int{24, 24, 24, 24, 23, 22, 22, 20, 16, 32}[rng.IntN(10)]
		set.insert(netip.PrefixFrom(a, bits).Masked(), route{table: tableMain, first: hop{gateway: randomAddr(rng, true), ifindex: 5}})
		dsts = append(dsts, a)
	}
	set.insert(netip.MustParsePrefix("0.0.0.0/0"), route{table: tableMain, first: hop{gateway: randomAddr(rng, true), ifindex: 2}})
	return set, dsts
}

// ruled returns a set's routes as they are looked up where there is an additional rule.
func ruled(s *routeSet) *routeSet {
	rules := append([]rule{{priority: 0, action: ruleToTable, table: 100, suppress: -1}}, defaultRules(true)...)
	c := newRouteSet([2][]rule{rules, nil})
	for prefix, routes := range s.tables[tableMain].All4() {
		for _, r := range routes {
			r.id = unix.RT_TABLE_MAIN
			c.insert(prefix, r)
		}
	}
	c.insert(netip.MustParsePrefix("198.51.100.0/24"), route{id: 100, table: tableOther})
	return c
}

func TestRoutesLookUpsDontAllocate(t *testing.T) {
	for _, useRules := range []bool{false, true} {
		set, dsts := internetRoutes(1000)
		if useRules {
			set = ruled(set)
		}
		checkNoAllocations(t, set, dsts)
	}
}

func checkNoAllocations(t *testing.T, set *routeSet, dsts []netip.Addr) {
	t.Helper()
	r := &Routes{}
	r.current.Store(set)
	v6 := netip.MustParseAddr("2001:db8::1")
	i := 0
	if n := testing.AllocsPerRun(1000, func() {
		r.NextHop(dsts[i], 5)
		r.NextHop(dsts[i], 2) // another link than the best route's
		r.SourceHop(dsts[i])
		r.SourceHop(v6)
		i = (i + 1) % len(dsts)
	}); n != 0 {
		t.Errorf("allocations = %v, want 0", n)
	}
}

func BenchmarkRoutes(b *testing.B) {
	for _, n := range []int{10, 1000, 100_000} {
		set, dsts := internetRoutes(n)
		r, withRules := &Routes{}, &Routes{}
		r.current.Store(set)
		withRules.current.Store(ruled(set))
		for name, lookup := range map[string]func(netip.Addr) netip.Addr{
			"NextHop":          func(a netip.Addr) netip.Addr { return r.NextHop(a, 5) },
			"NextHopOtherLink": func(a netip.Addr) netip.Addr { return r.NextHop(a, 2) },
			"SourceHop":        r.SourceHop,
			"SourceHopRuled":   withRules.SourceHop,
		} {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				b.ReportAllocs()
				i := 0
				for b.Loop() {
					lookup(dsts[i])
					if i++; i == len(dsts) {
						i = 0
					}
				}
			})
		}
	}
}

// BenchmarkRoutesUpdate is the cost of one announcement, alone and in a burst.
func BenchmarkRoutesUpdate(b *testing.B) {
	set, dsts := internetRoutes(100_000)
	change := func(i int) routeChange {
		return routeChange{
			prefix: netip.PrefixFrom(dsts[i%len(dsts)], 28).Masked(),
			route:  route{table: tableMain, first: hop{ifindex: 7}},
			op:     routeReplace,
		}
	}
	b.Run("single", func(b *testing.B) {
		b.ReportAllocs()
		set := set
		for i := 0; b.Loop(); i++ {
			set, _ = set.update([]routeChange{change(i)})
		}
	})
	b.Run("clone", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			set.tables[tableMain].Clone()
		}
	})
	b.Run("burst", func(b *testing.B) {
		b.ReportAllocs()
		changes := make([]routeChange, 10_000)
		for b.Loop() {
			for i := range changes {
				changes[i] = change(i)
			}
			set.update(changes)
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(changes)), "ns/change")
	})
}
