// Package benchtest says what a test needs from the machine, and skips the test where that is
// missing, or fails it where the machine was promised to have it.
package benchtest

import (
	"errors"
	"io/fs"
	"os"
	"testing"

	"ovpn-go/bench"
)

// RequireVariable is the environment variable that forbids skipping: with it set, a test that lacks
// something fails. Continuous integration sets it.
const RequireVariable = "OVPN_GO_REQUIRE"

// Missing skips the test for the reason given, or fails it if skipping is forbidden.
func Missing(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv(RequireVariable) != "" {
		t.Fatalf("%s (and %s forbids to skip)", reason, RequireVariable)
	}
	t.Skip(reason)
}

// Root requires the right to create network namespaces and TUN devices.
func Root(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		Missing(t, "needs root")
	}
	if _, err := os.Stat("/dev/net/tun"); errors.Is(err, fs.ErrNotExist) {
		Missing(t, "needs /dev/net/tun")
	}
}

// OpenVPN requires an OpenVPN that speaks the ovpn family.
func OpenVPN(t testing.TB) bench.OpenVPN {
	t.Helper()
	Root(t)
	openvpn, err := bench.FindOpenVPN()
	if err != nil {
		Missing(t, err.Error())
	}
	return openvpn
}

// Star builds a star of one server and n clients for the test.
func Star(t testing.TB, n int) *bench.Star {
	t.Helper()
	Root(t)
	star, err := bench.NewStar(n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := star.Close(); err != nil {
			t.Error(err)
		}
	})
	return star
}

// Lab opens a lab for the test.
func Lab(t testing.TB) *bench.Lab {
	t.Helper()
	lab, err := bench.NewLab(OpenVPN(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	return lab
}
