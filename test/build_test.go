package test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"ovpn-go/bench"
	"ovpn-go/bench/benchtest"
)

// raceVariable set to "0" builds the program for the scenarios without the race detector.
const raceVariable = "OVPN_GO_TEST_RACE"

// buildDir is where the binaries go; TestMain makes and removes it.
var buildDir string

// raceBinary is the program for the scenarios, built with the race detector where that is possible;
// plainBinary is the program as it is shipped.
var (
	raceBinary = sync.OnceValues(func() (string, error) {
		if os.Getenv(raceVariable) == "0" || !canRace() {
			return plainBinary()
		}
		return build("ovpn-go-race", "CGO_ENABLED=1", "-race")
	})
	plainBinary = sync.OnceValues(func() (string, error) {
		return build("ovpn-go", "CGO_ENABLED=0")
	})
)

// canRace reports whether the race detector, which needs cgo and a C compiler, can be used.
func canRace() bool {
	compiler := os.Getenv("CC")
	if compiler == "" {
		compiler = "gcc"
	}
	_, err := exec.LookPath(compiler)
	return err == nil && os.Getenv("CGO_ENABLED") != "0"
}

func build(name, env string, flags ...string) (string, error) {
	path := filepath.Join(buildDir, name)
	args := append([]string{"build"}, flags...)
	cmd := exec.Command("go", append(args, "-o", path, "ovpn-go/cmd/ovpn-go")...)
	cmd.Env = append(os.Environ(), env)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return path, nil
}

// openvpn finds OpenVPN in the test root and builds the root first if there is none: once, from
// Debian's packages, which takes about a minute.
var openvpn = sync.OnceValues(func() (bench.OpenVPN, error) {
	root := bench.TestRoot()
	out, err := exec.Command("testroot/build.sh", root).CombinedOutput()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			lines := strings.Split(strings.TrimSpace(string(out)), "\n")
			err = errors.New(lines[len(lines)-1])
		}
		return bench.OpenVPN{}, fmt.Errorf("test/testroot/build.sh %s: %w", root, err)
	}
	return bench.OpenVPNIn(root)
})

func requireOpenVPN(t testing.TB) bench.OpenVPN {
	t.Helper()
	benchtest.Root(t)
	found, err := openvpn()
	if err != nil {
		benchtest.Missing(t, err.Error())
	}
	return found
}

// requireTools skips a test where a program of the machine's own is missing.
func requireTools(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			benchtest.Missing(t, err.Error())
		}
	}
}
