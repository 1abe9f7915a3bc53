package selftests

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// tap is what a script says about its stages in the Test Anything Protocol.
type tap struct {
	plan   int // the number of stages
	stages []stage
}

type stage struct {
	number int
	name   string
	ok     bool // and not skipped
}

var (
	tapPlan  = regexp.MustCompile(`^1\.\.(\d+)$`)
	tapStage = regexp.MustCompile(`^(not )?ok (\d+) (.*)$`)
)

// parseTAP reads an output, in which other lines may stand between those of the protocol.
func parseTAP(output string) (t tap) {
	for line := range strings.Lines(output) {
		line = strings.TrimRight(line, "\n")
		if m := tapPlan.FindStringSubmatch(line); m != nil {
			t.plan, _ = strconv.Atoi(m[1])
		}
		if m := tapStage.FindStringSubmatch(line); m != nil {
			number, _ := strconv.Atoi(m[2])
			t.stages = append(t.stages, stage{number, m[3], m[1] == "" && !strings.Contains(m[3], "# SKIP")})
		}
	}
	return t
}

// failed returns the names of the stages that failed or were skipped.
func (t tap) failed() (names []string) {
	for _, s := range t.stages {
		if !s.ok {
			names = append(names, s.name)
		}
	}
	return names
}

// err is nil if every planned stage was reported once, in order, and passed.
func (t tap) err() error {
	if failed := t.failed(); failed != nil {
		return fmt.Errorf("not ok: %s", strings.Join(failed, ", "))
	}
	if t.plan == 0 || len(t.stages) != t.plan {
		return fmt.Errorf("%d of %d stages reported", len(t.stages), t.plan)
	}
	for i, s := range t.stages {
		if s.number != i+1 {
			return fmt.Errorf("stage %d reported as number %d", i+1, s.number)
		}
	}
	return nil
}

func TestTAP(t *testing.T) {
	for _, tt := range []struct {
		rule, output, want string
	}{
		{"all stages pass", "TAP version 13\n1..2\nok 1 setup\nnoise\nok 2 traffic\n# Totals: pass:2\n", ""},
		{"a stage fails", "1..2\nok 1 setup\nnot ok 2 traffic\n", "not ok: traffic"},
		{"a stage is skipped", "1..1\nok 1 setup # SKIP no module\n", "not ok: setup # SKIP no module"},
		{"it ends early", "1..2\nok 1 setup\n", "1 of 2 stages reported"},
		{"no plan", "ok 1 setup\n", "1 of 0 stages reported"},
		{"no output", "", "0 of 0 stages reported"},
		{"a stage twice", "1..2\nok 1 setup\nok 1 setup\n", "stage 2 reported as number 1"},
	} {
		t.Run(tt.rule, func(t *testing.T) {
			got := ""
			if err := parseTAP(tt.output).err(); err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("error %q, want %q", got, tt.want)
			}
		})
	}
}
