package datapath

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// ruleTables are the tables that random rules lead to.
var ruleTables = []string{"local", "main", "default", "100", "101", "102000"}

// randomRule returns the arguments of ip rule add, which the kernel may or may not accept.
func randomRule(rng *rand.Rand, is4 bool) []string {
	pick := func(of ...string) string { return of[rng.IntN(len(of))] }
	args := []string{"rule", "add"}
	if !is4 {
		args = append([]string{"-6"}, args...)
	}
	if rng.IntN(6) == 0 {
		args = append(args, "not")
	}
	switch rng.IntN(4) {
	case 0:
		args = append(args, "from", randomPrefix(rng, is4).String())
	case 1:
		args = append(args, "from", pick("all", "all", map[bool]string{true: "0.0.0.0/5", false: "::/5"}[is4]))
	}
	if rng.IntN(2) == 0 {
		args = append(args, "to", randomPrefix(rng, is4).String())
	}
	switch rng.IntN(12) {
	case 0:
		args = append(args, "fwmark", pick("1", "0/0xff", "0x10/0xf0", "0x10/0x0f"))
	case 1:
		args = append(args, "iif", pick("lo", "veth0", "none0"))
	case 2:
		args = append(args, "oif", pick("lo", "veth0"))
	case 3:
		args = append(args, "ipproto", pick("tcp", "icmp")) // the kernel answers for UDP unless asked otherwise
	case 4:
		args = append(args, "dport", pick("80", "1-65535"))
	case 5:
		args = append(args, "tos", pick("0x10", "0"))
	case 6:
		args = append(args, "uidrange", pick("0-0", "0-1000", "1-1000"))
	}
	priority := 1 + rng.IntN(60)
	args = append(args, "pref", fmt.Sprint(priority))
	switch rng.IntN(8) {
	case 0:
		args = append(args, "goto", fmt.Sprint(priority+1+rng.IntN(30)))
	case 1:
		args = append(args, pick("nop", "blackhole", "unreachable", "prohibit"))
	default:
		args = append(args, "lookup", pick(ruleTables...))
		if rng.IntN(4) == 0 {
			args = append(args, "suppress_prefixlength", fmt.Sprint(rng.IntN(12)))
		}
	}
	return args
}

// randomTableRoute is a route for one of ruleTables.
func randomTableRoute(rng *rand.Rand, is4 bool) []string {
	args := []string{"route", "replace"}
	if !is4 {
		args = append([]string{"-6"}, args...)
	}
	prefix := randomPrefix(rng, is4).String()
	table := ruleTables[1+rng.IntN(len(ruleTables)-1)]
	if rng.IntN(6) == 0 {
		return append(args, []string{"unreachable", "throw", "blackhole"}[rng.IntN(3)], prefix, "table", table)
	}
	i := rng.IntN(3)
	via := fmt.Sprintf("172.16.%d.%d", i, 2+rng.IntN(200))
	if !is4 {
		via = fmt.Sprintf("fd00:%d::%x", i, 2+rng.IntN(200))
	}
	return append(args, prefix, "via", via, "table", table)
}

// sourceHopsSettle waits until the mirror agrees with the kernel about packets of which nothing but the destination is
// known.
func (n *routeNet) sourceHopsSettle(t *testing.T, r *Routes, what string, dsts []netip.Addr) {
	t.Helper()
	var diff string
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		want, got := map[string]netip.Addr{}, map[string]netip.Addr{}
		for _, dst := range dsts {
			want[dst.String()], got[dst.String()] = kernelHop(t, n.h, dst, 0), r.SourceHop(dst)
		}
		if diff = cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff == "" {
			return
		}
	}
	var state []string
	for _, args := range []string{"rule", "-6 rule", "route show table all", "-6 route show table all"} {
		out, _ := n.ip(strings.Fields(args)...)
		state = append(state, out)
	}
	t.Fatalf("%s: hops (-kernel +mirror):\n%s\n%s", what, diff, strings.Join(state, "\n"))
}

