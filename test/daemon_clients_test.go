package test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"ovpn-go/bench/benchtest"
	"ovpn-go/netlinksrv/daemon/wire"
)

// selftestsTree builds the tree of the kernel's selftests, as package selftests does, and returns where it is.
var selftestsTree = sync.OnceValues(func() (string, error) {
	dir := os.Getenv("OVPN_GO_SELFTESTS")
	if dir == "" {
		dir = "/var/cache/ovpn-go/selftests"
	}
	out, err := exec.Command("./selftests/build.sh", dir).CombinedOutput()
	if err != nil {
		return "", errors.Join(err, errors.New(string(out)))
	}
	return dir, nil
})

// requireSelftestsClient has the selftests' client, which is built on libnl and unchanged, make a device with a peer and a key, ask about
// them and delete them, through the daemon in the namespace of the server.
func requireSelftestsClient(d *daemonProcess, s *scenario) {
	d.Helper()
	requireTools(d.T, "unshare")
	tree, err := selftestsTree()
	if err != nil {
		benchtest.Missing(d.T, err.Error())
	}
	const round = `set -e
cd /usr/src/linux/tools/testing/selftests/net/ovpn
./ovpn-cli new_iface selftest0 MP
./ovpn-cli new_peer selftest0 7 8 1198 127.0.0.1 9 5.5.5.2
./ovpn-cli new_key selftest0 7 1 0 aes 0 data64.key
./ovpn-cli get_peer selftest0 7
./ovpn-cli del_peer selftest0 7
if ./ovpn-cli get_peer selftest0 7; then exit 1; fi
./ovpn-cli del_iface selftest0
echo the round is done`
	// The client leaves a process with the peer's socket, which ends with the first process of its namespace.
	args := []string{"exec", "--datapath", "userspace", "--", "unshare", "--pid", "--fork", "chroot", tree, "sh", "-c", round}
	out, err := d.run(s.Server, args...)
	if err != nil || !strings.Contains(out, "Peer 7") || !strings.Contains(out, "the round is done") {
		d.Errorf("the selftests' client: %v\n%s", err, out)
	}
	if has, err := s.Server.HasLink("selftest0"); err != nil || has {
		d.Errorf("the selftests' client has left its interface (%v)", err)
	}
}

// TestDaemonGuardsOtherNamespaces: a process without rights over a network namespace can't have the daemon act there by naming it, whatever
// rights it has over one of its own.
func TestDaemonGuardsOtherNamespaces(t *testing.T) {
	t.Parallel()
	requireTools(t, "setpriv", "unshare")
	d := startDaemon(t, raceBinary)
	star := benchtest.Star(t, 1)
	d.mustRun(star.Server, "", "link", "add", "mp0", "--mode", "mp")
	// Who may connect is not what is tested.
	if err := errors.Join(os.Chmod(d.socket, 0o666), os.Chmod(filepath.Dir(filepath.Dir(d.socket)), 0o755)); err != nil {
		t.Fatal(err)
	}
	var foreign *os.File
	err := star.Server.Do(func() (err error) {
		foreign, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	for who, prefix := range map[string][]string{
		"root without capabilities":      {"setpriv", "--bounding-set=-all", "--inh-caps=-all"},
		"another user":                   {"env", foreignVariable + "_UID=65534"},
		"root of its own user namespace": {"unshare", "--user", "--map-root-user", "--net"},
	} {
		t.Run(who, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), prefix[0], append(prefix[1:], os.Args[0])...)
			cmd.Env = append(cmd.Environ(), foreignVariable+"="+d.socket, "GORACE=atexit_sleep_ms=0")
			cmd.ExtraFiles = []*os.File{foreign}
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
	d.mustRun(star.Server, "0 peers", "show")
	d.mustRun(star.Server, "", "link", "del", "mp0")
}

// foreignVariable makes this binary a client of the daemon at that path, which asks for a network namespace that isn't its own.
const foreignVariable = "OVPN_GO_TEST_FOREIGN"

// askForForeign asks the daemon for the network namespace at descriptor 3 in every way there is, and for its own. The error says
// which answer was not as it should be.
func askForForeign(socket string) error {
	own, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return err
	}
	if uid, err := strconv.Atoi(os.Getenv(foreignVariable + "_UID")); err == nil {
		if err := syscall.Setuid(uid); err != nil {
			return err
		}
	}
	foreign := os.NewFile(3, "foreign namespace")
	for _, ask := range []struct {
		what    string
		request wire.Request
		ns      *os.File
		want    error
	}{
		{"generic netlink here", wire.Request{Type: wire.TypeNetlink, Protocol: unix.NETLINK_GENERIC}, own, nil},
		{"generic netlink there", wire.Request{Type: wire.TypeNetlink, Protocol: unix.NETLINK_GENERIC}, foreign, unix.EPERM},
		{"route netlink there", wire.Request{Type: wire.TypeNetlink, Protocol: unix.NETLINK_ROUTE}, foreign, unix.EPERM},
		{"status there", wire.Request{Type: wire.TypeStatus}, foreign, unix.EPERM},
	} {
		c, err := wire.Dial(socket)
		if err != nil {
			return err
		}
		_, files, err := c.Begin(ask.request, ask.ns)
		if !errors.Is(err, ask.want) {
			return fmt.Errorf("%s: %v, want %v", ask.what, err, ask.want)
		}
		if err != nil && len(files) > 0 {
			return fmt.Errorf("%s: refused with %d descriptors", ask.what, len(files))
		}
		c.Close()
	}
	return nil
}
