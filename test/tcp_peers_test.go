package test

import (
	"bufio"
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

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
	c := startController(t, benchtest.Star(t, 1).Server, peersVariable+"=1")
	before := 0
	start := time.Now()
	for round := 0; ; round++ {
		c.expect(t, "idle")
		if round == 0 {
			before = descriptors(t, c.pid)
		}
		// What was sent to a connection may outlast the client's descriptor for a moment.
		eventually(t, 15*time.Second, "the connections to be let go of", func() bool {
			return descriptors(t, c.pid) <= before
		})
		if round >= least && time.Since(start) > duration {
			t.Logf("%d rounds", round)
			return
		}
		fmt.Fprintln(c.in, "go on")
	}
}

// comeAndGo says "idle" before every round and begins it when it reads a line.
func comeAndGo(peers int, in *bufio.Scanner) error {
	c, err := newOvpnClient("ovpn0")
	if err != nil {
		return err
	}
	defer c.Close()
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

// round adds the peers and lets go of them.
func (c *ovpnClient) round(peers int) error {
	var near, far []int
	for id := range peers {
		a, b, err := tcpPair()
		if err != nil {
			return err
		}
		near, far = append(near, a), append(far, b)
		if err := c.newPeer(id, a, netip.AddrPort{}, netip.AddrFrom4([4]byte{10, 8, byte(id >> 8), byte(id)})); err != nil {
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
		left, err := c.Peers(c.ifindex)
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
