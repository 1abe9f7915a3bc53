package test

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	vnl "github.com/vishvananda/netlink"

	"golang.org/x/sys/unix"

	"ovpn-go/bench"
	"ovpn-go/bench/benchtest"
)

// namespacesVariable makes the test binary the client of TestEverythingInItsOwnNamespace: it holds the transport, and
// the paths of the namespaces of two devices and of their sockets.
const namespacesVariable = "OVPN_GO_TEST_NAMESPACES"

func init() {
	value := os.Getenv(namespacesVariable)
	if value == "" {
		return
	}
	if err := spreadOut(strings.Fields(value)); err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// TestEverythingInItsOwnNamespace has a client in one namespace, its device in a second and the device's transport socket in
// a third, twice, as both ends of a tunnel, and sends through it. Packets leave only with the mark that the socket got after
// it was attached.
func TestEverythingInItsOwnNamespace(t *testing.T) {
	benchtest.Root(t)
	for _, transport := range []string{"udp", "connected-udp", "tcp"} {
		t.Run(transport, func(t *testing.T) {
			star := benchtest.Star(t, 1)
			node := func(name string) *bench.Node {
				n, err := star.AddNode(name)
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
			control, devices := node("control"), []*bench.Node{node("device0"), node("device1")}
			args := []string{transport}
			for _, n := range []*bench.Node{devices[0], devices[1], star.Server, star.Clients[0]} {
				args = append(args, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.NS.File().Fd()))
			}
			startController(t, control, namespacesVariable+"="+strings.Join(args, " ")).expect(t, "ready")
			// From here on the mark that the client has set since is what it takes to leave.
			for _, n := range []*bench.Node{star.Server, star.Clients[0]} {
				if err := n.Do(func() error {
					rule := fmt.Sprintf("rule add pref 10 not fwmark %d to 10.9.0.0/24 prohibit", laterMark)
					out, err := exec.Command("ip", strings.Fields(rule)...).CombinedOutput()
					if err != nil {
						return fmt.Errorf("ip %s: %w: %s", rule, err, out)
					}
					return nil
				}); err != nil {
					t.Fatal(err)
				}
			}
			setUpEnds(t, devices)
			requirePings(t, devices, 20)
		})
	}
}

// spreadOut is the client. It says "ready" and lives until its input ends.
func spreadOut(args []string) error {
	runtime.LockOSThread()
	transport, places := args[0], args[1:]
	var fds [5]int // of the namespaces: those of args and our own
	for i, path := range append(places, "/proc/thread-self/ns/net") {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open %s: %w", path, err)
		}
		fds[i] = fd
	}
	in := func(ns int, fn func() error) error {
		if err := unix.Setns(fds[ns], unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter a namespace: %w", err)
		}
		err := fn()
		if back := unix.Setns(fds[4], unix.CLONE_NEWNET); err == nil {
			err = back
		}
		return err
	}
	sockets, err := transportSockets(transport, in)
	if err != nil {
		return fmt.Errorf("open sockets: %w", err)
	}
	for i := range 2 {
		var c *ovpnClient
		if err := in(i, func() (err error) { c, err = newOvpnClient("ovpn0"); return err }); err != nil {
			return err
		}
		var remote netip.AddrPort
		if transport != "tcp" {
			remote = starEnds[1-i]
		}
		if err := c.newPeer(1, sockets[i], remote, tunnelEnds[1-i]); err != nil {
			return err
		}
		got, err := c.socketNamespace(1)
		if err != nil {
			return err
		}
		if err := unix.SetsockoptInt(sockets[i], unix.SOL_SOCKET, unix.SO_MARK, laterMark); err != nil {
			return fmt.Errorf("mark a socket: %w", err)
		}
		var want int
		if err := in(i, func() (err error) { want, err = vnl.GetNetNsIdByFd(fds[2+i]); return err }); err != nil {
			return err
		}
		if want < 0 || got != want {
			return fmt.Errorf("socket-netnsid is %d, to the device's namespace the socket's is %d", got, want)
		}
	}
	fmt.Println("ready")
	bufio.NewScanner(os.Stdin).Scan()
	return nil
}

// laterMark is the SO_MARK that the client gives its sockets after PEER_NEW.
const laterMark = 77

// starEnds are the transport addresses of the two ends.
var starEnds = [2]netip.AddrPort{netip.MustParseAddrPort("10.9.0.1:1194"), netip.MustParseAddrPort("10.9.0.2:1194")}

func inet4(a netip.AddrPort) *unix.SockaddrInet4 {
	return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
}

// transportSockets opens a socket in namespaces 2 and 3 each.
func transportSockets(transport string, in func(ns int, fn func() error) error) (fds [2]int, err error) {
	kind := unix.SOCK_DGRAM
	if transport == "tcp" {
		kind = unix.SOCK_STREAM
	}
	for i := range fds {
		err := in(2+i, func() error {
			if fds[i], err = unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0); err != nil {
				return err
			}
			if err := unix.Bind(fds[i], inet4(starEnds[i])); err != nil {
				return err
			}
			switch {
			case transport == "tcp" && i == 0:
				return unix.Listen(fds[i], 1)
			case transport != "udp":
				return unix.Connect(fds[i], inet4(starEnds[1-i]))
			}
			return nil
		})
		if err != nil {
			return fds, err
		}
	}
	if transport == "tcp" {
		listener := fds[0]
		defer unix.Close(listener)
		fds[0], _, err = unix.Accept4(listener, unix.SOCK_CLOEXEC)
	}
	return fds, err
}