// TestRulesAnswerLikeTheKernel changes rules and routes at random and compares the mirror's answers with the kernel's.
func TestRulesAnswerLikeTheKernel(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	n := newRouteNet(t)
	r := followRoutes(t, n.ns)
	added := 0
	for round := range 12 {
		for range 25 {
			is4 := rng.IntN(2) == 0
			_, _ = n.ip(randomTableRoute(rng, is4)...) // the kernel may refuse it
		}
		var live [][]string
		for range 12 {
			rule := randomRule(rng, rng.IntN(2) == 0)
			if _, err := n.ip(rule...); err == nil {
				live = append(live, rule)
			}
		}
		added += len(live)
		var dsts []netip.Addr
		for range 60 {
			dsts = append(dsts, randomAddr(rng, rng.IntN(2) == 0))
		}
		n.sourceHopsSettle(t, r, fmt.Sprintf("seed %d, round %d", seed, round), dsts)
		for _, rule := range live {
			del := strings.Replace(strings.Join(rule, " "), "rule add", "rule del", 1)
			if out, err := n.ip(strings.Fields(del)...); err != nil {
				t.Logf("ip %s: %v\n%s", del, err, out)
			}
		}
	}
	if added < 50 {
		t.Errorf("seed %d: the kernel took %d rules", seed, added)
	}
}

// TestRulesFollow: one rule at a time, so that each kind decides over something.
func TestRulesFollow(t *testing.T) {
	n := newRouteNet(t)
	r := followRoutes(t, n.ns)
	dsts := []netip.Addr{
		netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("172.16.0.77"),
		netip.MustParseAddr("127.1.2.3"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8:9::1"),
	}
	for _, step := range []string{
		"route add default via 172.16.0.2",
		"route add 127.1.0.0/16 via 172.16.0.6", // the table local goes first once there was a rule
		"route add default via 172.16.1.2 table 100",
		"route add 10.1.0.0/16 via 172.16.1.3 table 100",
		"route add 10.1.2.0/24 via 172.16.2.3 table 70000",
		"-6 route add default via fd00:0::2",
		"-6 route add 2001:db8::/48 via fd00:1::2 table 100",
		"rule add pref 100 lookup 100",
		"-6 rule add pref 100 lookup 100",
		"rule add pref 50 lookup 70000",
		"route add 192.0.2.0/24 via 172.16.2.4 table 70000",
		"rule del pref 100",
		"rule add pref 100 lookup 100 suppress_prefixlength 0",
		"-6 rule add pref 10 lookup 100 suppress_prefixlength 48",
		"rule add pref 10 goto 100",
		"rule del pref 10",
		"rule add pref 10 goto 60", // to nothing
		"rule add pref 60 to 10.0.0.0/8 unreachable",
		"rule add pref 5 not to 10.0.0.0/8 lookup 100",
		"rule add pref 4 fwmark 1 blackhole",
		"rule add pref 3 from 10.0.0.0/8 blackhole",
		"rule add pref 2 from 0.0.0.0/7 blackhole",
		"rule del pref 2",
		"rule add pref 2 to 192.0.2.0/24 iif lo prohibit",
		"rule flush",
		"-6 rule flush",
		"rule add pref 32766 lookup main",
		"rule add pref 32767 lookup default",
		"route add 10.1.2.3 via 172.16.0.9",
	} {
		if out, err := n.ip(strings.Fields(step)...); err != nil {
			t.Fatalf("ip %s: %v\n%s", step, err, out)
		}
		n.sourceHopsSettle(t, r, "after ip "+step, dsts)
	}
}

// TestRulesOfPacketsToSend: a packet that is on its way to the link got there by some rule.
func TestRulesOfPacketsToSend(t *testing.T) {
	n := newRouteNet(t)
	for _, args := range []string{
		"rule add fwmark 5 lookup 100",
		"rule add iif veth2 lookup 101",
		"rule add to 203.0.113.0/24 lookup 102",
		"route add default via 172.16.1.9",
		"route add 198.51.100.0/24 via 172.16.0.2",
		"route add default via 172.16.0.5 table 100",
		"route add 192.0.2.0/24 via 172.16.0.6 table 101",
		"route add 203.0.113.0/24 via 172.16.0.7 table 102",
	} {
		if out, err := n.ip(strings.Fields(args)...); err != nil {
			t.Fatalf("ip %s: %v\n%s", args, err, out)
		}
	}
	r := followRoutes(t, n.ns)
	link := n.links[0].Attrs().Index
	for _, tt := range []struct{ name, dst, want string }{
		{"as a bare packet goes", "198.51.100.1", "172.16.0.2"},
		{"by a mark", "8.8.8.8", "172.16.0.5"},
		{"by a destination", "203.0.113.1", "172.16.0.7"},
		{"a bare packet, to another link", "172.16.0.77", "172.16.0.77"},
	} {
		if got := r.NextHop(netip.MustParseAddr(tt.dst), link); got.String() != tt.want {
			t.Errorf("%s: NextHop(%s) = %v, want %s", tt.name, tt.dst, got, tt.want)
		}
	}
}

func ruleMessage(family, dstLen, srcLen, tos, table, action byte, flags uint32, attrs ...byte) []byte {
	b := []byte{family, dstLen, srcLen, tos, table, 0, 0, action}
	return append(binary.NativeEndian.AppendUint32(b, flags), attrs...)
}

func TestParseRule(t *testing.T) {
	for _, tt := range []struct {
		name    string
		typ     uint16
		payload []byte
		ok      bool
	}{
		{"a rule", unix.RTM_NEWRULE, ruleMessage(unix.AF_INET, 0, 0, 0, 254, 1, 0), true},
		{"truncated", unix.RTM_NEWRULE, ruleMessage(unix.AF_INET, 0, 0, 0, 254, 1, 0)[:11], false},
		{"other family", unix.RTM_NEWRULE, ruleMessage(unix.AF_MPLS, 0, 0, 0, 254, 1, 0), false},
		{"other message", unix.RTM_NEWROUTE, ruleMessage(unix.AF_INET, 0, 0, 0, 254, 1, 0), false},
		{"destination too long", unix.RTM_NEWRULE, ruleMessage(unix.AF_INET, 33, 0, 0, 254, 1, 0), false},
		{"source too long", unix.RTM_NEWRULE, ruleMessage(unix.AF_INET6, 0, 129, 0, 254, 1, 0), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if r, ok := parseRule(nlMessage{typ: tt.typ, payload: tt.payload}); ok != tt.ok {
				t.Errorf("ok = %v, want %v: %+v", ok, tt.ok, r)
			}
		})
	}
}

