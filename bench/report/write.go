package report

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"
)

// Write writes performance.json, performance.md and performance.svg into a directory, which it makes.
func Write(dir string, reports []Report) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var data bytes.Buffer
	if err := EncodeJSON(&data, reports); err != nil {
		return err
	}
	for name, content := range map[string][]byte{
		"performance.json": data.Bytes(),
		"performance.md":   Document(reports),
		"performance.svg":  Chart(reports),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Print writes the medians and the verdicts as tables for a screen.
func Print(out io.Writer, reports []Report) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, r := range reports {
		fmt.Fprintf(w, "\n%s, %d cores, Linux %s\n", r.Machine.CPU, r.Machine.Cores, r.Machine.Kernel)
		for _, c := range r.Cases {
			printCase(w, c)
		}
		fmt.Fprintln(w)
		for _, g := range r.Goals {
			if g.Status != NotMeasured {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", g.Status, g.bound(), g.figure(), g.Text)
			}
		}
	}
	return w.Flush()
}

// printCase compares everybody with the first.
func printCase(w io.Writer, c Case) {
	var first string
	for _, result := range c.Results {
		if len(result.Samples) == 0 {
			continue
		}
		s := Summarize(result.Values())
		fmt.Fprintf(w, "%s\t%s\t%s\t%s to %s", c.ID, result.Contender, c.Metric.Format(s.Median),
			c.Metric.Format(s.Min), c.Metric.Format(s.Max))
		if first == "" {
			first = result.Contender
		} else {
			r := Summarize(c.Ratios(result.Contender, first))
			fmt.Fprintf(w, "\t%.2f (%.2f to %.2f) times %s", r.Median, r.Min, r.Max, first)
		}
		fmt.Fprintln(w)
	}
}

// bound and figure are what a goal asks for and what there is.
func (g Goal) bound() string {
	sign := "≥"
	if g.AtMost {
		sign = "≤"
	}
	return fmt.Sprintf("%s %g", sign, g.Target)
}

func (g Goal) figure() string {
	switch {
	case g.Status == NotMeasured:
		return "–"
	case g.Measured.Min == g.Measured.Max:
		return fmt.Sprintf("%.3g", g.Measured.Median)
	}
	return fmt.Sprintf("%.2f (%.2f to %.2f)", g.Measured.Median, g.Measured.Min, g.Measured.Max)
}
