package test

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"ovpn-go/bench/benchtest"
)

// peersVariable makes the test binary the client of TestTCPPeersComeAndGo.
const peersVariable = "OVPN_GO_TEST_TCP_PEERS"

func init() {
	if os.Getenv(peersVariable) == "" {
		return
	}
	if err := comeAndGo(tcpPeers, bufio.NewScanner(os.Stdin)); err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// tcpPeers is how many peers there are at once.
const tcpPeers = 200

// TestTCPPeersComeAndGo has a client add 200 peers on TCP connections, exchange control records on each, and let go
// of them in every way there is, over and over for a minute. In between, our program must hold what it held before.
// It does without OpenVPN, of which two hundred are too many for a small machine.
func TestTCPPeersComeAndGo(t *testing.T) {
	const (
		duration = time.Minute
		least    = 4 // rounds
	)
	benchtest.Root(t)
	binary, err := raceBinary()
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "exec", "--datapath", "userspace", "--log-level", "warn", "--", self)
	cmd.Env = append(os.Environ(), peersVariable+"=1")
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
	star := benchtest.Star(t, 1)
	if err := star.Server.Do(cmd.Start); err != nil {
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
	before := 0
	start := time.Now()
	for round := 0; ; round++ {
		if !lines.Scan() || lines.Text() != "idle" {
			t.Fatalf("the client says %q", lines.Text())
		}
		if round == 0 {
			before = descriptors(t, cmd.Process.Pid)
		}
		// What was sent to a connection may outlast the client's descriptor for a moment.
		eventually(t, 15*time.Second, "the connections to be let go of", func() bool {
			return descriptors(t, cmd.Process.Pid) <= before
		})
		if round >= least && time.Since(start) > duration {
			t.Logf("%d rounds", round)
			return
		}
		fmt.Fprintln(in, "go on")
	}
}

// The ovpn family's numbers, include/uapi/linux/ovpn.h.
const (
	cmdPeerNew, cmdPeerGet, cmdPeerDel, cmdKeyNew = 1, 3, 4, 6

	attrIfindex, attrPeer, attrKeyconf = 1, 2, 3
	peerID, peerSocket, peerVPN4       = 1, 6, 8
	keyPeer, keySlot, keyID            = 1, 2, 3
	keyCipher, keyEncrypt, keyDecrypt  = 4, 5, 6
)

// ovpnClient talks to one interface.
type ovpnClient struct {
	conn    *genetlink.Conn
	family  uint16
	ifindex uint32
}

// comeAndGo says "idle" before every round and begins it when it reads a line.
func comeAndGo(peers int, in *bufio.Scanner) error {
	c, err := newOvpnClient("ovpn0")
	if err != nil {
		return err
	}
	defer c.conn.Close()
	for {
		fmt.Println("idle")
		if !in.Scan() {
			return nil
		}
		if err := c.round(peers); err != nil {
			return err
		}
	}
}

func newOvpnClient(name string) (*ovpnClient, error) {
	conn, err := genetlink.Dial(&netlink.Config{Strict: true})
	if err != nil {
		return nil, err
	}
	family, err := conn.GetFamily("ovpn")
	if err != nil {
		return nil, err
	}
	route, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, err
	}
	defer route.Close()
	a := netlink.NewAttributeEncoder()
	a.String(unix.IFLA_IFNAME, name)
	a.Nested(unix.IFLA_LINKINFO, func(a *netlink.AttributeEncoder) error {
		a.String(unix.IFLA_INFO_KIND, "ovpn")
		a.Nested(unix.IFLA_INFO_DATA, func(a *netlink.AttributeEncoder) error {
			const mode, multipoint = 1, 1
			a.Uint8(mode, multipoint)
			return nil
		})
		return nil
	})
	b, err := a.Encode()
	if err != nil {
		return nil, err
	}
	_, err = route.Execute(netlink.Message{
		Header: netlink.Header{
			Type:  unix.RTM_NEWLINK,
			Flags: netlink.Request | netlink.Acknowledge | netlink.Create | netlink.Excl,
		},
		Data: append(make([]byte, unix.SizeofIfInfomsg), b...),
	})
	if err != nil {
		return nil, fmt.Errorf("create link: %w", err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq(name)
	if err != nil {
		return nil, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, request); err != nil {
		return nil, err
	}
	return &ovpnClient{conn: conn, family: family.ID, ifindex: request.Uint32()}, nil
}

func (c *ovpnClient) execute(command uint8, flags netlink.HeaderFlags, add func(*netlink.AttributeEncoder)) ([]genetlink.Message, error) {
	a := netlink.NewAttributeEncoder()
	a.Uint32(attrIfindex, c.ifindex)
	add(a)
	b, err := a.Encode()
	if err != nil {
		return nil, err
	}
	return c.conn.Execute(genetlink.Message{Header: genetlink.Header{Command: command, Version: 1}, Data: b},
		c.family, netlink.Request|flags)
}

func (c *ovpnClient) newPeer(id, fd int) error {
	_, err := c.execute(cmdPeerNew, netlink.Acknowledge, func(a *netlink.AttributeEncoder) {
		a.Nested(attrPeer, func(a *netlink.AttributeEncoder) error {
			a.Uint32(peerID, uint32(id))
			a.Uint32(peerSocket, uint32(fd))
			a.Bytes(peerVPN4, []byte{10, 8, byte(id >> 8), byte(id)})
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("new peer %d: %w", id, err)
	}
	return c.newKey(id)
}

// newKey gives a peer a primary key, which is the same for all and in both directions.
func (c *ovpnClient) newKey(id int) error {
	direction := func(a *netlink.AttributeEncoder) error {
		a.Bytes(1, make([]byte, 32))
		a.Bytes(2, make([]byte, 8))
		return nil
	}
	_, err := c.execute(cmdKeyNew, netlink.Acknowledge, func(a *netlink.AttributeEncoder) {
		a.Nested(attrKeyconf, func(a *netlink.AttributeEncoder) error {
			a.Uint32(keyPeer, uint32(id))
			a.Uint32(keySlot, 0)
			a.Uint32(keyID, 0)
			a.Uint32(keyCipher, 1) // AES-GCM
			a.Nested(keyEncrypt, direction)
			a.Nested(keyDecrypt, direction)
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("new key of peer %d: %w", id, err)
	}
	return nil
}

func (c *ovpnClient) deletePeer(id int) error {
	_, err := c.execute(cmdPeerDel, netlink.Acknowledge, func(a *netlink.AttributeEncoder) {
		a.Nested(attrPeer, func(a *netlink.AttributeEncoder) error {
			a.Uint32(peerID, uint32(id))
			return nil
		})
	})
	return err
}

// round adds the peers and lets go of them.
func (c *ovpnClient) round(peers int) error {
	var near, far []int
	for id := range peers {
		a, b, err := tcpPair()
		if err != nil {
			return err
		}
		near, far = append(near, a), append(far, b)
		if err := c.newPeer(id, a); err != nil {
			return err
		}
	}
	for id := range peers {
		if err := exchange(near[id], far[id]); err != nil {
			return fmt.Errorf("peer %d: %w", id, err)
		}
	}
	for id := range peers {
		if err := c.letGo(id, near[id], far[id]); err != nil {
			return fmt.Errorf("peer %d: %w", id, err)
		}
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		left, err := c.execute(cmdPeerGet, netlink.Dump, func(*netlink.AttributeEncoder) {})
		if err != nil {
			return fmt.Errorf("list peers: %w", err)
		}
		if len(left) == 0 {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d peers are left", len(left))
		}
	}
	for _, fd := range far {
		unix.Close(fd)
	}
	return nil
}

// letGo ends one peer, in a way that depends on its id.
func (c *ovpnClient) letGo(id, near, far int) error {
	switch id % 4 {
	case 0: // as OpenVPN does
		if err := c.deletePeer(id); err != nil {
			return err
		}
	case 1: // as a client does that is killed
	case 2: // the other side resets the connection first
		linger := unix.Linger{Onoff: 1}
		if err := unix.SetsockoptLinger(far, unix.SOL_SOCKET, unix.SO_LINGER, &linger); err != nil {
			return err
		}
		if err := unix.Shutdown(far, unix.SHUT_WR); err != nil {
			return err
		}
		if n, err := unix.Read(near, make([]byte, 100)); n != 0 || err != nil {
			return fmt.Errorf("read %d bytes after the end, %w", n, err)
		}
	case 3:
		if err := unix.Shutdown(near, unix.SHUT_RDWR); err != nil {
			return err
		}
		if n, err := unix.Read(far, make([]byte, 100)); n != 0 || err != nil {
			return fmt.Errorf("other side: read %d bytes after the end, %w", n, err)
		}
	}
	return unix.Close(near)
}

// exchange passes a control record each way, and asks whom near is connected to.
func exchange(near, far int) error {
	record := []byte{0, 6, 4 << 3, 1, 2, 3, 4, 5}
	for _, fds := range [][2]int{{near, far}, {far, near}} {
		if _, err := unix.Write(fds[0], record); err != nil {
			return err
		}
		got := make([]byte, 100)
		n, err := unix.Read(fds[1], got)
		if err != nil || !bytes.Equal(got[:n], record) {
			return fmt.Errorf("record %x arrived as %x: %w", record, got[:max(n, 0)], err)
		}
	}
	peer, err := unix.Getpeername(near)
	if err != nil {
		return err
	}
	own, err := unix.Getsockname(far)
	if err != nil {
		return err
	}
	if p, ok := peer.(*unix.SockaddrInet4); !ok || p.Port != own.(*unix.SockaddrInet4).Port {
		return fmt.Errorf("connected to %+v, want %+v", peer, own)
	}
	return nil
}

// tcpPair returns both ends of a TCP connection over the loopback interface.
func tcpPair() (near, far int, err error) {
	listener, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, 0, err
	}
	defer unix.Close(listener)
	if err := unix.Bind(listener, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return 0, 0, err
	}
	if err := unix.Listen(listener, 1); err != nil {
		return 0, 0, err
	}
	address, err := unix.Getsockname(listener)
	if err != nil {
		return 0, 0, err
	}
	if near, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return 0, 0, err
	}
	if err := unix.Connect(near, address); err != nil {
		return 0, 0, err
	}
	far, _, err = unix.Accept4(listener, unix.SOCK_CLOEXEC)
	return near, far, err
}
