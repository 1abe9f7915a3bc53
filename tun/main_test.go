package tun_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ovpn-go/tun/netns"
)

var seed = flag.Uint64("seed", 0, "seed of the random tests; 0 takes a new one")

// newRandom returns a generator whose seed is shown if the test fails.
func newRandom(t testing.TB) *rand.Rand {
	t.Helper()
	s := *seed
	if s == 0 {
		s = uint64(time.Now().UnixNano())
	}
	t.Logf("repeat with -seed %d", s)
	return rand.New(rand.NewPCG(s, 0))
}

// randomBytes returns n random bytes.
func randomBytes(random *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(random.Uint32())
	}
	return b
}

// newNetNS makes a namespace for the test, or skips it where that is not allowed.
func newNetNS(t testing.TB) *netns.NS {
	t.Helper()
	ns, err := netns.Create()
	if err != nil {
		skipOrFail(t, err, unix.EPERM)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// skipOrFail ends the test: it is skipped if the error is one of those that a machine without
// privilege or without TUN gives. With OVPN_GO_REQUIRE set the machine must have both.
func skipOrFail(t testing.TB, err error, lacking ...unix.Errno) {
	t.Helper()
	if os.Getenv("OVPN_GO_REQUIRE") == "" {
		for _, errno := range lacking {
			if errors.Is(err, errno) {
				t.Skipf("needs CAP_SYS_ADMIN, CAP_NET_ADMIN and /dev/net/tun: %v", err)
			}
		}
	}
	t.Fatal(err)
}

// diffPackets is cmp.Diff for lists of packets, which are long and nearly always equal.
func diffPackets(a, b [][]byte) string {
	if slices.EqualFunc(a, b, bytes.Equal) {
		return ""
	}
	return cmp.Diff(a, b)
}

var (
	client4 = netip.MustParseAddr("10.8.0.2")
	server4 = netip.MustParseAddr("10.8.0.1")
	client6 = netip.MustParseAddr("fd00:8::2")
	server6 = netip.MustParseAddr("fd00:8::1")
)

// TestMain fails if the tests leave a descriptor open, and with it a device or a namespace.
func TestMain(m *testing.M) {
	flag.Parse()
	before := openFiles()
	code := m.Run()
	if code == 0 {
		for fd, target := range openFiles() {
			if _, ok := before[fd]; !ok {
				fmt.Fprintf(os.Stderr, "descriptor %s is still open: %s\n", fd, target)
				code = 1
			}
		}
	}
	os.Exit(code)
}

// openFiles lists the open descriptors of devices, sockets and namespaces. Others, of the Go
// runtime's poller or of a profile, are not the tests' own.
func openFiles() map[string]string {
	files := make(map[string]string)
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && (strings.HasPrefix(target, "/dev/") || strings.HasPrefix(target, "/proc/") ||
			strings.HasPrefix(target, "socket:") || strings.HasPrefix(target, "net:")) {
			files[e.Name()] = target
		}
	}
	return files
}
