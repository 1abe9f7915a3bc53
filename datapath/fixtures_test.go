package datapath

import (
	"bytes"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/crypto"
	"ovpn-go/peers"
	"ovpn-go/tun"
	"ovpn-go/tun/netns"
	"ovpn-go/tun/tuntest"
)

// memoryLink is an interface whose other side is the test's.
type memoryLink struct {
	queues  []*tun.Queue
	stacks  []*os.File // one for each queue: what the stack writes is read by the device, and the other way round
	ns      *netns.NS
	carrier chan bool
}

func newMemoryLink(t *testing.T) *memoryLink {
	t.Helper()
	ns, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	l := &memoryLink{ns: ns, carrier: make(chan bool, 100)}
	for range WorkersUnderTest {
		queue, stack := tuntest.Pair(t)
		l.queues, l.stacks = append(l.queues, queue), append(l.stacks, stack)
	}
	return l
}

// stackOf returns the side of the queue by which the stack sends a packet: one for each flow.
func (l *memoryLink) stackOf(packet []byte) *os.File {
	flow := 0
	if len(packet) >= 28 {
		for _, b := range packet[12:24] {
			flow += int(b)
		}
	}
	return l.stacks[flow%len(l.stacks)]
}

func (l *memoryLink) Name() (string, error)    { return "test0", nil }
func (l *memoryLink) Ifindex() int             { return 7 }
func (l *memoryLink) NetNS() *netns.NS         { return l.ns }
func (l *memoryLink) Refresh() error           { return nil }
func (l *memoryLink) SetCarrier(on bool) error { l.carrier <- on; return nil }
func (l *memoryLink) Queues() []*tun.Queue     { return l.queues }

func (l *memoryLink) Close() (err error) {
	for _, q := range l.queues {
		err = errors.Join(err, q.Close())
	}
	return err
}

// end is one end of a tunnel under test: a device, the client's socket and what the device told its controller.
type end struct {
	*Device
	link   *memoryLink
	client *net.UDPConn
	events chan Event
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("OVPN_GO_REQUIRE") != "" {
		t.Fatal("needs root")
	}
	t.Skip("needs root: the namespace of a socket is told to CAP_NET_ADMIN only")
}

func newSockets(t *testing.T) *Sockets {
	t.Helper()
	sockets, err := NewSockets(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sockets.Close)
	return sockets
}

func newEnd(t *testing.T, mode peers.Mode, sockets *Sockets, addr string) *end {
	t.Helper()
	needRoot(t)
	client, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr)))
	if err != nil {
		t.Fatal(err)
	}
	return endOf(t, mode, sockets, client)
}

