// Package report is what a comparison leaves behind: the results as JSON, the figures that follow from them, the
// goals they are held to, and the document made of it all.
package report

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"
)

// Schema is the version of the JSON format. It changes when a field changes its meaning or goes.
const Schema = 1

// A File is what is written as JSON: one report for each machine.
type File struct {
	Schema  int      `json:"schema"`
	Reports []Report `json:"reports"`
}

// A Report is the outcome of one comparison on one machine.
type Report struct {
	Started time.Time `json:"started"`
	Seconds float64   `json:"seconds"`
	// Duration is the length in seconds of a measurement that a goal depends on; others are shorter. Rounds is how often it is
	// repeated.
	Duration float64 `json:"duration_s"`
	Rounds   int     `json:"rounds"`
	// Quick marks a run that only shows that everything works.
	Quick      bool        `json:"quick,omitempty"`
	Machine    Machine     `json:"machine"`
	Contenders []Contender `json:"contenders"`
	Cases      []Case      `json:"cases"`
	// CrossCheck compares the harness's own traffic with iperf3's.
	CrossCheck []CrossCheck `json:"cross_check,omitempty"`
	// Allocations is how many heap objects two devices of ours allocated for each packet, if that was counted.
	Allocations *Allocations `json:"allocations,omitempty"`
	Goals       []Goal       `json:"goals"`
}

// A Machine describes where the comparison ran.
type Machine struct {
	CPU     string `json:"cpu"`
	Cores   int    `json:"cores"`
	Memory  uint64 `json:"memory_bytes"`
	Kernel  string `json:"kernel"`
	Arch    string `json:"arch"`
	Go      string `json:"go"`
	Virtual bool   `json:"virtual"`
	// Emulated says that a program interprets this machine's instructions, so that its times are no real machine's.
	Emulated bool `json:"emulated"`
}

// A Contender is one way from one namespace to the other.
type Contender struct {
	Name string `json:"name"`
	What string `json:"what"`
	// Version is empty if it was not there to be measured; then Missing says why, and what to install.
	Version string `json:"version,omitempty"`
	Missing string `json:"missing,omitempty"`
}

// A Metric is what a case is about.
type Metric string

// The metrics. Only of throughput and of packets more is better.
const (
	Throughput Metric = "gbit_per_s"     // TCP payload
	Packets    Metric = "packets_per_s"  // delivered
	RoundTrip  Metric = "rtt_us"         // the median
	PacketCost Metric = "cpu_ns_per_pkt" // processor time of the tunnel's own processes
)

// MoreIsBetter tells which way the metric is good.
func (m Metric) MoreIsBetter() bool { return m == Throughput || m == Packets }

// Format writes a value with its unit.
func (m Metric) Format(v float64) string {
	switch m {
	case Throughput:
		return fmt.Sprintf("%.3g Gbit/s", v)
	case Packets:
		return fmt.Sprintf("%.3g kpps", v/1e3)
	case RoundTrip:
		return fmt.Sprintf("%.0f µs", v)
	}
	return fmt.Sprintf("%.0f ns", v)
}

// A Case is one thing that was measured through several contenders in turn.
type Case struct {
	ID     string `json:"id"`
	Title  string `json:"title"`
	Metric Metric `json:"metric"`
	// PathMTU is that of the link that the tunnel's packets cross. Cores is how many the whole run had, 0 for all.
	PathMTU int    `json:"path_mtu"`
	Cipher  string `json:"cipher"`
	Cores   int    `json:"cores,omitempty"`
	Peers   int    `json:"peers"`
	// OverTCP says that the tunnel's packets cross the link in a TCP connection.
	OverTCP bool     `json:"over_tcp,omitempty"`
	Results []Result `json:"results"`
}

// A Result is one contender's samples of a case, in the order of the rounds.
type Result struct {
	Contender string   `json:"contender"`
	Samples   []Sample `json:"samples"`
	// Errors are what went wrong in rounds that have no sample.
	Errors []string `json:"errors,omitempty"`
}

