package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"ovpn-go/bench"
	"ovpn-go/bench/benchtest"
)

// unitDir holds the units that we ship.
const unitDir = "../cmd/ovpn-go/systemd"

// TestUnitsAreValid has systemd itself judge the units, with Debian's for OpenVPN below our drop-ins.
func TestUnitsAreValid(t *testing.T) {
	t.Parallel()
	requireTools(t, "systemd-analyze")
	requireOpenVPN(t)
	binary, err := plainBinary()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(unitDir)); err != nil {
		t.Fatal(err)
	}
	for _, unit := range []string{"openvpn-client@.service", "openvpn-server@.service"} {
		text, err := os.ReadFile(filepath.Join(bench.TestRoot(), "usr/lib/systemd/system", unit))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, unit), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	units, err := filepath.Glob(dir + "/*.d/*.conf")
	if err != nil || len(units) != 2 {
		t.Fatalf("drop-ins %v, %v", units, err)
	}
	for _, file := range append(units, dir+"/ovpn-go.service") { // the program is not installed
		text, err := os.ReadFile(file)
		if err == nil {
			err = os.WriteFile(file, []byte(strings.ReplaceAll(string(text), "/usr/local/bin/ovpn-go", binary)), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, unit := range []string{"ovpn-go.socket", "ovpn-go.service", "openvpn-client@test.service", "openvpn-server@test.service"} {
		cmd := exec.CommandContext(t.Context(), "systemd-analyze", "verify", "--man=no", filepath.Join(dir, unit))
		cmd.Env = append(cmd.Environ(), "SYSTEMD_UNIT_PATH="+dir+":")
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("systemd-analyze verify %s: %v\n%s", unit, err, out)
		}
	}
	// What the daemon must be able to do keeps it from being called safe; 3.8 as shipped.
	out, err := exec.CommandContext(t.Context(), "systemd-analyze", "security", "--offline=yes", "--threshold=40", "--no-pager", dir+"/ovpn-go.service").CombinedOutput()
	if err != nil {
		t.Errorf("systemd-analyze security: %v\n%s", err, out)
	}
}

// TestUnitGivesWhatItTakes: the daemon does its work with no more capabilities than its unit leaves it, for OpenVPN that has become another
// user, over both transports.
func TestUnitGivesWhatItTakes(t *testing.T) {
	requireTools(t, "setpriv")
	overBoth(t, func(t *testing.T, tcp bool) {
		t.Parallel()
		benchtest.Root(t)
		d := startDaemon(t, raceBinary, withoutOthers(t)...)
		s := d.scenario(1)
		options := bench.Options{TCP: tcp, User: "nobody"}
		server := s.startServer(s.exec(s.Server), bench.ServerOptions{Options: options})
		client := s.startClient(s.exec(s.Clients[0]), 0, bench.ClientOptions{Options: options})
		here, _ := s.addrs(server)
		s.requirePing(s.Clients[0], here)
		s.requireTransfer(s.Clients[0], s.Server, here, 4<<20)
		s.stop(client)
		s.stop(server)
	})
}

// withoutOthers is a command that runs another with the capabilities that the daemon's unit names.
func withoutOthers(t *testing.T) []string {
	t.Helper()
	unit, err := os.ReadFile(filepath.Join(unitDir, "ovpn-go.service"))
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^CapabilityBoundingSet=(.*)$`).FindSubmatch(unit)
	if line == nil {
		t.Fatal("the unit names no capabilities")
	}
	keep := strings.Fields(strings.ToLower(strings.ReplaceAll(string(line[1]), "CAP_", "")))
	known, err := exec.CommandContext(t.Context(), "setpriv", "--list-caps").Output()
	if err != nil {
		t.Fatal(err)
	}
	var drop []string
	for _, name := range strings.Fields(string(known)) {
		if !slices.Contains(keep, name) {
			drop = append(drop, "-"+name)
		}
	}
	list := strings.Join(drop, ",")
	return []string{"setpriv", "--no-new-privs", "--bounding-set=" + list, "--inh-caps=" + list}
}
