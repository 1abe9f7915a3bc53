package report

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func samples(values ...float64) []Sample {
	var all []Sample
	for i, v := range values {
		all = append(all, Sample{Round: i + 1, Value: v, CPU: 1})
	}
	return all
}

func newReport(cases ...Case) Report {
	return Report{Machine: Machine{CPU: "a processor", Kernel: "7.0"}, Cases: cases, Contenders: []Contender{
		{Name: Ours, Version: "1"}, {Name: OursStatic, Version: "1"}, {Name: OpenVPN, Version: "2"},
		{Name: WireGuardGo, Missing: "install it"}}}
}

func goal(t *testing.T, r Report, id string) Goal {
	t.Helper()
	for _, g := range r.Goals {
		if g.ID == id {
			return g
		}
	}
	t.Fatalf("no goal %q", id)
	return Goal{}
}

func TestSummarize(t *testing.T) {
	for _, tt := range []struct {
		name   string
		values []float64
		want   Summary
	}{
		{"nothing", nil, Summary{}},
		{"odd", []float64{3, 1, 2}, Summary{2, 1, 3}},
		{"even: the mean of the two in the middle", []float64{4, 1, 2, 10}, Summary{3, 1, 10}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, Summarize(tt.values)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A ratio is never between different rounds, whatever is missing.
func TestRatiosStayWithinRounds(t *testing.T) {
	c := Case{Results: []Result{
		{Contender: Ours, Samples: []Sample{{Round: 1, Value: 10}, {Round: 3, Value: 30}, {Round: 4, Value: 5}}},
		{Contender: OpenVPN, Samples: []Sample{{Round: 2, Value: 1}, {Round: 3, Value: 3}, {Round: 4, Value: 1}}},
	}}
	if diff := cmp.Diff([]float64{10, 5}, c.Ratios(Ours, OpenVPN)); diff != "" {
		t.Error(diff)
	}
	if got := c.Ratios(Ours, Veth); got != nil {
		t.Errorf("against nobody: %v", got)
	}
}

func TestGoals(t *testing.T) {
	throughput := func(ours, theirs []Sample) Case {
		return Case{ID: OneStream, Metric: Throughput, Results: []Result{
			{Contender: Ours, Samples: ours}, {Contender: OpenVPN, Samples: theirs}}}
	}
	trip := func(ours, theirs []Sample) Case {
		return Case{ID: IdleTrip, Metric: RoundTrip, Results: []Result{
			{Contender: Ours, Samples: ours}, {Contender: OpenVPN, Samples: theirs}}}
	}
	peers := func(id string, s []Sample) Case {
		return Case{ID: id, Metric: PacketCost, Results: []Result{{Contender: OursStatic, Samples: s}}}
	}
	for _, tt := range []struct {
		name   string
		report Report
		goal   string
		want   Status
	}{
		{"the median counts, not the best", newReport(throughput(samples(100, 9, 8), samples(1, 1, 1))), "tcp-openvpn", Missed},
		{"the bound itself is met", newReport(throughput(samples(10), samples(1))), "tcp-openvpn", Pass},
		{"of a round trip less is better", newReport(trip(samples(80), samples(100))), "rtt-openvpn", Pass},
		{"a longer round trip misses", newReport(trip(samples(91), samples(100))), "rtt-openvpn", Missed},
		{"a rival that is missing is no verdict", newReport(throughput(samples(10), samples(1))), "tcp-wireguard-go", NotMeasured},
		{"the worst case decides", newReport(throughput(samples(10), samples(1)), trip(samples(101), samples(100))), "never-slower", Missed},
		{"no case is slower", newReport(throughput(samples(10), samples(1)), trip(samples(99), samples(100))), "never-slower", Pass},
		{"peers within a tenth", newReport(peers(OnePeer, samples(100, 200)), peers(ManyPeers, samples(110, 210))), "peers", Pass},
		{"peers beyond a tenth", newReport(peers(OnePeer, samples(100)), peers(ManyPeers, samples(112))), "peers", Missed},
		{"allocations were not counted", newReport(), "allocations", NotMeasured},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.report.Judge()
			if g := goal(t, tt.report, tt.goal); g.Status != tt.want {
				t.Errorf("got %+v, want %s", g, tt.want)
			}
		})
	}
}

// What a report says survives being written and read; a file of another format is refused.
func TestWriteAndRead(t *testing.T) {
	dir := t.TempDir()
	r := newReport(Case{ID: OneStream, Title: "a stream", Metric: Throughput, Results: []Result{
		{Contender: Ours, Samples: samples(10, 12)}, {Contender: OpenVPN, Samples: samples(1, 1), Errors: []string{"round 3: it broke"}}}})
	r.Allocations = &Allocations{Objects: 3, Packets: 1e6, PerPacket: 3e-6}
	r.Judge()
	if err := Write(dir, []Report{r}); err != nil {
		t.Fatal(err)
	}
	got, err := ReadJSON(filepath.Join(dir, "performance.json"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Report{r}, got); diff != "" {
		t.Error(diff)
	}
	text, err := os.ReadFile(filepath.Join(dir, "performance.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"one TCP stream, against OpenVPN without DCO | ≥ 10 | 11.00 (10.00 to 12.00) | **PASS** |",
		"install it",
		"| a stream | 11.00 (10.00–12.00) | 1.00 (1.00–1.00) | 11.00 |",
		"it broke",
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the document lacks %q:\n%s", want, text)
		}
	}

	old := filepath.Join(dir, "old.json")
	if err := os.WriteFile(old, []byte(`{"schema": 0, "reports": []}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadJSON(old); !errors.Is(err, ErrSchema) {
		t.Errorf("another schema: %v", err)
	}
}

// The figure of a machine that has the module is taken where the first report has none, and only that.
func TestDocumentTakesTheKernelFromAnotherMachine(t *testing.T) {
	host := newReport(Case{ID: OneStream, Metric: Throughput, Results: []Result{
		{Contender: Ours, Samples: samples(2)}, {Contender: OpenVPN, Samples: samples(1)}}})
	guest := newReport(Case{ID: OneStream, Metric: Throughput, Results: []Result{
		{Contender: Ours, Samples: samples(20)}, {Contender: OpenVPN, Samples: samples(1)},
		{Contender: KernelOvpn, Samples: samples(10)}}})
	guest.Machine.Emulated = true
	guest.Contenders = append(guest.Contenders, Contender{Name: KernelOvpn, Version: "3"})
	host.Judge()
	guest.Judge()
	text := string(Document([]Report{host, guest}))
	for _, want := range []string{
		"against OpenVPN without DCO | ≥ 10 | 2 | **MISSED** |",
		"against the kernel's ovpn module | ≥ 0.8 | 2 | **PASS** | this machine is emulated",
		"### Missed: one TCP stream, against OpenVPN without DCO",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the document lacks %q:\n%s", want, text)
		}
	}
}

func TestChartIsXML(t *testing.T) {
	r := newReport(Case{ID: OneStream, Metric: Throughput, Results: []Result{
		{Contender: Ours, Samples: samples(5, 6)}, {Contender: OpenVPN, Samples: samples(1)}}})
	for _, reports := range [][]Report{nil, {newReport()}, {r}} {
		d := xml.NewDecoder(bytes.NewReader(Chart(reports)))
		for {
			_, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A note is only ever shown if its name is a goal's.
func TestNotesBelongToGoals(t *testing.T) {
	r := newReport()
	r.Judge()
	known := map[string]bool{"README": true}
	for _, g := range r.Goals {
		known[g.ID] = true
	}
	entries, err := notes.ReadDir("notes")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !known[strings.TrimSuffix(e.Name(), ".md")] {
			t.Errorf("%s is no goal's", e.Name())
		}
	}
}
