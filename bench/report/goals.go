package report

import (
	"fmt"
	"slices"
)

// A Goal is a promise about speed and what became of it.
type Goal struct {
	ID   string `json:"id"`
	Text string `json:"text"`
	// Measured is the figure that Target bounds, from above if AtMost: the median of the rounds, with Min and Max.
	Target   float64 `json:"target"`
	AtMost   bool    `json:"at_most,omitempty"`
	Measured Summary `json:"measured"`
	Status   Status  `json:"status"`
	// Detail says what the figure is of where the text leaves it open, or why there is none.
	Detail string `json:"detail,omitempty"`
}

// A Status is the verdict on a goal.
type Status string

// The verdicts.
const (
	Pass        Status = "PASS"
	Missed      Status = "MISSED"
	NotMeasured Status = "not measured"
)

// Names of contenders, and ids of the cases that goals are about.
const (
	Ours         = "ovpn-go"
	OursStatic   = "ovpn-go-static"
	OpenVPN      = "openvpn"
	WireGuardGo  = "wireguard-go"
	KernelOvpn   = "kernel-ovpn"
	KernelStatic = "kernel-ovpn-static"
	KernelWG     = "kernel-wireguard"
	Veth         = "veth"

	OneStream   = "tcp-1-up"
	GoalPackets = "udp-1300"
	IdleTrip    = "rtt-idle"
	OnePeer     = "peers-1-burst"
	ManyPeers   = "peers-10000-burst"
	RandomPeers = "peers-10000-random"
)

// noObjects is how many heap objects per packet count as none: the runtime itself makes a few a second.
const noObjects = 0.001

// Judge computes the goals anew from the report's figures. In an emulated machine only the comparison with the kernel's
// module is worth a verdict, since no real machine has both.
func (r *Report) Judge() {
	if r.Machine.Emulated {
		r.Goals = []Goal{r.kernel()}
		return
	}
	r.Goals = []Goal{
		r.ratio("tcp-wireguard-go", "one TCP stream, against wireguard-go", OneStream, Ours, WireGuardGo, 2.5, false),
		r.ratio("tcp-openvpn", "one TCP stream, against OpenVPN without DCO", OneStream, Ours, OpenVPN, 10, false),
		r.ratio("udp-wireguard-go", "packets of 1,300 bytes delivered, against wireguard-go", GoalPackets, Ours, WireGuardGo, 2.5, false),
		r.ratio("udp-openvpn", "packets of 1,300 bytes delivered, against OpenVPN without DCO", GoalPackets, Ours, OpenVPN, 2, false),
		r.ratio("rtt-openvpn", "idle round trip, against OpenVPN without DCO", IdleTrip, Ours, OpenVPN, 0.9, true),
		r.ratio("rtt-wireguard-go", "idle round trip, against wireguard-go", IdleTrip, Ours, WireGuardGo, 0.6, true),
		r.neverSlower(),
		r.flatPeers(),
		r.noAllocations(),
		r.kernel(),
	}
}

func (g Goal) judge(ratios []float64) Goal {
	if len(ratios) == 0 {
		g.Status = NotMeasured
		return g
	}
	g.Measured = Summarize(ratios)
	met := g.Measured.Median >= g.Target
	if g.AtMost {
		met = g.Measured.Median <= g.Target
	}
	g.Status = Missed
	if met {
		g.Status = Pass
	}
	return g
}

func (r *Report) ratio(id, text, caseID, contender, base string, target float64, atMost bool) Goal {
	g := Goal{ID: id, Text: text, Target: target, AtMost: atMost}
	c, ok := r.Case(caseID)
	if !ok {
		g.Detail = "case " + caseID + " was not run"
		return g.judge(nil)
	}
	for _, name := range []string{contender, base} {
		if why := r.missing(name); why != "" {
			g.Detail = name + ": " + why
		}
	}
	return g.judge(c.Ratios(contender, base))
}

func (r *Report) missing(contender string) string {
	for _, c := range r.Contenders {
		if c.Name == contender {
			return c.Missing
		}
	}
	return "not in this run"
}

// neverSlower is about the worst of all cases.
func (r *Report) neverSlower() Goal {
	g := Goal{ID: "never-slower", Text: "the worst of all cases, against OpenVPN without DCO", Target: 1}
	var worst []float64
	for _, c := range r.Cases {
		ratios := c.Ratios(Ours, OpenVPN)
		if !c.Metric.MoreIsBetter() {
			for i := range ratios {
				ratios[i] = 1 / ratios[i]
			}
		}
		if len(ratios) > 0 && (worst == nil || Summarize(ratios).Median < Summarize(worst).Median) {
			worst, g.Detail = ratios, c.ID
		}
	}
	return g.judge(worst)
}

// flatPeers compares two cases that ran in turns.
func (r *Report) flatPeers() Goal {
	g := Goal{ID: "peers", Text: "processor time per packet with 10,000 peers in bursts of 16, against bursts of one peer", Target: 1.1, AtMost: true}
	against := func(id string) []float64 {
		many, _ := r.Case(id)
		one, _ := r.Case(OnePeer)
		a, _ := many.Of(OursStatic)
		b, _ := one.Of(OursStatic)
		var ratios []float64
		for _, x := range a.Samples {
			i := slices.IndexFunc(b.Samples, func(y Sample) bool { return y.Round == x.Round })
			if i >= 0 && b.Samples[i].Value > 0 {
				ratios = append(ratios, x.Value/b.Samples[i].Value)
			}
		}
		return ratios
	}
	if random := against(RandomPeers); random != nil {
		s := Summarize(random)
		g.Detail = fmt.Sprintf("every packet to another peer at random: %.2f (%.2f to %.2f)", s.Median, s.Min, s.Max)
	}
	return g.judge(against(ManyPeers))
}

func (r *Report) noAllocations() Goal {
	g := Goal{ID: "allocations", Text: "heap objects allocated per packet", Target: noObjects, AtMost: true}
	if r.Allocations == nil {
		return g.judge(nil)
	}
	g.Detail = fmt.Sprintf("%d objects while %d packets crossed two devices", r.Allocations.Objects, r.Allocations.Packets)
	return g.judge([]float64{r.Allocations.PerPacket})
}

// kernel prefers the comparison under OpenVPN to that with static keys.
func (r *Report) kernel() Goal {
	const text = "one TCP stream, against the kernel's ovpn module"
	g := r.ratio("kernel", text, OneStream, Ours, KernelOvpn, 0.8, false)
	if static := r.ratio("kernel", text, OneStream, OursStatic, KernelStatic, 0.8, false); g.Status == NotMeasured {
		g = static
		if g.Status != NotMeasured {
			g.Detail = "static keys on both"
		}
	}
	if r.Machine.Emulated && g.Status != NotMeasured {
		if g.Detail != "" {
			g.Detail += "; "
		}
		g.Detail += "this machine is emulated: the figure counts instructions more than time"
	}
	return g
}
