package datapath

import (
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/crypto"
	"ovpn-go/peers"
	"ovpn-go/tun/netns"
)

// connected returns both ends of a TCP connection over loopback.
func connected(t *testing.T) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr)); err != nil {
		t.Fatal(err)
	}
	if b, err = l.AcceptTCP(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// addTCP gives e a peer on conn, which is closed as a descriptor that was replaced is, and returns what the client
// has instead.
func (e *end) addTCP(t *testing.T, cfg PeerConfig, key crypto.KeyConfig, conn *net.TCPConn) *os.File {
	t.Helper()
	file, err := conn.File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var client *os.File
	cfg.Socket = file
	cfg.Substitute = func(_ uint64, f *os.File) error {
		if client != nil {
			return unix.EPERM // it can't be given the connection back
		}
		client = duplicate(t, f)
		return nil
	}
	if err := e.NewPeer(cfg); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if err := e.InstallKey(cfg.ID, crypto.Primary, key); err != nil {
		t.Fatal(err)
	}
	return client
}

func duplicate(t *testing.T, f *os.File) *os.File {
	t.Helper()
	var fd int
	if err := netns.Control(f, func(n int) (err error) {
		fd, err = unix.FcntlInt(uintptr(n), unix.F_DUPFD_CLOEXEC, 0)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	dup := os.NewFile(uintptr(fd), "client")
	t.Cleanup(func() { dup.Close() })
	return dup
}

// tcpPeer is a device with one peer, and the raw connection of the other side.
func tcpPeer(t *testing.T) (e *end, client *os.File, raw *net.TCPConn, key crypto.KeyConfig) {
	t.Helper()
	e = newEnd(t, peers.P2P, newSockets(t), "127.0.0.1:0")
	ours, raw := connected(t)
	own, other := keyPair(crypto.AESGCM, 0)
	client = e.addTCP(t, PeerConfig{ID: 1, TxID: 2}, own, ours)
	return e, client, raw, other
}

func readFrame(t *testing.T, raw *net.TCPConn) []byte {
	t.Helper()
	raw.SetReadDeadline(time.Now().Add(5 * time.Second))
	head := make([]byte, framePrefix)
	if _, err := io.ReadFull(raw, head); err != nil {
		t.Fatalf("no frame: %v", err)
	}
	f := append(head, make([]byte, int(head[0])<<8|int(head[1]))...)
	if _, err := io.ReadFull(raw, f[framePrefix:]); err != nil {
		t.Fatalf("frame cut short: %v", err)
	}
	return f
}

func readRecord(t *testing.T, client *os.File) []byte {
	t.Helper()
	client.SetReadDeadline(time.Now().Add(5 * time.Second))
	buf := make([]byte, maxFrame)
	n, err := client.Read(buf)
	if err != nil {
		t.Fatalf("no record for the client: %v", err)
	}
	return buf[:n]
}

func write(t *testing.T, w io.Writer, data []byte) {
	t.Helper()
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
}

var controlFrame = frame([]byte{4 << 3, 1, 2, 3, 4, 5})

// fillUp has e send until its only peer's connection takes no more: packets are dropped, and what the connection holds
// stays the same for a while, which it does not as long as buffers grow or the other side's kernel is late.
func fillUp(t *testing.T, e *end) {
	t.Helper()
	packet := udp4("10.8.0.1", "10.8.0.2", string(make([]byte, 1400)))
	var stream int
	if err := e.do(func() { stream = transportOf(e.table.All()[0]).tcp.stream.fd }); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(30 * time.Second)
	for queued, since := -1, time.Now(); time.Since(since) < 100*time.Millisecond; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the connection never filled up")
		}
		for range 100 {
			e.send(t, packet)
		}
		now, err := unix.IoctlGetInt(stream, unix.SIOCOUTQ)
		if err != nil {
			t.Fatal(err)
		}
		if now != queued || e.Stats().Drops[DropSend.String()] == 0 {
			queued, since = now, time.Now()
		}
	}
}

// noConnections waits until nothing is left of a client's connection.
func noConnections(t *testing.T, sockets *Sockets) {
	t.Helper()
	deadline := time.Now().Add(2 * orphanTimeout)
	for sockets.HasConnections() {
		if time.Now().After(deadline) {
			t.Fatal("the connection is still held")
		}
		time.Sleep(time.Millisecond)
	}
}
