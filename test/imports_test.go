package test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestImportArrows holds the rooms to the direction their imports may point: the packages of ours
// that each may need, directly or through others.
func TestImportArrows(t *testing.T) {
	const module = "ovpn-go/"
	for room, allowed := range map[string][]string{
		"confine":                nil,
		"crypto":                 nil,
		"tun/netns":              nil,
		"tun":                    {"tun/netns"},
		"peers":                  {"crypto"},
		"datapath":               {"crypto", "peers", "tun", "tun/netns"},
		"netlinksrv":             {"crypto", "datapath", "netlinksrv/uapi", "peers", "tun", "tun/netns"},
		"netlinksrv/client":      {"crypto", "netlinksrv/daemon/wire", "netlinksrv/uapi", "peers"},
		"netlinksrv/client/hold": {"crypto", "netlinksrv/client", "netlinksrv/daemon/wire", "netlinksrv/uapi", "peers"},
		"netlinksrv/daemon/wire": nil,
		"netlinksrv/exec":        {"crypto", "datapath", "netlinksrv", "netlinksrv/daemon/wire", "netlinksrv/uapi", "peers", "tun", "tun/netns"},
		"netlinksrv/daemon":      {"crypto", "datapath", "netlinksrv", "netlinksrv/daemon/wire", "netlinksrv/exec", "netlinksrv/uapi", "peers", "tun", "tun/netns"},
	} {
		t.Run(room, func(t *testing.T) {
			out, err := exec.Command("go", "list", "-deps", module+room).Output()
			if err != nil {
				t.Fatal(err)
			}
			var foreign []string
			for _, dep := range strings.Fields(string(out)) {
				ours, ok := strings.CutPrefix(dep, module)
				if ok && ours != room && !slices.Contains(allowed, ours) {
					foreign = append(foreign, ours)
				}
			}
			if diff := cmp.Diff([]string(nil), foreign); diff != "" {
				t.Errorf("%s imports rooms that it must not know:\n%s", room, diff)
			}
		})
	}
}

// TestHarnessStaysOutside: nothing but the command and the tests may need the harness, and the
// harness's netlink library stays out of the rooms.
func TestHarnessStaysOutside(t *testing.T) {
	rooms := []string{"./crypto", "./tun/...", "./peers", "./datapath", "./netlinksrv/..."}
	cmd := exec.Command("go", append([]string{"list", "-deps"}, rooms...)...)
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, dep := range strings.Fields(string(out)) {
		for _, prefix := range []string{"ovpn-go/bench", "ovpn-go/test", "ovpn-go/cmd", "github.com/vishvananda/", "github.com/spf13/"} {
			if strings.HasPrefix(dep, prefix) {
				t.Errorf("a room needs %s", dep)
			}
		}
	}
}
