package report

import (
	"bytes"
	"embed"
	"fmt"
	"slices"
	"strings"
)

//go:embed notes/*.md
var notes embed.FS

// Document is the reports as Markdown, beside a picture performance.svg. The first report is the main one.
func Document(reports []Report) []byte {
	var b bytes.Buffer
	fmt.Fprint(&b, "# Performance\n\nThis page is written by `make bench`. Its figures are in "+
		"[performance.json](performance.json) with every single measurement.\n")
	if slices.ContainsFunc(reports, func(r Report) bool { return r.Quick }) {
		fmt.Fprint(&b, "\n**Of a quick run, which only shows that everything works: no figure here means anything.**\n")
	}
	writeGoals(&b, reports)
	fmt.Fprint(&b, "\n![Throughput, packets and round trips of each contender](performance.svg)\n")
	writeMethod(&b, reports)
	for _, r := range reports {
		writeReport(&b, r)
	}
	return b.Bytes()
}

// writeGoals takes each goal from the first report that could judge it.
func writeGoals(b *bytes.Buffer, reports []Report) {
	if len(reports) == 0 {
		return
	}
	fmt.Fprint(b, "\n## Goals\n\nRatios of this program's figure to the other's, median of the rounds and the range they had.\n\n"+
		"| Goal | Asked for | Measured | | |\n|---|--:|--:|---|---|\n")
	var missed []Goal
	for _, g := range reports[0].Goals {
		for _, r := range reports[1:] {
			i := slices.IndexFunc(r.Goals, func(other Goal) bool { return other.ID == g.ID })
			if g.Status == NotMeasured && i >= 0 {
				g = r.Goals[i]
			}
		}
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s |\n", g.Text, g.bound(), g.figure(), verdict(g.Status), cell(g.Detail))
		if g.Status == Missed {
			missed = append(missed, g)
		}
	}
	for _, g := range missed {
		fmt.Fprintf(b, "\n### Missed: %s\n\n", g.Text)
		note, err := notes.ReadFile("notes/" + g.ID + ".md")
		if err != nil {
			note = []byte("Nothing is known about it yet.\n")
		}
		b.Write(note)
	}
}

func verdict(s Status) string {
	if s == NotMeasured {
		return string(s)
	}
	return "**" + string(s) + "**"
}

func cell(text string) string { return strings.ReplaceAll(text, "|", "\\|") }

const method = `
## Method

Each contender stands between two network namespaces of its own, which a veth pair joins, and all of them take
turns within a round; the order rotates. Compare within a row: what the machine does otherwise meets all of a
row's contenders, but not another row's. Before each measurement the harness waits for a quiet moment.

- TCP is sent by the harness itself, with cubic at both ends, in writes of 128 KiB; what counts is the payload that arrives.
- UDP is sent without segmentation offload, 32 packets a system call, as fast as the sender's core can, and received without
  coalescing; what counts are the packets that arrive at the receiving program. Sizes are of IP packets inside the tunnel.
- A burst's last packet is a byte shorter, where batches of packets end, so that one peer's bursts do not run together into longer ones than those
  of many peers can be.
- A round trip is that of one 64-byte UDP packet between two programs, one at a time.
- OpenVPN runs as a server and a client with a plain configuration: tun-mtu 1500 over a path of 1,500 bytes. WireGuard's
  interface, and that of static keys, takes the path's MTU less 80 bytes, as do all of them over a path of 9,000.
- Processor time is of the whole machine, interrupts and the sending and receiving programs included; in
  parentheses what the tunnel's own processes were charged with.
- WireGuard has one cipher, ChaCha20-Poly1305.
`

func writeMethod(b *bytes.Buffer, reports []Report) {
	b.WriteString(method)
	for _, r := range reports {
		for _, c := range r.CrossCheck {
			own, other := Summarize(c.Own), Summarize(c.Iperf3)
			fmt.Fprintf(b, "- Cross-check on %s: one TCP stream through %s, in turns, is %.2f Gbit/s by the harness and %.2f by iperf3, a ratio of %.2f.\n",
				r.Machine.Kernel, c.Contender, own.Median, other.Median, own.Median/other.Median)
		}
	}
}

func writeReport(b *bytes.Buffer, r Report) {
	m := r.Machine
	kind := ""
	switch {
	case m.Emulated:
		kind = ", emulated"
	case m.Virtual:
		kind = ", a virtual machine"
	}
	fmt.Fprintf(b, "\n## On %s, Linux %s\n\n", m.CPU, m.Kernel)
	fmt.Fprintf(b, "%s, %d cores, %d GiB%s, %s; %s. %s, %.0f minutes, %d rounds of %g s where a goal depends on it.\n",
		m.Arch, m.Cores, (m.Memory+1<<29)>>30, kind, m.Go, "both ends and the traffic's programs share the cores",
		r.Started.Format("2006-01-02 15:04 MST"), r.Seconds/60, r.Rounds, r.Duration)
	if m.Emulated {
		fmt.Fprint(b, "\nA program interprets this machine's instructions: ratios count instructions more than time, and system calls, ciphers "+
			"and copies cost other than on a processor.\n")
	}
	fmt.Fprint(b, "\n| Contender | What | Version |\n|---|---|---|\n")
	for _, c := range r.Contenders {
		version := c.Version
		if c.Missing != "" {
			version = "missing: " + c.Missing
		}
		fmt.Fprintf(b, "| %s | %s | %s |\n", c.Name, cell(c.What), cell(version))
	}
	for _, metric := range []Metric{Throughput, Packets, RoundTrip, PacketCost} {
		writeMetric(b, r, metric)
	}
	writeFailures(b, r)
}

