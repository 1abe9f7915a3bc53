package report

import (
	"bytes"
	"encoding/xml"
	"fmt"
)

// The picture's measures, in its own units.
const (
	chartWidth  = 820
	chartLabel  = 170 // where the bars begin
	chartBar    = 18
	chartRow    = 26
	chartPanel  = 44 // a panel's heading
	chartBarEnd = 640
)

// chartStyle follows the reader's colour scheme; where that is unknown, the colours are legible on both.
const chartStyle = `<style>
text { font: 13px system-ui, sans-serif; fill: #57606a; }
.heading { font-weight: 600; font-size: 14px; }
.ours { fill: #2f81f7; } .other { fill: #8b949e; } .ceiling { fill: #8b949e; fill-opacity: 0.35; }
.range { stroke: #57606a; stroke-width: 1.5; fill: none; }
@media (prefers-color-scheme: dark) { text { fill: #c9d1d9; } .range { stroke: #c9d1d9; } }
@media (prefers-color-scheme: light) { text { fill: #24292f; } .range { stroke: #24292f; } }
</style>
`

// Chart is a picture of the first report's main figures as SVG: a bar for each contender's median, and a line over the
// range of the rounds.
func Chart(reports []Report) []byte {
	var body bytes.Buffer
	y := 10
	if len(reports) > 0 {
		r := reports[0]
		for _, panel := range []struct{ id, heading string }{
			{OneStream, "One TCP stream, Gbit/s (longer is better)"},
			{"tcp-4-up", "Four TCP streams, Gbit/s (longer is better)"},
			{GoalPackets, "UDP packets of 1,300 bytes delivered, thousands a second (longer is better)"},
			{IdleTrip, "Idle round trip, µs (shorter is better)"},
		} {
			if c, ok := r.Case(panel.id); ok {
				y = chartCase(&body, r, c, panel.heading, y)
			}
		}
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img">`+"\n", chartWidth, y, chartWidth, y)
	b.WriteString("<title>Throughput, packets and round trips of each contender</title>\n" + chartStyle)
	b.Write(body.Bytes())
	b.WriteString("</svg>\n")
	return b.Bytes()
}

// chartCase draws one panel from y down and returns where the next begins.
func chartCase(b *bytes.Buffer, r Report, c Case, heading string, y int) int {
	var longest float64
	who := present(r, []Case{c})
	for _, name := range who {
		// The ceiling would make everything else short; it ends in an arrow.
		if result, _ := c.Of(name); name != Veth {
			longest = max(longest, Summarize(result.Values()).Max)
		}
	}
	if longest == 0 {
		return y
	}
	style := metrics[c.Metric]
	text(b, 10, y+18, "heading", "start", heading)
	y += chartPanel - chartRow/2
	for _, name := range who {
		result, _ := c.Of(name)
		s := Summarize(result.Values())
		at := func(v float64) float64 {
			return chartLabel + (chartBarEnd-chartLabel)*min(v/longest, 1)
		}
		class := "other"
		switch name {
		case Ours, OursStatic:
			class = "ours"
		case Veth:
			class = "ceiling"
		}
		text(b, chartLabel-10, y+14, "", "end", name)
		fmt.Fprintf(b, `<rect class="%s" x="%d" y="%d" width="%.1f" height="%d" rx="2"/>`+"\n", class, chartLabel, y, max(at(s.Median)-chartLabel, 1), chartBar)
		end := at(s.Median)
		label := fmt.Sprintf("%.*f", style.digits, s.Median/style.scale)
		switch {
		case s.Median > longest:
			fmt.Fprintf(b, `<path class="ceiling" d="M%.1f %d l10 %d l-10 %d z"/>`+"\n", end, y, chartBar/2, chartBar/2)
			end += 10
		case s.Max > s.Min:
			middle := y + chartBar/2
			fmt.Fprintf(b, `<path class="range" d="M%.1f %d v8 m0 -4 H%.1f m0 -4 v8"/>`+"\n", at(s.Min), middle-4, at(s.Max))
			end = max(end, at(s.Max))
		}
		text(b, int(end)+8, y+14, "", "start", label)
		y += chartRow
	}
	return y + 10
}

func text(b *bytes.Buffer, x, y int, class, anchor, content string) {
	fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="%s"`, x, y, anchor)
	if class != "" {
		fmt.Fprintf(b, ` class="%s"`, class)
	}
	b.WriteByte('>')
	xml.EscapeText(b, []byte(content))
	b.WriteString("</text>\n")
}
