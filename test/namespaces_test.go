package test

import (
	"bufio"
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	vnl "github.com/vishvananda/netlink"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
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

var tunnelEnds = [2]netip.Addr{netip.MustParseAddr("10.8.0.1"), netip.MustParseAddr("10.8.0.2")}

// TestEverythingInItsOwnNamespace has a client in one namespace, its device in a second and the device's transport socket in
// a third, twice, as both ends of a tunnel, and sends through it. Packets leave only with the mark that the socket got after
// it was attached.
func TestEverythingInItsOwnNamespace(t *testing.T) {
	benchtest.Root(t)
	binary, err := raceBinary()
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
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
			cmd := exec.Command(binary, "exec", "--datapath", "userspace", "--log-level", "warn", "--", self)
			cmd.Env = append(os.Environ(), namespacesVariable+"="+strings.Join(args, " "))
			stderr := new(bytes.Buffer)
			cmd.Stderr = stderr
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := control.Do(cmd.Start); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewScanner(out)
			defer func() {
				in.Close()
				for lines.Scan() {
					t.Error(lines.Text())
				}
				if err := cmd.Wait(); err != nil || stderr.Len() > 0 {
					t.Errorf("the client's program: %v\n%s", err, stderr)
				}
			}()
			if !lines.Scan() || lines.Text() != "ready" {
				t.Fatalf("the client says %q", lines.Text())
			}
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
			for i, d := range devices {
				for _, err := range []error{
					d.DisableIPv6(), d.AddAddr("ovpn0", netip.PrefixFrom(tunnelEnds[i], 24)), d.SetUp("ovpn0"),
					d.WaitRunning(t.Context(), "ovpn0"),
				} {
					if err != nil {
						t.Fatal(err)
					}
				}
			}
			for i, d := range devices {
				eventually(t, 10*time.Second, "a ping through the tunnel", func() bool {
					r, err := (bench.Ping{Node: d, To: tunnelEnds[1-i], Count: 1, Wait: time.Second}).Run(t.Context())
					return err == nil && r.Lost() == 0
				})
				r, err := (bench.Ping{Node: d, To: tunnelEnds[1-i], Count: 20, Interval: time.Millisecond, Payload: 1000, Wait: 5 * time.Second}).Run(t.Context())
				if err != nil || r.Lost() != 0 {
					t.Errorf("device %d: %d of %d pings lost, %v", i, r.Lost(), r.Sent, err)
				}
			}
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
		if err := c.newPeerAt(1, sockets[i], remote, tunnelEnds[1-i]); err != nil {
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

// newPeerAt is newPeer at a remote address, unless that is invalid, and with a VPN address.
func (c *ovpnClient) newPeerAt(id, fd int, remote netip.AddrPort, vpn netip.Addr) error {
	const peerRemote4, peerRemotePort = 2, 5
	_, err := c.execute(cmdPeerNew, netlink.Acknowledge, func(a *netlink.AttributeEncoder) {
		a.Nested(attrPeer, func(a *netlink.AttributeEncoder) error {
			a.Uint32(peerID, uint32(id))
			a.Uint32(peerSocket, uint32(fd))
			a.Bytes(peerVPN4, vpn.AsSlice())
			if remote.IsValid() {
				a.Bytes(peerRemote4, remote.Addr().AsSlice())
				a.Bytes(peerRemotePort, []byte{byte(remote.Port() >> 8), byte(remote.Port())})
			}
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("new peer %d: %w", id, err)
	}
	return c.newKey(id)
}

// socketNamespace returns a peer's socket-netnsid, -2 if there is none.
func (c *ovpnClient) socketNamespace(id int) (nsid int, err error) {
	const peerSocketNetNSID, none = 7, -2
	var replies []genetlink.Message
	replies, err = c.execute(cmdPeerGet, 0, func(a *netlink.AttributeEncoder) {
		a.Nested(attrPeer, func(a *netlink.AttributeEncoder) error {
			a.Uint32(peerID, uint32(id))
			return nil
		})
	})
	if err != nil || len(replies) != 1 {
		return none, fmt.Errorf("get peer %d: %d replies, %w", id, len(replies), err)
	}
	nsid = none
	d, err := netlink.NewAttributeDecoder(replies[0].Data)
	if err != nil {
		return none, err
	}
	for d.Next() {
		if d.Type() == attrPeer {
			d.Nested(func(d *netlink.AttributeDecoder) error {
				for d.Next() {
					if d.Type() == peerSocketNetNSID {
						nsid = int(d.Int32())
					}
				}
				return d.Err()
			})
		}
	}
	return nsid, d.Err()
}
