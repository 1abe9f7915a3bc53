package conformance

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"ovpn-go/test/conformance/script"
)

// Verdict is what comes of the comparison of one step.
type Verdict int

// The verdicts.
const (
	Identical Verdict = iota
	Intended          // different, and listed in Deliberate
	Different
)

// Difference is a step whose answers are not the same on both sides.
type Difference struct {
	Sequence string
	Index    int
	Step     script.Step
	// Kernel and Ours are the answers in words.
	Kernel, Ours []string
	// Reason is the row of Deliberate that covers it, nil if none does.
	Reason *Reason
}

// String shows the answers side by side: "-" is what only the kernel says, "+" what only we do.
func (d *Difference) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, step %d: %s\n", d.Sequence, d.Index, d.Step.Name)
	if len(d.Step.Data) > 0 {
		fmt.Fprintf(&b, "    sent %x\n", d.Step.Data)
	}
	onlyKernel, onlyOurs := d.changes()
	if len(onlyKernel) == 0 && len(onlyOurs) == 0 {
		b.WriteString("    the same, but in other datagrams or another order\n")
		onlyKernel, onlyOurs = d.Kernel, d.Ours
	}
	for _, line := range onlyKernel {
		fmt.Fprintf(&b, "  - %s\n", line)
	}
	for _, line := range onlyOurs {
		fmt.Fprintf(&b, "  + %s\n", line)
	}
	return b.String()
}

// changes returns the lines that only one side has.
func (d *Difference) changes() (onlyKernel, onlyOurs []string) {
	return minus(d.Kernel, d.Ours), minus(d.Ours, d.Kernel)
}

func minus(a, b []string) []string {
	left := map[string]int{}
	for _, line := range b {
		left[line]++
	}
	var out []string
	for _, line := range a {
		if left[line]--; left[line] < 0 {
			out = append(out, line)
		}
	}
	return out
}

// Report is the comparison of two runs.
type Report struct {
	// Kernel and Host are the releases of the kernels that the runs were made on.
	Kernel, Host string
	// Requests are the datagrams that were sent, and Steps all that was compared.
	Requests, Steps int
	// Identical counts the requests with the same answers.
	Identical   int
	Differences []Difference
	// Problems say which sequences could not be carried out to their end on one side.
	Problems []string
}

// Unexplained returns the differences that no reason covers.
func (r *Report) Unexplained() []Difference {
	return slices.DeleteFunc(slices.Clone(r.Differences), func(d Difference) bool { return d.Reason != nil })
}

// Compare finds where the transcript of this program differs from that of the kernel.
func Compare(sequences []script.Sequence, kernel, ours *script.Transcript) *Report {
	report := &Report{Kernel: kernel.Kernel, Host: ours.Kernel}
	if len(kernel.Sequences) != len(sequences) || len(ours.Sequences) != len(sequences) {
		report.Problems = append(report.Problems, fmt.Sprintf("of %d sequences the kernel ran %d, we ran %d",
			len(sequences), len(kernel.Sequences), len(ours.Sequences)))
		return report
	}
	for i := range sequences {
		report.sequence(&sequences[i], &kernel.Sequences[i], &ours.Sequences[i], kernel, ours)
	}
	return report
}

func (r *Report) sequence(s *script.Sequence, kernel, ours *script.Results, kernelRun, ourRun *script.Transcript) {
	if kernel.Problem != "" {
		r.Problems = append(r.Problems, fmt.Sprintf("kernel: %s: %s", s.Name, kernel.Problem))
	}
	if ours.Problem != "" {
		r.Problems = append(r.Problems, fmt.Sprintf("ours: %s: %s", s.Name, ours.Problem))
	}
	kernelMask, ourMask := newMasker(kernelRun, kernel), newMasker(ourRun, ours)
	for i := range min(len(kernel.Outcomes), len(ours.Outcomes)) {
		step := &s.Steps[i]
		r.Steps++
		if step.Action == script.Send {
			r.Requests++
		}
		a, aBytes := kernelMask.outcome(step, &kernel.Outcomes[i])
		b, bBytes := ourMask.outcome(step, &ours.Outcomes[i])
		if slices.Equal(a, b) && slices.Equal(aBytes, bBytes) {
			if step.Action == script.Send {
				r.Identical++
			}
			continue
		}
		d := Difference{Sequence: s.Name, Index: i, Step: *step, Kernel: a, Ours: b}
		d.Reason = reasonFor(&d)
		r.Differences = append(r.Differences, d)
	}
}

// datagramEnd parts the lines of one datagram from those of the next.
const datagramEnd = "."

// outcome puts what came back from a step into words, in which nothing is left that must differ, and also returns the
// datagrams as they are. Those about links are left out there, as the order of their attributes does not count.
func (m *masker) outcome(step *script.Step, o *script.Outcome) (lines, exact []string) {
	if o.Errno != 0 {
		lines = append(lines, "system call: "+unix.ErrnoName(unix.Errno(o.Errno)))
	}
	for _, d := range o.Received {
		d.Data = m.mask(d.Data, step, o.Sent)
		var kept script.Bytes
		dropped := false
		rest := eachMessage(d.Data, func(msg []byte) {
			if ofOtherFamilies(msg) || ofOtherLinks(msg) {
				dropped = true
				return
			}
			kept = append(kept, msg...)
			for len(kept)%4 != 0 {
				kept = append(kept, 0)
			}
		})
		if dropped {
			// What is left of a list says nothing about how it was cut into datagrams.
			if len(kept) == 0 {
				continue
			}
			d.Data = append(kept, rest...)
		}
		text := describe(d)
		if len(text) > 0 && strings.Contains(text[0], "RTM_") {
			slices.Sort(text[1:])
		} else {
			exact = append(exact, string(d.Data))
		}
		lines = append(lines, text...)
		lines = append(lines, datagramEnd)
	}
	return lines, exact
}
