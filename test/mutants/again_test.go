package main

import (
	"os"
	"strings"
	"testing"
)

// TestTryAgain: of two mutants, one is noticed, and the other is among those that may survive.
func TestTryAgain(t *testing.T) {
	t.Chdir("../..")
	for _, row := range []struct {
		name, file, before string // before is the text up to the operator
		mutation           string
		survives           bool
	}{
		{"noticed", "crypto/replay.go", "ReplayExpiry = 30 ", "ARITHMETIC_BASE", false},
		{"not noticed", "crypto/packetid.go", "if before ", "CONDITIONALS_BOUNDARY", true},
	} {
		t.Run(row.name, func(t *testing.T) {
			source, err := os.ReadFile(row.file)
			if err != nil {
				t.Fatal(err)
			}
			m := mutation{Type: row.mutation}
			for i, line := range strings.Split(string(source), "\n") {
				if before, _, found := strings.Cut(line, row.before); found {
					m.Line, m.Column = i+1, len(before+row.before)+1
				}
			}
			if m.Line == 0 {
				t.Fatalf("%s has no %q", row.file, row.before)
			}
			got, err := tryAgain("crypto", row.file, m)
			if err != nil || got != row.survives {
				t.Errorf("survives: %v, %v; want %v", got, err, row.survives)
			}
		})
	}
}