// endOf makes an end of a client's socket.
func endOf(t *testing.T, mode peers.Mode, sockets *Sockets, client *net.UDPConn) *end {
	t.Helper()
	t.Cleanup(func() { client.Close() })
	var err error
	e := &end{link: newMemoryLink(t), client: client, events: make(chan Event, 1000)}
	e.Device, err = newDevice(Config{
		Mode: mode, Sockets: sockets, Logger: slog.New(slog.DiscardHandler),
		Notify: func(ev Event) { e.events <- ev },
	}, e.link)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

func (e *end) addr() netip.AddrPort {
	a := e.client.LocalAddr().(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

func (e *end) socket(t *testing.T) *os.File {
	t.Helper()
	return fileOf(t, e.client)
}

// fileOf returns another descriptor of a connection's socket.
func fileOf(t *testing.T, conn interface{ File() (*os.File, error) }) *os.File {
	t.Helper()
	file, err := conn.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file
}

// addPeer adds a peer at remote and installs its primary key.
func (e *end) addPeer(t *testing.T, cfg PeerConfig, key crypto.KeyConfig) {
	t.Helper()
	file, err := e.client.File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cfg.Socket = file
	if err := e.NewPeer(cfg); err != nil {
		t.Fatal(err)
	}
	if err := e.InstallKey(cfg.ID, crypto.Primary, key); err != nil {
		t.Fatal(err)
	}
}

// keyPair returns the key of either end.
func keyPair(cipher crypto.Cipher, id uint8) (a, b crypto.KeyConfig) {
	k1, k2 := bytes.Repeat([]byte{0x11}, 32), bytes.Repeat([]byte{0x22}, 32)
	a = crypto.KeyConfig{ID: id, Cipher: cipher, Encrypt: crypto.Direction{Key: k1}, Decrypt: crypto.Direction{Key: k2}}
	b = crypto.KeyConfig{ID: id, Cipher: cipher, Encrypt: crypto.Direction{Key: k2}, Decrypt: crypto.Direction{Key: k1}}
	return a, b
}

// newTunnel joins two P2P ends over loopback.
func newTunnel(t *testing.T) (a, b *end) {
	t.Helper()
	sockets := newSockets(t)
	a = newEnd(t, peers.P2P, sockets, "127.0.0.1:0")
	b = newEnd(t, peers.P2P, sockets, "127.0.0.1:0")
	ka, kb := keyPair(crypto.AESGCM, 0)
	a.addPeer(t, PeerConfig{ID: 1, TxID: 2, Remote: b.addr()}, ka)
	b.addPeer(t, PeerConfig{ID: 2, TxID: 1, Remote: a.addr()}, kb)
	return a, b
}

// send hands the device packets as the stack does.
func (e *end) send(t *testing.T, packets ...[]byte) {
	t.Helper()
	for _, p := range packets {
		frame := append(make([]byte, tun.VnetHdrLen), p...)
		if _, err := e.link.stackOf(p).Write(frame); err != nil {
			t.Fatal(err)
		}
	}
}

// receive returns what the device delivers to the stack next.
func (e *end) receive(t *testing.T) []byte {
	t.Helper()
	var fds []unix.PollFd
	for _, stack := range e.link.stacks {
		fds = append(fds, unix.PollFd{Fd: int32(rawFD(t, stack)), Events: unix.POLLIN})
	}
	var ready int
	for {
		n, err := unix.Poll(fds, 5000)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			t.Fatalf("no packet was delivered: %v", err)
		}
		ready = slices.IndexFunc(fds, func(fd unix.PollFd) bool { return fd.Revents != 0 })
		break
	}
	frame := make([]byte, 70000)
	n, err := e.link.stacks[ready].Read(frame)
	if err != nil {
		t.Fatalf("no packet was delivered: %v", err)
	}
	return frame[tun.VnetHdrLen:n]
}

func (e *end) event(t *testing.T) Event {
	t.Helper()
	select {
	case ev := <-e.events:
		return ev
	case <-time.After(10 * time.Second):
		t.Fatal("no event")
		return Event{}
	}
}

// noEvent fails the test if the controller was told anything that event has not returned.
func (e *end) noEvent(t *testing.T) {
	t.Helper()
	if len(e.events) != 0 {
		t.Errorf("the controller was told %+v", <-e.events)
	}
}

// waitDrops waits until n packets were dropped for reason.
func (e *end) waitDrops(t *testing.T, reason DropReason, n uint64) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for e.Stats().Drops[reason.String()] < n {
		if time.Now().After(deadline) {
			t.Fatalf("drops = %v, want %d for %v", e.Stats().Drops, n, reason)
		}
		time.Sleep(time.Millisecond)
	}
}

func udp4(src, dst string, payload string) []byte {
	p := make([]byte, 28+len(payload))
	p[0] = 0x45
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	p[8], p[9] = 64, unix.IPPROTO_UDP
	s, d := netip.MustParseAddr(src).As4(), netip.MustParseAddr(dst).As4()
	copy(p[12:], s[:])
	copy(p[16:], d[:])
	binary.BigEndian.PutUint16(p[10:], ipChecksum(p[:20]))
	binary.BigEndian.PutUint16(p[20:], 1000)
	binary.BigEndian.PutUint16(p[22:], 2000)
	binary.BigEndian.PutUint16(p[24:], uint16(8+len(payload)))
	copy(p[28:], payload)
	return p
}

func ipChecksum(h []byte) uint16 {
	var sum uint32
	for i := 0; i < len(h); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(h[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
