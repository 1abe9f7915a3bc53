package test

import (
	"bufio"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/bench/benchtest"
	"ovpn-go/crypto"
	"ovpn-go/netlinksrv/client"
)

// loadVariable makes the test binary the client of TestTenThousandPeers.
const loadVariable = "OVPN_GO_TEST_LOAD"

func init() {
	if os.Getenv(loadVariable) == "" {
		return
	}
	if err := load(bufio.NewScanner(os.Stdin)); err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

const (
	loadPeers   = 10_000
	loadDeleted = 1000 // at once, in each of two ways
)

// TestTenThousandPeers has a client add 10,000 peers to one device, which float, are kept alive and get new keys, and lose
// a thousand at once: every announcement must reach a client that does not read for as long as that takes, and be what a
// dump says. On the way the program's memory is measured.
func TestTenThousandPeers(t *testing.T) {
	benchtest.Root(t)
	binary, err := plainBinary()
	if err != nil {
		t.Fatal(err)
	}
	c := startControllerOf(t, binary, benchtest.Star(t, 1).Server, loadVariable+"=1")
	before := 0
	for _, step := range []struct {
		says  string
		limit int // of memory in bytes for each peer, what the collector has not taken back yet included; 0: none
	}{
		{"no peers", 0}, {"with one key", 12 << 10}, {"floated", 0}, {"kept alive", 0}, {"with two keys", 20 << 10},
		{"keys renewed", 0}, {"expired", 0}, {"deleted", 0}, {"disconnected", 0},
	} {
		c.expect(t, step.says)
		resident := residentBytes(t, c.pid)
		if before == 0 {
			before = resident
		}
		perPeer := (resident - before) / loadPeers
		t.Logf("%s: %d bytes for each peer", step.says, perPeer)
		if step.limit > 0 && perPeer > step.limit {
			t.Errorf("%s: %d bytes for each peer, at most %d expected", step.says, perPeer, step.limit)
		}
		fmt.Fprintln(c.in, "go on")
	}
}

// residentBytes is the memory of a process that no other has.
func residentBytes(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kilobytes, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				t.Fatal(err)
			}
			return kilobytes << 10
		}
	}
	t.Fatal("no RssAnon")
	return 0
}

// crowd is the other side of all the peers: sockets, and the keys by key id.
type crowd struct {
	client  *ovpnClient
	monitor *client.Monitor
	server  netip.AddrPort
	old     *net.UDPConn // where the peers are at first
	now     *net.UDPConn // where they float to
	seal    *crypto.Key
	id      uint32 // of the last packet
}

func load(in *bufio.Scanner) error {
	say := func(what string) bool { fmt.Println(what); return in.Scan() }
	c, server, err := newCrowd()
	if err != nil {
		return err
	}
	if !say("no peers") {
		return nil
	}
	for _, step := range []struct {
		do   func() error
		says string
	}{
		{func() error { return c.join(server) }, "with one key"},
		{c.float, "floated"},
		{c.hearPings, "kept alive"},
		{c.secondKeys, "with two keys"},
		{c.swap, "keys renewed"},
		{c.expire, "expired"},
		{c.delete, "deleted"},
		{func() error { return c.disconnect(server) }, "disconnected"},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.says, err)
		}
		if !say(step.says) {
			return nil
		}
	}
	return nil
}

func newCrowd() (*crowd, *net.UDPConn, error) {
	var sockets []*net.UDPConn
	for range 3 {
		conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			return nil, nil, err
		}
		raw, err := conn.SyscallConn()
		if err != nil {
			return nil, nil, err
		}
		if err := raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
		}); err != nil {
			return nil, nil, err
		}
		sockets = append(sockets, conn)
	}
	conn, err := newOvpnClient("ovpn0")
	if err != nil {
		return nil, nil, err
	}
	monitor, err := client.OpenMonitor()
	if err != nil {
		return nil, nil, err
	}
	c := &crowd{client: conn, monitor: monitor, server: addrOf(sockets[0]), old: sockets[1], now: sockets[2]}
	return c, sockets[0], c.useKey(0)
}

func addrOf(conn *net.UDPConn) netip.AddrPort { return conn.LocalAddr().(*net.UDPAddr).AddrPort() }

// useKey has the peers' packets sealed by the key with this id, which is the same for all of them.
func (c *crowd) useKey(id uint8) (err error) {
	same := crypto.Direction{Key: make([]byte, 32)}
	same.Key[0] = id
	c.seal, err = crypto.NewKey(crypto.KeyConfig{ID: id, Cipher: crypto.AESGCM, Encrypt: same, Decrypt: same})
	return err
}

// send sends the server a keepalive in the name of a peer.
func (c *crowd) send(peer uint32) error {
	c.id++
	packet := make([]byte, crypto.Overhead+len(crypto.Keepalive), 64)
	c.seal.Seal(packet, crypto.Keepalive[:], crypto.Op(c.seal.ID(), peer), c.id)
	_, err := c.now.WriteToUDPAddrPort(packet, c.server)
	return err
}