// A Sample is one measurement. Only what the case measures is there.
type Sample struct {
	Round int `json:"round"`
	// Value is in the unit of the case's metric.
	Value float64 `json:"value"`
	// Offered and Loss are of packets: packets per second, and a share from 0 to 1.
	Offered float64 `json:"offered_packets_per_s,omitempty"`
	Loss    float64 `json:"loss,omitempty"`
	// Delivered is in packets per second, also where the value is something else.
	Delivered float64 `json:"delivered_packets_per_s,omitempty"`
	// P99 is the 99th percentile of the round trips in microseconds.
	P99 float64 `json:"rtt_p99_us,omitempty"`
	// CPU is the processor time of the whole machine: seconds for each 10^9 bytes that arrived, or nanoseconds for each
	// packet. TunnelCPU is the share of it that the tunnel's own processes were charged with.
	CPU       float64 `json:"cpu,omitempty"`
	TunnelCPU float64 `json:"tunnel_cpu,omitempty"`
	// Load is how many cores were busy just before, while the tunnel was idle. Stolen is the share of the machine that
	// a hypervisor gave to others meanwhile.
	Load   float64 `json:"load_before"`
	Stolen float64 `json:"stolen"`
}

// A CrossCheck is the throughput of one stream by the harness and by iperf3, in turns, in Gbit/s.
type CrossCheck struct {
	Contender string    `json:"contender"`
	Own       []float64 `json:"own_gbit_per_s"`
	Iperf3    []float64 `json:"iperf3_gbit_per_s"`
}

// Allocations are heap objects that the process of two devices made while they carried packets.
type Allocations struct {
	Objects   uint64  `json:"objects"`
	Packets   uint64  `json:"packets"`
	PerPacket float64 `json:"per_packet"`
}

// Summary is the middle and the ends of a series.
type Summary struct{ Median, Min, Max float64 }

// Summarize returns the zero Summary for no values.
func Summarize(values []float64) Summary {
	if len(values) == 0 {
		return Summary{}
	}
	s := slices.Sorted(slices.Values(values))
	n := len(s)
	return Summary{Median: (s[(n-1)/2] + s[n/2]) / 2, Min: s[0], Max: s[n-1]}
}

// Values are the samples' values.
func (r Result) Values() []float64 {
	var values []float64
	for _, s := range r.Samples {
		values = append(values, s.Value)
	}
	return values
}

// Of returns a contender's result that has samples.
func (c Case) Of(contender string) (Result, bool) {
	for _, r := range c.Results {
		if r.Contender == contender && len(r.Samples) > 0 {
			return r, true
		}
	}
	return Result{}, false
}

// Ratios divides a contender's value by another's, round by round. Rounds that one of them lacks are left out.
func (c Case) Ratios(contender, base string) []float64 {
	a, ok1 := c.Of(contender)
	b, ok2 := c.Of(base)
	if !ok1 || !ok2 {
		return nil
	}
	var ratios []float64
	for _, x := range a.Samples {
		for _, y := range b.Samples {
			if x.Round == y.Round && y.Value != 0 {
				ratios = append(ratios, x.Value/y.Value)
			}
		}
	}
	return ratios
}

// Case returns the case of that id.
func (r *Report) Case(id string) (Case, bool) {
	i := slices.IndexFunc(r.Cases, func(c Case) bool { return c.ID == id })
	if i < 0 {
		return Case{}, false
	}
	return r.Cases[i], true
}

// EncodeJSON writes reports as a File.
func EncodeJSON(w io.Writer, reports []Report) error {
	out := json.NewEncoder(w)
	out.SetIndent("", " ")
	return out.Encode(File{Schema: Schema, Reports: reports})
}

// ErrSchema says that a file was written by another version of the program.
var ErrSchema = errors.New("unknown schema")

// ReadJSON reads a File and judges its goals anew.
func ReadJSON(path string) ([]Report, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var f File
	if err := json.Unmarshal(data, &f); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if f.Schema != Schema {
		return nil, fmt.Errorf("read %s: %w %d, expected %d", path, ErrSchema, f.Schema, Schema)
	}
	for i := range f.Reports {
		f.Reports[i].Judge()
	}
	return f.Reports, nil
}
