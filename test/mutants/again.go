package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// changes are what a mutation makes of the operator that it is at, for those that gremlins may pass over. A longer operator stands
// before one that begins it.
var changes = map[string][][2]string{
	"ARITHMETIC_BASE":       {{"+", "-"}, {"-", "+"}, {"*", "/"}, {"/", "*"}, {"%", "*"}},
	"CONDITIONALS_NEGATION": {{"==", "!="}, {"!=", "=="}, {"<=", ">"}, {">=", "<"}, {"<", ">="}, {">", "<="}},
	"CONDITIONALS_BOUNDARY": {{"<=", "<"}, {">=", ">"}, {"<", "<="}, {">", ">="}},
	"INVERT_BITWISE":        {{"<<", ">>"}, {">>", "<<"}, {"&", "|"}, {"|", "&"}},
	"INVERT_LOGICAL":        {{"&&", "||"}, {"||", "&&"}},
	"INVERT_NEGATIVES":      {{"-", "+"}},
}

// tryAgain runs a room's tests on a mutant that gremlins did not try. It tries those in statements that tests reach, and the values
// of constants and the conditions of a switch are in none. survives is true if the tests succeed.
func tryAgain(room, file string, m mutation) (survives bool, err error) {
	source, err := os.ReadFile(file)
	if err != nil {
		return false, err
	}
	lines := strings.Split(string(source), "\n")
	line := lines[m.Line-1]
	before, rest := line[:m.Column-1], line[m.Column-1:]
	for _, change := range changes[m.Type] {
		after, found := strings.CutPrefix(rest, change[0])
		if !found {
			continue
		}
		lines[m.Line-1] = before + change[1] + after
		return succeed(room, file, strings.Join(lines, "\n"))
	}
	return false, fmt.Errorf("%s:%d:%d: %s can't be tried", file, m.Line, m.Column, m.Type)
}

// succeed runs a room's tests with another text in place of a file's.
func succeed(room, file, text string) (bool, error) {
	dir, err := os.MkdirTemp("", "mutants-")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir)
	path, err := filepath.Abs(file)
	if err != nil {
		return false, err
	}
	mutant, overlay := filepath.Join(dir, filepath.Base(file)), filepath.Join(dir, "overlay.json")
	replaced, err := json.Marshal(map[string]map[string]string{"Replace": {path: mutant}})
	if err != nil {
		return false, err
	}
	if err := os.WriteFile(mutant, []byte(text), 0o600); err != nil {
		return false, err
	}
	if err := os.WriteFile(overlay, replaced, 0o600); err != nil {
		return false, err
	}
	// What does not compile is noticed too.
	return exec.Command("go", "test", "-count=1", "-timeout", "1m", "-overlay", overlay, "./"+room).Run() == nil, nil
}
