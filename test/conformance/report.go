package conformance

import (
	"fmt"
	"strings"
)

// Summary puts a report into words.
type Summary struct {
	*Report
	// Written and Random are the numbers of sequences of either kind, and Seed that of the random ones.
	Written, Random int
	Seed            uint64
}

// row is a line of the table: what differs, and how often.
type row struct {
	what  string
	count int
}

func (s *Summary) rows() []row {
	different, intended := 0, map[*Reason]int{}
	for i := range s.Differences {
		if r := s.Differences[i].Reason; r != nil {
			intended[r]++
		} else {
			different++
		}
	}
	rows := []row{
		{"requests", s.Requests}, {"identical answers", s.Identical}, {"different without a reason", different},
	}
	for i := range Deliberate {
		if n := intended[&Deliberate[i]]; n > 0 {
			rows = append(rows, row{"on purpose: " + Deliberate[i].Title, n})
		}
	}
	return rows
}

// Table is the summary for a terminal.
func (s *Summary) Table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "kernel %s, program on %s; %d sequences written and %d random (seed %d)\n",
		s.Kernel, s.Host, s.Written, s.Random, s.Seed)
	for _, r := range s.rows() {
		fmt.Fprintf(&b, "%7d  %s\n", r.count, r.what)
	}
	for _, p := range s.Problems {
		fmt.Fprintf(&b, "problem: %s\n", p)
	}
	return b.String()
}

// Document is the summary for the repository.
func (s *Summary) Document() string { return s.Table() }
