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
	show(&b, "  - ", onlyKernel)
	show(&b, "  + ", onlyOurs)
	return b.String()
}

// show writes the first lines of a side, which tell enough.
func show(b *strings.Builder, prefix string, lines []string) {
	const enough, longest = 8, 600
	for i, line := range lines {
		if i == enough {
			fmt.Fprintf(b, "%s... and %d more\n", prefix, len(lines)-enough)
			return
		}
		if len(line) > longest {
			line = line[:longest] + "..."
		}
		fmt.Fprintf(b, "%s%s\n", prefix, line)
	}
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
	// Subjects are the sequences of requests by what they are about, whatever the options of their sockets, in order.
	Subjects []Subject
	// PacketSubjects are those about packets. Their numbers are of cases: packets that are sent to the device or to its
	// transport socket, with everything that follows from them and the counters afterwards.
	PacketSubjects []Subject
	// Refusals is the number of requests that were refused while what they change was watched.
	Refusals int
	// Problems say which sequences could not be carried out to their end on one side, and which requests changed
	// something although they were refused.
	Problems []string
}

// Subject counts what was asked about a subject, and how much of that was answered identically.
type Subject struct {
	Name                string
	Requests, Identical int
	// Unexplained counts what differs, of packets, without being listed in Deliberate.
	Unexplained int
}

// subject returns the row of the subject of a sequence.
func (r *Report) subject(sequence string) *Subject {
	name, _, _ := strings.Cut(sequence, " (")
	if strings.HasPrefix(name, "random ") {
		name = "random requests"
	}
	subjects := &r.Subjects
	if about, ok := strings.CutPrefix(name, packetPrefix); ok {
		subjects = &r.PacketSubjects
		name, _, _ = strings.Cut(about, " in ")
		name, _, _ = strings.Cut(name, ",")
	}
	for i := range *subjects {
		if (*subjects)[i].Name == name {
			return &(*subjects)[i]
		}
	}
	*subjects = append(*subjects, Subject{Name: name})
	return &(*subjects)[len(*subjects)-1]
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
	for _, side := range []struct {
		name    string
		results *script.Results
	}{{"kernel", kernel}, {"ours", ours}} {
		switch problem := side.results.Problem; {
		case problem != "":
			r.Problems = append(r.Problems, fmt.Sprintf("%s: %s: %s", side.name, s.Name, problem))
		case side.results.Name != s.Name, len(side.results.Outcomes) != len(s.Steps):
			r.Problems = append(r.Problems, fmt.Sprintf("%s: %s: the record is of something else", side.name, s.Name))
		}
		r.Refusals += side.results.Refusals
		for _, change := range side.results.Changes {
			r.Problems = append(r.Problems, fmt.Sprintf("%s: %s: %s", side.name, s.Name, change))
		}
	}
	subject := r.subject(s.Name)
	var current packetCase
	defer func() { current.count(subject) }()
	kernelMask, ourMask := newMasker(s, kernelRun, kernel), newMasker(s, ourRun, ours)
	for i := range min(len(kernel.Outcomes), len(ours.Outcomes)) {
		step := &s.Steps[i]
		r.Steps++
		isRequest := step.Action == script.Send && !strings.HasPrefix(s.Name, packetPrefix)
		if isRequest {
			r.Requests++
			subject.Requests++
		}
		if step.Action == script.Emit {
			current.count(subject)
			current = packetCase{begun: true}
		}
		a, aBytes := kernelMask.outcome(step, &kernel.Outcomes[i])
		b, bBytes := ourMask.outcome(step, &ours.Outcomes[i])
		if slices.Equal(a, b) && slices.Equal(aBytes, bBytes) {
			if isRequest {
				r.Identical++
				subject.Identical++
			}
			continue
		}
		d := Difference{Sequence: s.Name, Index: i, Step: *step, Kernel: a, Ours: b}
		d.Reason = reasonFor(&d)
		r.Differences = append(r.Differences, d)
		current.differs = true
		current.unexplained = current.unexplained || d.Reason == nil
	}
}

// packetCase is the packets of a step, and all that is seen until the next ones.
type packetCase struct{ begun, differs, unexplained bool }

func (c *packetCase) count(subject *Subject) {
	if !c.begun {
		return
	}
	subject.Requests++
	switch {
	case c.unexplained:
		subject.Unexplained++
	case !c.differs:
		subject.Identical++
	}
}

// Packets adds up the subjects about packets.
func (r *Report) Packets() (all Subject) {
	for _, s := range r.PacketSubjects {
		all.Requests += s.Requests
		all.Identical += s.Identical
		all.Unexplained += s.Unexplained
	}
	return all
}

// datagramEnd parts the lines of one datagram from those of the next.
const datagramEnd = "."

// outcome puts what came back from a step into words, in which nothing is left that must differ, and also returns the
// datagrams as they are. Those about links are left out there, as the order of their attributes does not count.
//
// Of lists of families and links, what is not about ours is dropped, and with it how they were cut into datagrams.
func (m *masker) outcome(step *script.Step, o *script.Outcome) (lines, exact []string) {
	if o.Errno != 0 {
		lines = append(lines, "system call: "+unix.ErrnoName(unix.Errno(o.Errno)))
	}
	lines = append(lines, o.Notes...)
	partial := false // only a part of a list is kept
	for _, d := range o.Received {
		if d.From != "" {
			lines = append(lines, describePacket(d), datagramEnd)
			continue
		}
		d.Data = m.mask(d, step, o.Sent)
		var kept script.Bytes
		rest := eachMessage(d.Data, func(msg []byte) {
			if ofOtherFamilies(msg) || ofOtherLinks(d.On, msg) {
				partial = true
				return
			}
			kept = append(kept, msg...)
			for len(kept)%4 != 0 {
				kept = append(kept, 0)
			}
		})
		if partial {
			d.Data = append(kept, rest...)
		}
		text := describe(d)
		if len(text) > 0 && strings.Contains(text[0], "RTM_") {
			sortAttributes(text)
		} else {
			exact = append(exact, string(d.Data))
		}
		lines = append(append(lines, text...), datagramEnd)
	}
	if partial || listsLinks(step) {
		return slices.DeleteFunc(lines, func(line string) bool { return line == datagramEnd }), nil
	}
	return lines, exact
}

// sortAttributes sorts the lines about each link.
func sortAttributes(lines []string) {
	for len(lines) > 0 {
		end := 1
		for end < len(lines) && strings.HasPrefix(lines[end], linkLine) {
			end++
		}
		slices.Sort(lines[1:end])
		lines = lines[end:]
	}
}
