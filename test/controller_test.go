package test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"testing"
	"time"

	"ovpn-go/bench"
	"ovpn-go/netlinksrv/client"
)

// A controller is this test binary as a client of the program: a process under `ovpn-go exec` that does what an environment
// variable says, reads lines and prints lines.
type controller struct {
	in    io.WriteCloser
	lines *bufio.Scanner
	pid   int // of the program
}

// startController starts the controller that the environment variable makes of this binary, in a namespace. When the test
// ends its input does, and it must end well and say no more.
func startController(t *testing.T, node *bench.Node, environment string) *controller {
	t.Helper()
	binary, err := raceBinary()
	if err != nil {
		t.Fatal(err)
	}
	return startControllerOf(t, binary, node, environment)
}

// startControllerOf is startController with a binary of the program.
func startControllerOf(t *testing.T, binary string, node *bench.Node, environment string) *controller {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "exec", "--datapath", "userspace", "--log-level", "warn", "--", self)
	cmd.Env = append(os.Environ(), environment)
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
	if err := node.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	c := &controller{in: in, lines: bufio.NewScanner(out), pid: cmd.Process.Pid}
	t.Cleanup(func() {
		in.Close()
		for c.lines.Scan() {
			t.Error(c.lines.Text())
		}
		if err := cmd.Wait(); err != nil || stderr.Len() > 0 {
			t.Errorf("the client's program: %v\n%s", err, stderr)
		}
	})
	return c
}

// expect reads a line.
func (c *controller) expect(t *testing.T, want string) {
	t.Helper()
	if !c.lines.Scan() || c.lines.Text() != want {
		t.Fatalf("the client says %q, want %q", c.lines.Text(), want)
	}
}

// tunnelEnds are the addresses of the devices at the ends of a tunnel.
var tunnelEnds = [2]netip.Addr{netip.MustParseAddr("10.8.0.1"), netip.MustParseAddr("10.8.0.2")}

// setUpEnds gives the interfaces ovpn0 at the ends of a tunnel their addresses and waits until they run.
func setUpEnds(t *testing.T, devices []*bench.Node) {
	t.Helper()
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
}

// requirePings sends so many pings through a tunnel from either end, of which none may get lost once it works.
func requirePings(t *testing.T, devices []*bench.Node, count int) {
	t.Helper()
	for i, d := range devices {
		eventually(t, 10*time.Second, "a ping through the tunnel", func() bool {
			r, err := (bench.Ping{Node: d, To: tunnelEnds[1-i], Count: 1, Wait: time.Second}).Run(t.Context())
			return err == nil && r.Lost() == 0
		})
		r, err := (bench.Ping{Node: d, To: tunnelEnds[1-i], Count: count, Interval: time.Millisecond, Payload: 1000, Wait: 5 * time.Second}).Run(t.Context())
		if err != nil || r.Lost() != 0 {
			t.Errorf("device %d: %d of %d pings lost, %v", i, r.Lost(), r.Sent, err)
		}
	}
}

// ovpnClient is what a controller has: a link with many peers.
type ovpnClient struct {
	*client.Conn
	ifindex int
}

// newOvpnClient makes the link, in the namespace of the calling thread.
func newOvpnClient(name string) (*ovpnClient, error) {
	conn, err := client.Dial()
	if err != nil {
		return nil, err
	}
	if err := conn.NewLink(client.LinkConfig{Name: name, Mode: client.MP}); err != nil {
		return nil, err
	}
	link, err := conn.Link(name)
	if err != nil {
		return nil, err
	}
	return &ovpnClient{conn, link.Index}, nil
}

// newPeer adds a peer at a remote address, which is invalid over TCP, with a key that is the same for all and in both
// directions.
func (c *ovpnClient) newPeer(id, fd int, remote netip.AddrPort, vpn netip.Addr) error {
	if err := c.NewPeer(c.ifindex, client.PeerConfig{ID: uint32(id), Socket: fd, Remote: remote, VPN4: vpn}); err != nil {
		return err
	}
	same := client.Direction{Key: make([]byte, 32)}
	return c.NewKey(c.ifindex, uint32(id), client.KeyConfig{Cipher: client.AESGCM, Encrypt: same, Decrypt: same})
}

func (c *ovpnClient) deletePeer(id int) error { return c.DeletePeer(c.ifindex, uint32(id)) }

// socketNamespace returns a peer's socket-netnsid.
func (c *ovpnClient) socketNamespace(id int) (int, error) {
	p, err := c.Peer(c.ifindex, uint32(id))
	if err != nil {
		return 0, err
	}
	if p.SocketNetNSID == nil {
		return 0, fmt.Errorf("peer %d has no socket-netnsid", id)
	}
	return int(*p.SocketNetNSID), nil
}