func FuzzParseRule(f *testing.F) {
	f.Add(ruleMessage(unix.AF_INET, 0, 0, 0, 254, 1, 0))
	f.Add(ruleMessage(unix.AF_INET, 8, 0, 0, 254, 1, 0, 8, 0, fraDst, 0, 10, 0, 0, 0))
	f.Add(ruleMessage(unix.AF_INET6, 0, 0, 0, 0, 2, fibRuleInvert, 8, 0, fraGoto, 0, 9, 0, 0, 0))
	f.Fuzz(func(t *testing.T, payload []byte) {
		r, ok := parseRule(nlMessage{typ: unix.RTM_NEWRULE, payload: payload})
		if !ok {
			return
		}
		if r.to.IsValid() && r.to != r.to.Masked() || r.from.IsValid() && r.from != r.from.Masked() {
			t.Fatalf("prefixes %v, %v", r.to, r.from)
		}
		dst := netip.IPv4Unspecified()
		if payload[0] == unix.AF_INET6 {
			dst = netip.IPv6Unspecified()
		}
		set := newRouteSet([2][]rule{{r, r}, {r, r}})
		set.insert(netip.PrefixFrom(dst, 0), route{id: r.table, first: hop{ifindex: 5}})
		set.hop(dst, 0)
		set.hop(dst, 5)
	})
}