// metrics says how each is presented; scale divides its values.
var metrics = map[Metric]struct {
	heading, unit string
	scale         float64
	digits        int
}{
	Throughput: {"TCP throughput", "Gbit/s", 1, 2},
	Packets:    {"UDP packets delivered", "thousands a second; below it the share of packets lost", 1e3, 0},
	RoundTrip:  {"Round trips", "µs, median; below it the 99th percentile", 1, 0},
	PacketCost: {"Many peers", "nanoseconds of the tunnel's processor time per packet; below it the thousands of packets a second", 1, 0},
}

func writeMetric(b *bytes.Buffer, r Report, metric Metric) {
	var cases []Case
	for _, c := range r.Cases {
		if c.Metric == metric {
			cases = append(cases, c)
		}
	}
	who := present(r, cases)
	if len(cases) == 0 || len(who) == 0 {
		return
	}
	style := metrics[metric]
	fmt.Fprintf(b, "\n### %s\n\n%s. Medians, and the range of the rounds.\n\n", style.heading, sentence(style.unit))
	heading := append([]string{"Case"}, who...)
	var bases []string
	for _, base := range []string{OpenVPN, WireGuardGo, KernelOvpn, KernelStatic, KernelWG} {
		if slices.Contains(who, base) {
			bases = append(bases, base)
			heading = append(heading, "ours ÷ "+base)
		}
	}
	row(b, heading)
	row(b, append([]string{"---"}, slices.Repeat([]string{"--:"}, len(heading)-1)...))
	for _, c := range cases {
		cells := []string{c.Title}
		for _, name := range who {
			cells = append(cells, resultCell(c, name, style.scale, style.digits))
		}
		for _, base := range bases {
			ours := Ours
			if base == KernelStatic || !slices.Contains(who, Ours) {
				ours = OursStatic
			}
			text := ""
			if ratios := c.Ratios(ours, base); len(ratios) > 0 {
				text = fmt.Sprintf("%.2f", Summarize(ratios).Median)
			}
			cells = append(cells, text)
		}
		row(b, cells)
	}
	if metric == Throughput || metric == Packets {
		writeCPU(b, cases, who, metric)
	}
}

// present are the contenders with samples, in the report's order.
func present(r Report, cases []Case) []string {
	var who []string
	for _, x := range r.Contenders {
		if slices.ContainsFunc(cases, func(c Case) bool { _, ok := c.Of(x.Name); return ok }) {
			who = append(who, x.Name)
		}
	}
	return who
}

func resultCell(c Case, name string, scale float64, digits int) string {
	result, ok := c.Of(name)
	if !ok {
		return ""
	}
	s := Summarize(result.Values())
	text := fmt.Sprintf("%.*f", digits, s.Median/scale)
	if len(result.Samples) > 1 {
		text += fmt.Sprintf(" (%.*f–%.*f)", digits, s.Min/scale, digits, s.Max/scale)
	}
	second := func(of func(Sample) float64, format string) {
		text += "<br>" + fmt.Sprintf(format, Summarize(result.each(of)).Median)
	}
	switch c.Metric {
	case Packets:
		second(func(s Sample) float64 { return s.Loss * 100 }, "%.0f %%")
	case RoundTrip:
		second(func(s Sample) float64 { return s.P99 }, "%.0f")
	case PacketCost:
		second(func(s Sample) float64 { return s.Delivered / 1e3 }, "%.0f")
	}
	return text
}

func (r Result) each(of func(Sample) float64) []float64 {
	var values []float64
	for _, s := range r.Samples {
		values = append(values, of(s))
	}
	return values
}

func writeCPU(b *bytes.Buffer, cases []Case, who []string, metric Metric) {
	heading, scale := "Processor seconds per 10^9 bytes", 1.0
	if metric == Packets {
		heading, scale = "Processor time in µs per packet delivered", 1e3
	}
	row(b, []string{})
	fmt.Fprintf(b, "%s:\n\n", heading)
	row(b, append([]string{"Case"}, who...))
	row(b, append([]string{"---"}, slices.Repeat([]string{"--:"}, len(who))...))
	for _, c := range cases {
		cells := []string{c.Title}
		for _, name := range who {
			text := ""
			if r, ok := c.Of(name); ok {
				all := Summarize(r.each(func(s Sample) float64 { return s.CPU })).Median / scale
				own := Summarize(r.each(func(s Sample) float64 { return s.TunnelCPU })).Median / scale
				text = fmt.Sprintf("%.2f", all)
				if own > 0 {
					text += fmt.Sprintf(" (%.2f)", own)
				}
			}
			cells = append(cells, text)
		}
		row(b, cells)
	}
}

func row(b *bytes.Buffer, cells []string) {
	if len(cells) > 0 {
		b.WriteString("| " + strings.Join(cells, " | ") + " |")
	}
	b.WriteByte('\n')
}

func sentence(text string) string {
	r := []rune(text)
	return strings.ToUpper(string(r[0])) + string(r[1:])
}

func writeFailures(b *bytes.Buffer, r Report) {
	first := true
	for _, c := range r.Cases {
		for _, result := range c.Results {
			for _, text := range result.Errors {
				if first {
					fmt.Fprint(b, "\n### Not measured\n\n")
					first = false
				}
				line, _, _ := strings.Cut(text, "\n")
				fmt.Fprintf(b, "- %s, %s: %s\n", c.Title, result.Contender, line)
			}
		}
	}
}
