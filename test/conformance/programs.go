package conformance

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// Program is a program of other people's that was run, unchanged, on this program, and whether it was content.
type Program struct {
	Name, What string
	Passed     bool
}

// programTests are the tests that run such programs.
var programTests = []struct {
	folder, test string
	// name is the program's if the test is about one; otherwise each subtest is about one, and bears its name.
	name string
	// what says what the test, under the name "", or each subtest runs.
	what map[string]string
}{
	{"./test/selftests", "TestScripts", "", nil},
	{"./test/selftests", "TestClients", "", map[string]string{
		"ovpn-cli":           "the selftests' client, on libnl: both ends of a tunnel",
		"pyynl":              "the kernel's netlink client in Python",
		"ynl-c":              "the kernel's netlink library in C, generated from the family's description",
		"iproute2":           "iproute2 6.15: links, routes, monitor",
		"mdlayher-genetlink": "a Go program on github.com/mdlayher/genetlink",
	}},
	{"./test", "TestFloat", "OpenVPN 2.7, on libnl", map[string]string{"": "server and client, a tunnel, keys, traffic and a client that moves"}},
}

// RunPrograms runs the tests that run other people's programs, which takes some minutes. A test that fails is a row; it
// is an error if one could not be run, or was skipped.
func RunPrograms(ctx context.Context) (all []Program, err error) {
	for _, t := range programTests {
		cmd := exec.CommandContext(ctx, "go", "test", "-count=1", "-json", "-run", "^"+t.test+"$", t.folder)
		cmd.Env = append(os.Environ(), "OVPN_GO_REQUIRE=1")
		output, runErr := cmd.Output()
		found, err := programsIn(output, t.test)
		if err != nil {
			return nil, fmt.Errorf("%s: %w (%v)", strings.Join(cmd.Args, " "), err, runErr)
		}
		for _, p := range found {
			if whole := p.Name == ""; whole != (t.name != "") {
				continue
			}
			if p.What = t.what[p.Name]; p.What == "" {
				p.What = "one of the kernel's selftests of its module"
			}
			if p.Name == "" {
				p.Name = t.name
			}
			all = append(all, p)
		}
	}
	return all, nil
}

// programsIn returns what "go test -json" says about a test, under the name "", and its subtests.
func programsIn(output []byte, test string) (all []Program, err error) {
	lines := bufio.NewScanner(bytes.NewReader(output))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var event struct{ Action, Test string }
		if err := json.Unmarshal(lines.Bytes(), &event); err != nil {
			return nil, fmt.Errorf("%q: %w", lines.Text(), err)
		}
		name, ok := strings.CutPrefix(event.Test, test)
		if !ok {
			continue
		}
		name = strings.TrimPrefix(name, "/")
		switch event.Action {
		case "pass", "fail":
			all = append(all, Program{Name: name, Passed: event.Action == "pass"})
		case "skip":
			return nil, fmt.Errorf("%s was skipped", event.Test)
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s did not run", test)
	}
	return all, lines.Err()
}
