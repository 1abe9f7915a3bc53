// Package test holds the tests that need more than one room: real OpenVPN processes in network
// namespaces, run by the program as a user would run them.
package test

import (
	"fmt"
	"os"
	"testing"

	"ovpn-go/netlinksrv/daemon/wire"
)

// runVariable marks every process that a test run starts, so that what is left over can be told from
// what belongs to somebody else.
const runVariable = "OVPN_GO_TEST_RUN"

func TestMain(m *testing.M) {
	if socket := os.Getenv(foreignVariable); socket != "" {
		if err := askForForeign(socket); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "ovpn-go-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	// One test runs the program as somebody else.
	if err := os.Chmod(dir, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	buildDir = dir
	marker := fmt.Sprintf("%s=%d-%s", runVariable, os.Getpid(), dir)
	os.Setenv(runVariable, marker[len(runVariable)+1:])
	os.Setenv(wire.Variable, wire.None) // a daemon that this machine has is not what is tested

	before := inventory()
	code := m.Run()
	if leaks := before.leaks(marker); len(leaks) > 0 {
		for _, leak := range leaks {
			fmt.Fprintln(os.Stderr, "left behind:", leak)
		}
		return max(code, 1)
	}
	return code
}
