// Command mutants makes a document of what mutation testing left alive: it reads gremlins' reports, tries what gremlins passed
// over, joins each survivor with the reason why it may live (arguments.go), and fails if there is one without, or a reason without a survivor.
//
//	go run ./test/mutants -document FILE ROOM=REPORT...
package main

import (
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// report is what of gremlins' report matters here.
type report struct {
	Files []struct {
		Name      string     `json:"file_name"` // below the room
		Mutations []mutation `json:"mutations"`
	} `json:"files"`
}

// mutation is a change of the operator at a place, lines and columns from 1, the latter in bytes.
type mutation struct {
	Type   string `json:"type"`
	Status string `json:"status"`
	Line   int    `json:"line"`
	Column int    `json:"column"`
}

// survivor is a mutant that no test failed on.
type survivor struct {
	file, mutation, code string
	line, column         int
	why                  string
}

// tally counts a room's mutants. One that never ends has been noticed as well.
type tally struct {
	room                     string
	killed, endless, survive int
}

func main() {
	document := flag.String("document", "", "file to write")
	flag.Parse()
	if err := run(*document, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

func run(document string, rooms []string) error {
	var tallies []tally
	var survivors []survivor
	for _, argument := range rooms {
		room, path, ok := strings.Cut(argument, "=")
		if !ok {
			return fmt.Errorf("%q is not ROOM=REPORT", argument)
		}
		t, found, err := read(room, path)
		if err != nil {
			return err
		}
		tallies, survivors = append(tallies, t), append(survivors, found...)
	}
	if err := argue(tallies, survivors); err != nil {
		return err
	}
	return os.WriteFile(document, []byte(render(tallies, survivors)), 0o644)
}

// read returns what a report says of a room, the survivors in the order of the source.
func read(room, path string) (tally, []survivor, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return tally{}, nil, err
	}
	var r report
	if err := json.Unmarshal(data, &r); err != nil {
		return tally{}, nil, fmt.Errorf("read %s: %w", path, err)
	}
	t := tally{room: room}
	var found []survivor
	for _, file := range r.Files {
		name := filepath.Join(room, file.Name)
		source, err := os.ReadFile(name)
		if err != nil {
			return tally{}, nil, err
		}
		lines := strings.Split(string(source), "\n")
		for _, m := range file.Mutations {
			survives := m.Status == "LIVED"
			if m.Status == "NOT COVERED" {
				if survives, err = tryAgain(room, name, m); err != nil {
					return tally{}, nil, err
				}
			}
			switch {
			case m.Status == "TIMED OUT":
				t.endless++
			case !survives:
				t.killed++
			default:
				t.survive++
				found = append(found, survivor{
					file: name, mutation: m.Type, line: m.Line, column: m.Column, code: strings.TrimSpace(lines[m.Line-1]),
				})
			}
		}
	}
	slices.SortFunc(found, func(a, b survivor) int {
		return cmp.Or(strings.Compare(a.file, b.file), a.line-b.line, a.column-b.column, strings.Compare(a.mutation, b.mutation))
	})
	return t, found, nil
}

// argue finds each survivor's reason. A reason that nothing in the rooms needs any more is an error too.
func argue(tallies []tally, survivors []survivor) error {
	var problems []string
	used := make([]bool, len(arguments))
	for i := range survivors {
		s := &survivors[i]
		for j, a := range arguments {
			if a.file == s.file && a.code == s.code && slices.Contains(a.mutations, s.mutation) {
				s.why, used[j] = a.why, true
			}
		}
		if s.why == "" {
			problems = append(problems, fmt.Sprintf("%s:%d:%d: %s survives: %s", s.file, s.line, s.column, s.mutation, s.code))
		}
	}
	for j, a := range arguments {
		read := slices.ContainsFunc(tallies, func(t tally) bool { return t.room == filepath.Dir(a.file) })
		if read && !used[j] {
			problems = append(problems, fmt.Sprintf("%s: no survivor any more: %s", a.file, a.code))
		}
	}
	if len(problems) > 0 {
		return fmt.Errorf("arguments.go is not right:\n%s", strings.Join(problems, "\n"))
	}
	return nil
}

func render(tallies []tally, survivors []survivor) string {
	var b strings.Builder
	b.WriteString("# Mutants\n\n" +
		"`make mutants` changes the code of a room in one place at a time, and runs the room's own tests. It writes this page. What\n" +
		"survives is listed with the reason why it may. Of `netlinksrv` only the files are changed that judge what a request says.\n\n" +
		"| room | killed | endless, and noticed by that | survive |\n|---|--:|--:|--:|\n")
	for _, t := range tallies {
		fmt.Fprintf(&b, "| %s | %d | %d | %d |\n", t.room, t.killed, t.endless, t.survive)
	}
	b.WriteString("\n| survivor | code | why it may live |\n|---|---|---|\n")
	for _, s := range survivors {
		code := strings.ReplaceAll(s.code, "|", "\\|")
		fmt.Fprintf(&b, "| %s:%d:%d %s | `%s` | %s |\n", s.file, s.line, s.column, strings.ToLower(s.mutation), code, s.why)
	}
	return b.String()
}
