package compare

import (
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ovpn-go/bench"
	"ovpn-go/bench/benchtest"
	"ovpn-go/bench/report"
)

var full = Options{Rounds: 5, Duration: 4 * time.Second}

func everybody(string) bool { return true }

func cases(blocks []block) []entry {
	var all []entry
	for _, b := range blocks {
		all = append(all, b.entries...)
	}
	return all
}

// Results are found by a case's id.
func TestIDsAreUnique(t *testing.T) {
	seen := map[string]bool{}
	for _, e := range cases(plan(full, 8)) {
		if seen[e.ID] {
			t.Errorf("%s occurs twice", e.ID)
		}
		seen[e.ID] = true
	}
	for _, id := range []string{report.OneStream, report.GoalPackets, report.IdleTrip, report.OnePeer, report.ManyPeers, report.RandomPeers,
		"tcp-16-down", "udp-64", "udp-512", "udp-1400", "rtt-loaded", "tcp-4-up,chacha20-poly1305,mtu-9000", "tcp-1-up,4-cores", "tcp-1-up,over-tcp"} {
		if !seen[id] {
			t.Errorf("there is no case %s", id)
		}
	}
}

func TestFullPlanFitsItsTime(t *testing.T) {
	native := slices.DeleteFunc(slices.Clone(standard), func(name string) bool {
		return name == report.KernelOvpn || name == report.KernelStatic || name == report.KernelWG
	})
	blocks := choose(plan(full, 2), nil, func(name string) bool { return slices.Contains(native, name) })
	if got := estimate(blocks); got > 25*time.Minute {
		t.Errorf("%v", got)
	}
}

// What only one contender is at can't be compared, unless there is no rival to be had.
func TestChooseLeavesOutWhatIsMissing(t *testing.T) {
	blocks := choose(plan(full, 2), regexp.MustCompile(`^(tcp-1-up|peers-1-burst)$`), func(name string) bool { return name != report.Veth })
	var ids []string
	for _, e := range cases(blocks) {
		ids = append(ids, e.ID)
		if slices.Contains(e.contenders, report.Veth) {
			t.Errorf("%s has a contender that is missing", e.ID)
		}
	}
	if diff := cmp.Diff([]string{report.OneStream, report.OnePeer}, ids); diff != "" {
		t.Error(diff)
	}
	if blocks := choose(plan(full, 2), regexp.MustCompile("no such case"), everybody); len(blocks) > 0 {
		t.Errorf("%v", blocks)
	}
}

func TestBinariesAreComparedAlone(t *testing.T) {
	o := full
	o.Binaries = []Binary{{"a", "/a"}, {"b", "/b"}}
	for _, e := range cases(plan(o, 2)) {
		if diff := cmp.Diff([]string{"a", "b"}, e.contenders); diff != "" {
			t.Errorf("%s: %s", e.ID, diff)
		}
	}
}

// confine holds what is started meanwhile to its cores, and everything is as before afterwards.
func TestConfine(t *testing.T) {
	before := allowedCores()
	undo, err := confine(before[:1])
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan []int)
	go func() { got <- allowedCores() }()
	if diff := cmp.Diff(before[:1], <-got); diff != "" {
		t.Error(diff)
	}
	if err := undo(); err != nil {
		t.Fatal(err)
	}
	go func() { got <- allowedCores() }()
	if diff := cmp.Diff(before, <-got); diff != "" {
		t.Error(diff)
	}
}

// Every kind of traffic crosses a plain link, and its sample holds what its case is about.
func TestTraffic(t *testing.T) {
	benchtest.Root(t)
	tunnel, err := newTunnel(setting{pathMTU: standardMTU})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := tunnel.close(); err != nil {
			t.Error(err)
		}
	}()
	for _, traffic := range []traffic{tcp(2, true), tcp(1, false), udp(64), udp(1400), idle(), loaded()} {
		t.Run(traffic.id, func(t *testing.T) {
			m := &meter{}
			s, err := traffic.run(t.Context(), tunnel, 300*time.Millisecond, m)
			if err != nil || m.err != nil {
				t.Fatal(err, m.err)
			}
			if s.Value <= 0 || traffic.metric == report.RoundTrip && s.P99 < s.Value ||
				traffic.metric == report.Packets && (s.Offered < s.Delivered/2 || s.CPU <= 0) {
				t.Errorf("%+v", s)
			}
		})
	}
}

// A spread flood reaches exactly the addresses of its peers, in bursts and at random.
func TestToPeers(t *testing.T) {
	benchtest.Root(t)
	tunnel, err := newTunnel(setting{pathMTU: standardMTU})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := tunnel.close(); err != nil {
			t.Error(err)
		}
	}()
	for i, node := range []*bench.Node{tunnel.client, tunnel.server} {
		if err := node.AddLocal(spreadNetworks[i]); err != nil {
			t.Fatal(err)
		}
		gateway := []*bench.Node{tunnel.server, tunnel.client}[i]
		addr := tunnel.clientAddr
		if gateway == tunnel.server {
			addr = tunnel.serverAddr
		}
		if err := node.AddRoute(spreadNetworks[1-i], addr, "eth0"); err != nil {
			t.Fatal(err)
		}
	}
	tunnel.spread = &bench.Spread{Sources: spreadNetworks[0], Targets: spreadNetworks[1], Peers: 1000}
	for _, burst := range []int{16, 0} {
		s, err := toPeers(burst).run(t.Context(), tunnel, 200*time.Millisecond, &meter{})
		if err != nil {
			t.Fatal(err)
		}
		if s.Delivered <= 0 {
			t.Errorf("bursts of %d: %+v", burst, s)
		}
	}
}