func (c *crowd) join(server *net.UDPConn) error {
	file, err := server.File()
	if err != nil {
		return err
	}
	defer file.Close()
	for id := range uint32(loadPeers) {
		err := c.client.NewPeer(c.client.ifindex, client.PeerConfig{
			ID: id, Socket: int(file.Fd()), Remote: addrOf(c.old), VPN4: netip.AddrFrom4([4]byte{10, 64, byte(id >> 8), byte(id)}),
			Keepalive: client.Keepalive{Interval: 5 * time.Second, Timeout: time.Hour},
		})
		if err == nil {
			err = c.newKey(id, client.Primary, 0)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *crowd) newKey(peer uint32, slot client.Slot, id uint8) error {
	same := client.Direction{Key: make([]byte, 32)}
	same.Key[0] = id
	return c.client.NewKey(c.client.ifindex, peer, client.KeyConfig{Slot: slot, ID: id, Cipher: client.AESGCM, Encrypt: same, Decrypt: same})
}

// float has every peer send from another address, so many at a time that no socket's queue is too short.
func (c *crowd) float() error {
	const batch = 200
	for first := uint32(0); first < loadPeers; first += batch {
		for id := first; id < first+batch; id++ {
			if err := c.send(id); err != nil {
				return err
			}
		}
		for id := first; id < first+batch; id++ {
			ev, err := c.monitor.Next()
			if err != nil {
				return err
			}
			if ev.Kind != client.PeerFloated || ev.PeerID != id || ev.Remote != addrOf(c.now) {
				return fmt.Errorf("%+v, want peer %d to float", ev, id)
			}
		}
	}
	return nil
}

// hearPings waits until every peer has been sent a keepalive.
func (c *crowd) hearPings() error {
	heard := map[uint32]bool{}
	buf := make([]byte, 100)
	if err := c.now.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	for len(heard) < loadPeers {
		n, err := c.now.Read(buf)
		if err != nil {
			return fmt.Errorf("%d peers got a keepalive: %w", len(heard), err)
		}
		if n == crypto.Overhead+len(crypto.Keepalive) {
			heard[crypto.PeerID(buf)] = true
		}
	}
	return nil
}

func (c *crowd) secondKeys() error {
	for id := range uint32(loadPeers) {
		if err := c.newKey(id, client.Secondary, 1); err != nil {
			return err
		}
	}
	return nil
}

// swap makes the second keys the first, and has every peer use its own.
func (c *crowd) swap() error {
	for id := range uint32(loadPeers) {
		if err := c.client.SwapKeys(c.client.ifindex, id); err != nil {
			return err
		}
		if err := c.client.DeleteKey(c.client.ifindex, id, client.Secondary); err != nil {
			return err
		}
	}
	if err := c.useKey(1); err != nil {
		return err
	}
	// What the server's queue has no room for is sent again.
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		list, err := c.client.Peers(c.client.ifindex)
		if err != nil {
			return err
		}
		unheard := 0
		for _, p := range list {
			if p.Link.RxPackets > 1 { // the first was under the old key
				continue
			}
			unheard++
			if err := c.send(p.ID); err != nil {
				return err
			}
		}
		if unheard == 0 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%d peers were not heard under the new key", unheard)
		}
	}
}

// ids lists the peers as the device does.
func (c *crowd) ids() ([]uint32, error) {
	list, err := c.client.Peers(c.client.ifindex)
	var ids []uint32
	for _, p := range list {
		ids = append(ids, p.ID)
	}
	return ids, err
}

// some chooses peers of those that are left, in any order.
func (c *crowd) some() (chosen, rest []uint32, err error) {
	ids, err := c.ids()
	if err != nil {
		return nil, nil, err
	}
	rand.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	return ids[:loadDeleted], ids[loadDeleted:], nil
}

// announced reads the deletion of as many peers as are expected, and checks what is left.
func (c *crowd) announced(n int, reason client.DeleteReason, rest []uint32) (ids []uint32, err error) {
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		left, err := c.ids()
		if err != nil {
			return nil, err
		}
		if len(left) == len(rest) {
			slices.Sort(left)
			if rest = slices.Sorted(slices.Values(rest)); !slices.Equal(left, rest) {
				return nil, errors.New("other peers are left than were to be")
			}
			break
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("%d peers are left, want %d", len(left), len(rest))
		}
	}
	for range n {
		ev, err := c.monitor.Next()
		if err != nil {
			return nil, fmt.Errorf("after %d announcements: %w", len(ids), err)
		}
		if ev.Kind != client.PeerDeleted || ev.Reason != reason {
			return nil, fmt.Errorf("announced is %+v, want the deletion of a peer for reason %v", ev, reason)
		}
		ids = append(ids, ev.PeerID)
	}
	return ids, nil
}

// expire has peers fall silent all at once.
func (c *crowd) expire() error {
	chosen, rest, err := c.some()
	if err != nil {
		return err
	}
	for _, id := range chosen {
		soon := client.Keepalive{Interval: time.Second, Timeout: 2 * time.Second}
		if err := c.client.SetPeer(c.client.ifindex, id, client.PeerChange{Keepalive: &soon}); err != nil {
			return err
		}
	}
	got, err := c.announced(loadDeleted, client.Expired, rest)
	if err != nil {
		return err
	}
	if slices.Sort(got); !slices.Equal(got, slices.Sorted(slices.Values(chosen))) {
		return errors.New("others were announced than expired")
	}
	return nil
}

// delete asks for peers to be deleted, one after the other. They must be announced in that order.
func (c *crowd) delete() error {
	chosen, rest, err := c.some()
	if err != nil {
		return err
	}
	for _, id := range chosen {
		if err := c.client.deletePeer(int(id)); err != nil {
			return err
		}
	}
	got, err := c.announced(loadDeleted, client.Userspace, rest)
	if err == nil && !slices.Equal(got, chosen) {
		err = errors.New("announced in another order than asked for")
	}
	return err
}

// disconnect closes the socket of all that are left. They must be announced in the order of the list.
func (c *crowd) disconnect(server *net.UDPConn) error {
	want, err := c.ids()
	if err != nil {
		return err
	}
	server.Close()
	got, err := c.announced(len(want), client.TransportDisconnect, nil)
	if err == nil && !slices.Equal(got, want) {
		err = errors.New("announced in another order than listed")
	}
	return err
}
