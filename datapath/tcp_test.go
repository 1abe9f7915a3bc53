package datapath

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/crypto"
	"ovpn-go/peers"
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
	if err := withFD(f, func(n int) (err error) {
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

func TestTCPTunnelCarriesPacketsBothWays(t *testing.T) {
	sockets := newSockets(t)
	a, b := newEnd(t, peers.P2P, sockets, "127.0.0.1:0"), newEnd(t, peers.P2P, sockets, "127.0.0.1:0")
	left, right := connected(t)
	ka, kb := keyPair(crypto.AESGCM, 0)
	clientA := a.addTCP(t, PeerConfig{ID: 1, TxID: 2}, ka, left)
	clientB := b.addTCP(t, PeerConfig{ID: 2, TxID: 1}, kb, right)
	for i := range 50 {
		there := udp4("10.8.0.1", "10.8.0.2", string(make([]byte, i*20)))
		a.send(t, there)
		if got := b.receive(t); !bytes.Equal(got, there) {
			t.Fatalf("a to b: %x, want %x", got, there)
		}
		write(t, clientA, controlFrame)
		if got := readRecord(t, clientB); !bytes.Equal(got, controlFrame) {
			t.Fatalf("control record = %x, want %x", got, controlFrame)
		}
		back := udp4("10.8.0.2", "10.8.0.1", "back")
		b.send(t, back)
		if got := a.receive(t); !bytes.Equal(got, back) {
			t.Fatalf("b to a: %x, want %x", got, back)
		}
	}
	info, err := a.Peer(1)
	if err != nil {
		t.Fatal(err)
	}
	if !info.TCP || info.Remote.IsValid() || info.LocalPort == 0 || info.Stats.LinkRxBytes != 50*(28+4+24) {
		t.Errorf("peer = %+v, want TCP, no remote, a port, link-rx without prefixes and control packets", info)
	}
	if err := a.SetPeer(1, PeerUpdate{Remote: netip.MustParseAddrPort("127.0.0.1:1")}); !errors.Is(err, ErrTCPRemote) {
		t.Errorf("SetPeer with a remote: %v, want ErrTCPRemote", err)
	}
}

func TestTCPFramesByteByByte(t *testing.T) {
	e, client, raw, key := tcpPeer(t)
	inner := udp4("10.8.0.2", "10.8.0.1", "slowly")
	stream := bytes.Join([][]byte{controlFrame, frame(sealed(t, key, 1, 1, inner)), controlFrame}, nil)
	for i := range stream {
		write(t, raw, stream[i:i+1])
	}
	for range 2 {
		if got := readRecord(t, client); !bytes.Equal(got, controlFrame) {
			t.Errorf("record = %x, want %x", got, controlFrame)
		}
	}
	if got := e.receive(t); !bytes.Equal(got, inner) {
		t.Errorf("packet = %x, want %x", got, inner)
	}
}

func TestTCPWhatCameBeforeThePeerIsNotLost(t *testing.T) {
	e := newEnd(t, peers.P2P, newSockets(t), "127.0.0.1:0")
	ours, raw := connected(t)
	write(t, raw, controlFrame)
	own, _ := keyPair(crypto.AESGCM, 0)
	client := e.addTCP(t, PeerConfig{ID: 1, TxID: 2}, own, ours)
	if got := readRecord(t, client); !bytes.Equal(got, controlFrame) {
		t.Errorf("record = %x, want %x", got, controlFrame)
	}
}

// It does not matter which side has opened a connection, nor its family.
func TestTCPConnectedAndAccepted(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		for _, side := range []string{"connected", "accepted"} {
			t.Run(side+" "+addr, func(t *testing.T) {
				l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr)))
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				ours, err := net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr))
				if err != nil {
					t.Fatal(err)
				}
				raw, err := l.AcceptTCP()
				if err != nil {
					t.Fatal(err)
				}
				if side == "accepted" {
					ours, raw = raw, ours
				}
				defer raw.Close()
				e := newEnd(t, peers.P2P, newSockets(t), "127.0.0.1:0")
				own, key := keyPair(crypto.AESGCM, 0)
				client := e.addTCP(t, PeerConfig{ID: 1, TxID: 2}, own, ours)
				write(t, client, controlFrame)
				if got := readFrame(t, raw); !bytes.Equal(got, controlFrame) {
					t.Errorf("frame = %x, want %x", got, controlFrame)
				}
				inner := udp4("10.8.0.2", "10.8.0.1", "in")
				write(t, raw, slices.Concat(controlFrame, frame(sealed(t, key, 1, 1, inner))))
				if got := readRecord(t, client); !bytes.Equal(got, controlFrame) {
					t.Errorf("record = %x, want %x", got, controlFrame)
				}
				if got := e.receive(t); !bytes.Equal(got, inner) {
					t.Errorf("packet = %x, want %x", got, inner)
				}
			})
		}
	}
}

func TestTCPBadFramesRemoveThePeer(t *testing.T) {
	for rule, stream := range map[string][]byte{
		"length 2": frame([]byte{0x48, 0}),
		"length 3": frame([]byte{0x48, 0, 0}),
		"data v1":  frame([]byte{crypto.OpcodeDataV1 << 3, 0, 0, 0, 0}),
	} {
		t.Run(rule, func(t *testing.T) {
			e, client, raw, _ := tcpPeer(t)
			write(t, raw, append(bytes.Clone(controlFrame), stream...))
			if ev := e.event(t); ev.Kind != PeerDeleted || ev.Reason != peers.TransportError {
				t.Errorf("event = %+v, want transport-error", ev)
			}
			if got := readRecord(t, client); !bytes.Equal(got, controlFrame) {
				t.Errorf("record = %x, want the frame before the bad one", got)
			}
			// The connection is a plain one now.
			write(t, raw, []byte("plain"))
			if got := readRecord(t, client); string(got) != "plain" {
				t.Errorf("then: %q", got)
			}
		})
	}
}

func TestTCPImpossibleLengthsEndReceiving(t *testing.T) {
	for rule, stream := range map[string][]byte{"length 0": {0, 0}, "length 1": {0, 1, 0x48}} {
		t.Run(rule, func(t *testing.T) {
			e, client, raw, _ := tcpPeer(t)
			write(t, raw, append(bytes.Clone(controlFrame), stream...))
			if got := readRecord(t, client); !bytes.Equal(got, controlFrame) {
				t.Errorf("record = %x, want the frame before the bad one", got)
			}
			if _, err := client.Read(make([]byte, 100)); err != io.EOF {
				t.Errorf("then: %v, want the end", err)
			}
			// The peer is still there.
			e.send(t, udp4("10.0.0.1", "10.0.0.2", "still"))
			readFrame(t, raw)
			if _, err := e.Peer(1); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestTCPLongestFrames(t *testing.T) {
	e, client, raw, key := tcpPeer(t)
	long := frame(append([]byte{4 << 3}, make([]byte, 65534)...))
	write(t, raw, long)
	if got := readRecord(t, client); !bytes.Equal(got, long) {
		t.Errorf("record of %d bytes, want %d", len(got), len(long))
	}
	inner := udp4("10.8.0.2", "10.8.0.1", string(make([]byte, 65535-crypto.Overhead-28)))
	write(t, raw, frame(sealed(t, key, 1, 1, inner)))
	if got := e.receive(t); !bytes.Equal(got, inner) {
		t.Errorf("packet of %d bytes, want %d", len(got), len(inner))
	}
	write(t, client, long)
	if got := readFrame(t, raw); !bytes.Equal(got, long) {
		t.Errorf("the client's record arrived as %d bytes, want %d", len(got), len(long))
	}
}

// A long frame that comes in small pieces is whole in the end, wherever the next one begins, and the memory that it took is
// given back.
func TestTCPLongFramesInPieces(t *testing.T) {
	e, client, raw, key := tcpPeer(t)
	long := frame(append([]byte{4 << 3}, make([]byte, 65534)...))
	inner := udp4("10.8.0.2", "10.8.0.1", string(make([]byte, 65535-crypto.Overhead-28)))
	for i, piece := range []int{1, 7, 100, copyLimit - 1, copyLimit, copyLimit + 1, 30000} {
		stream := slices.Concat(controlFrame, long, frame(sealed(t, key, 1, uint32(i+1), inner)), controlFrame)
		go func() {
			for len(stream) > 0 {
				n := min(piece, len(stream))
				raw.Write(stream[:n])
				stream = stream[n:]
			}
		}()
		for _, want := range [][]byte{controlFrame, long, controlFrame} {
			if got := readRecord(t, client); !bytes.Equal(got, want) {
				t.Fatalf("pieces of %d: record of %d bytes, want %d", piece, len(got), len(want))
			}
		}
		if got := e.receive(t); !bytes.Equal(got, inner) {
			t.Fatalf("pieces of %d: packet of %d bytes, want %d", piece, len(got), len(inner))
		}
	}
	write(t, raw, controlFrame[:3])
	write(t, raw, controlFrame[3:])
	readRecord(t, client)
	if err := e.do(func() {
		if c := transportOf(e.table.All()[0]).tcp; cap(c.partial) > 2*copyLimit {
			t.Errorf("an idle connection keeps %d bytes", cap(c.partial))
		}
	}); err != nil {
		t.Fatal(err)
	}
}

func TestTCPClientRecordsAreBounded(t *testing.T) {
	e, client, raw, _ := tcpPeer(t)
	if n, err := client.Write(make([]byte, maxClientRecord+1)); !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("a record that is too long: %d, %v; want EMSGSIZE", n, err)
	}
	longest := bytes.Repeat([]byte{7}, maxClientRecord)
	write(t, client, longest)
	got := make([]byte, maxClientRecord)
	raw.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.ReadFull(raw, got); err != nil || !bytes.Equal(got, longest) {
		t.Errorf("the longest record did not arrive: %v", err)
	}
	if _, err := e.Peer(1); err != nil {
		t.Errorf("peer: %v", err)
	}
}

func TestTCPEndOfStreamReachesTheClientAndThePeerStays(t *testing.T) {
	e, client, raw, _ := tcpPeer(t)
	write(t, raw, controlFrame)
	raw.CloseWrite()
	if got := readRecord(t, client); !bytes.Equal(got, controlFrame) {
		t.Errorf("record = %x, want what was sent before the end", got)
	}
	if _, err := client.Read(make([]byte, 100)); err != io.EOF {
		t.Errorf("client read: %v, want the end", err)
	}
	e.send(t, udp4("10.8.0.1", "10.8.0.2", "still there"))
	readFrame(t, raw)
	if _, err := e.Peer(1); err != nil {
		t.Errorf("peer after the other side's FIN: %v, want it to stay", err)
	}
}

func TestTCPResetInMidFrame(t *testing.T) {
	e, client, raw, _ := tcpPeer(t)
	write(t, raw, []byte{0, 100, 0x48})
	raw.SetLinger(0)
	raw.Close()
	client.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, err := client.Read(make([]byte, 100)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("client read %d bytes, %v; want the end", n, err)
	}
	if _, err := e.Peer(1); err != nil {
		t.Errorf("peer after the reset: %v, want it to stay until a send fails", err)
	}
	e.send(t, udp4("10.8.0.1", "10.8.0.2", "x"))
	if ev := e.event(t); ev.Reason != peers.TransportError {
		t.Errorf("event = %+v, want transport-error", ev)
	}
}

func TestTCPClientCloseRemovesThePeer(t *testing.T) {
	e, client, raw, _ := tcpPeer(t)
	last := frame([]byte{5 << 3, 1, 1, 1})
	write(t, client, last)
	client.Close()
	if ev := e.event(t); ev.Reason != peers.TransportDisconnect {
		t.Errorf("event = %+v, want transport-disconnect", ev)
	}
	if got := readFrame(t, raw); !bytes.Equal(got, last) {
		t.Errorf("the client's last record arrived as %x, want %x", got, last)
	}
	if _, err := raw.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("other side: %v, want the end", err)
	}
}

// The peer stays until the next packet, or until the client closes.
func TestTCPClientShutdown(t *testing.T) {
	for _, tt := range []struct {
		rule  string
		fin   bool // the other side has ended the connection before
		how   int
		close bool // rather than send a packet
	}{
		{"of sending", false, unix.SHUT_WR, false},
		{"of sending, then close", false, unix.SHUT_WR, true},
		{"of both", false, unix.SHUT_RDWR, false},
		{"of both, then close", false, unix.SHUT_RDWR, true},
		{"of sending after the other side's", true, unix.SHUT_WR, false},
		{"of sending after the other side's, then close", true, unix.SHUT_WR, true},
		{"of both after the other side's", true, unix.SHUT_RDWR, false},
		{"of both after the other side's, then close", true, unix.SHUT_RDWR, true},
	} {
		t.Run(tt.rule, func(t *testing.T) {
			e, client, raw, _ := tcpPeer(t)
			if tt.fin {
				raw.CloseWrite()
				client.SetReadDeadline(time.Now().Add(5 * time.Second))
				if _, err := client.Read(make([]byte, 100)); err != io.EOF {
					t.Fatalf("client read: %v, want the end", err)
				}
			}
			write(t, client, controlFrame)
			if err := withFD(client, func(fd int) error { return unix.Shutdown(fd, tt.how) }); err != nil {
				t.Fatal(err)
			}
			if got := readFrame(t, raw); !bytes.Equal(got, controlFrame) {
				t.Errorf("record sent before = %x, want %x", got, controlFrame)
			}
			if _, err := raw.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("other side: %v, want the end", err)
			}
			if _, err := e.Peer(1); err != nil {
				t.Errorf("peer before the next packet: %v", err)
			}
			if !tt.fin && tt.how == unix.SHUT_WR {
				write(t, raw, controlFrame)
				if got := readRecord(t, client); !bytes.Equal(got, controlFrame) {
					t.Errorf("record received after = %x, want %x", got, controlFrame)
				}
			}
			want := peers.TransportError
			if tt.close {
				want = peers.TransportDisconnect
				client.Close()
			} else {
				e.send(t, udp4("10.8.0.1", "10.8.0.2", "x"))
			}
			if ev := e.event(t); ev.Reason != want {
				t.Errorf("event = %+v, want %v", ev, want)
			}
			client.Close()
			noConnections(t, e.sockets)
		})
	}
}

// The other side ends the connection after the client has shut sending down: that is not the client's close.
func TestTCPClientShutdownBeforeTheOtherSides(t *testing.T) {
	e, client, raw, _ := tcpPeer(t)
	if err := withFD(client, func(fd int) error { return unix.Shutdown(fd, unix.SHUT_WR) }); err != nil {
		t.Fatal(err)
	}
	if _, err := raw.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("other side: %v, want the end", err)
	}
	write(t, raw, controlFrame)
	raw.CloseWrite()
	if got := readRecord(t, client); !bytes.Equal(got, controlFrame) {
		t.Errorf("record = %x, want %x", got, controlFrame)
	}
	if _, err := client.Read(make([]byte, 100)); err != io.EOF {
		t.Errorf("client read: %v, want the end", err)
	}
	e.send(t, udp4("10.8.0.1", "10.8.0.2", "x"))
	if ev := e.event(t); ev.Reason != peers.TransportError {
		t.Errorf("event = %+v, want transport-error", ev)
	}
}

func TestTCPDeletedPeerLeavesAStream(t *testing.T) {
	e, client, raw, _ := tcpPeer(t)
	if err := e.DeletePeer(1); err != nil {
		t.Fatal(err)
	}
	write(t, raw, []byte("as it"))
	if got := readRecord(t, client); string(got) != "as it" {
		t.Errorf("client read %q", got)
	}
	write(t, client, []byte("comes"))
	got := make([]byte, 5)
	raw.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.ReadFull(raw, got); err != nil || string(got) != "comes" {
		t.Errorf("other side read %q, %v", got, err)
	}
	client.Close()
	if _, err := raw.Read(got); err != io.EOF {
		t.Errorf("after the client's close: %v, want the end", err)
	}
}

// restorable is a device with a peer on a connection whose client can be reached: has returns what that has at its
// descriptor, after it was replaced so many times.
func restorable(t *testing.T) (e *end, sockets *Sockets, raw *net.TCPConn, has func(times int) *os.File) {
	t.Helper()
	sockets = newSockets(t)
	e = newEnd(t, peers.P2P, sockets, "127.0.0.1:0")
	ours, raw := connected(t)
	file, err := ours.File()
	if err != nil {
		t.Fatal(err)
	}
	ours.Close()
	had := []*os.File{file}
	err = e.NewPeer(PeerConfig{ID: 1, TxID: 1, Socket: file, Substitute: func(inode uint64, f *os.File) error {
		now := had[len(had)-1]
		if n, err := inodeOf(now); err != nil || n != inode {
			t.Errorf("socket %d is to be replaced, the client has %d, %v", inode, n, err)
		}
		had = append(had, duplicate(t, f))
		now.Close()
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	return e, sockets, raw, func(times int) *os.File {
		t.Helper()
		if len(had) != 1+times {
			t.Fatalf("the client's descriptor was replaced %d times, want %d", len(had)-1, times)
		}
		return had[times]
	}
}

func TestTCPClientGetsItsConnectionBack(t *testing.T) {
	for rule, remove := range map[string]func(e *end) error{
		"after PEER_DEL":              func(e *end) error { return e.DeletePeer(1) },
		"when the device is deleted":  func(e *end) error { e.Teardown(); return nil },
		"when the program deletes it": func(e *end) error { return e.Close() },
	} {
		t.Run(rule, func(t *testing.T) {
			e, sockets, raw, has := restorable(t)
			write(t, has(1), controlFrame)
			write(t, has(1), controlFrame)
			if err := remove(e); err != nil {
				t.Fatal(err)
			}
			client := has(2)
			if sockets.HasConnections() {
				t.Error("the connection is still held")
			}
			// What was sent before comes before, and the pair's records are a stream again.
			write(t, client, []byte("plain"))
			got := make([]byte, 2*len(controlFrame)+5)
			raw.SetReadDeadline(time.Now().Add(5 * time.Second))
			if _, err := io.ReadFull(raw, got); err != nil || !bytes.Equal(got, slices.Concat(controlFrame, controlFrame, []byte("plain"))) {
				t.Errorf("the other side reads %x, %v", got, err)
			}
			write(t, raw, []byte("stream"))
			client.SetReadDeadline(time.Now().Add(5 * time.Second))
			for _, want := range []string{"str", "eam"} {
				if n, err := io.ReadFull(client, got[:3]); err != nil || string(got[:n]) != want {
					t.Errorf("the client reads %q, %v; want %q", got[:n], err, want)
				}
			}
			client.Close()
			if _, err := raw.Read(got); err != io.EOF {
				t.Errorf("after the client's close: %v, want the end", err)
			}
		})
	}
}

// A connection comes and goes many times, under traffic, without losing step.
func TestTCPConnectionTakenAndGivenBackOften(t *testing.T) {
	e, _, raw, has := restorable(t)
	substitute := transportOf(e.table.All()[0]).tcp.substitute
	for i := range 1000 {
		write(t, raw, controlFrame)
		if got := readRecord(t, has(2*i+1)); !bytes.Equal(got, controlFrame) {
			t.Fatalf("round %d: record = %x", i, got)
		}
		write(t, has(2*i+1), controlFrame)
		if err := e.DeletePeer(1); err != nil {
			t.Fatal(err)
		}
		write(t, has(2*i+2), controlFrame)
		for range 2 {
			if got := readFrame(t, raw); !bytes.Equal(got, controlFrame) {
				t.Fatalf("round %d: frame = %x", i, got)
			}
		}
		if err := e.NewPeer(PeerConfig{ID: 1, TxID: 1, Socket: has(2*i + 2), Substitute: substitute}); err != nil {
			t.Fatal(err)
		}
		if ev := e.event(t); ev.Reason != peers.Userspace {
			t.Fatalf("round %d: event = %+v", i, ev)
		}
		<-e.link.carrier
		<-e.link.carrier
	}
	e.Close() // while there is a client to give the connection back to
}

func TestTCPConnectionIsNotGivenBackWhileItIsStuck(t *testing.T) {
	e, _, raw, has := restorable(t)
	own, _ := keyPair(crypto.AESGCM, 0)
	if err := e.InstallKey(1, crypto.Primary, own); err != nil {
		t.Fatal(err)
	}
	fillUp(t, e)
	write(t, has(1), controlFrame)
	if err := e.DeletePeer(1); err != nil {
		t.Fatal(err)
	}
	has(1).Close()
	for {
		raw.SetReadDeadline(time.Now().Add(5 * time.Second))
		head := make([]byte, framePrefix+1)
		if _, err := io.ReadFull(raw, head); err != nil {
			t.Fatalf("the client's last record did not arrive: %v", err)
		}
		if _, err := io.CopyN(io.Discard, raw, int64(head[0])<<8|int64(head[1])-1); err != nil {
			t.Fatal(err)
		}
		if head[2] == controlFrame[2] {
			return
		}
	}
}

func TestTCPConnectionCanCarryAnotherPeerLater(t *testing.T) {
	e, client, raw, key := tcpPeer(t)
	cfg := PeerConfig{ID: 5, TxID: 2, Socket: client}
	var attach *AttachError
	if err := e.NewPeer(cfg); !errors.As(err, &attach) || attach.Errno != unix.EBUSY {
		t.Fatalf("while it carries a peer: %v, want an AttachError with EBUSY", err)
	}
	if err := e.DeletePeer(1); err != nil {
		t.Fatal(err)
	}
	if err := e.NewPeer(cfg); err != nil {
		t.Fatal(err)
	}
	own, _ := keyPair(crypto.AESGCM, 0)
	if err := e.InstallKey(5, crypto.Primary, own); err != nil {
		t.Fatal(err)
	}
	inner := udp4("10.8.0.2", "10.8.0.1", "again")
	write(t, raw, frame(sealed(t, key, 5, 1, inner)))
	if got := e.receive(t); !bytes.Equal(got, inner) {
		t.Errorf("packet = %x, want %x", got, inner)
	}
	write(t, raw, controlFrame)
	if got := readRecord(t, client); !bytes.Equal(got, controlFrame) {
		t.Errorf("record = %x, want %x", got, controlFrame)
	}
}

// What a detached connection brings waits for a client that reads slowly.
func TestTCPDetachedStreamLosesNothing(t *testing.T) {
	e, client, raw, _ := tcpPeer(t)
	if err := e.DeletePeer(1); err != nil {
		t.Fatal(err)
	}
	sent := make([]byte, 8<<20)
	for i := range sent {
		sent[i] = byte(i * 7 >> 3)
	}
	go func() {
		raw.Write(sent)
		raw.CloseWrite()
	}()
	var got []byte
	buf := make([]byte, maxFrame)
	client.SetReadDeadline(time.Now().Add(20 * time.Second))
	for {
		n, err := client.Read(buf)
		got = append(got, buf[:n]...)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(got, sent) {
		t.Errorf("%d bytes arrived of %d, or others", len(got), len(sent))
	}
}

// A descriptor that was replaced, when something behind that failed, is put back.
func TestTCPSubstitutionThatFailsHalfwayIsUndone(t *testing.T) {
	e := newEnd(t, peers.P2P, newSockets(t), "127.0.0.1:0")
	ours, raw := connected(t)
	file, err := ours.File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var placed []*os.File
	err = e.NewPeer(PeerConfig{ID: 1, TxID: 1, Socket: file, Substitute: func(_ uint64, f *os.File) error {
		placed = append(placed, f)
		if len(placed) == 1 {
			return unix.EBADF
		}
		return nil
	}})
	if err == nil || len(placed) != 2 || placed[1] != file {
		t.Errorf("NewPeer: %v, put in place %v; want an error and the client's own descriptor again", err, placed)
	}
	write(t, ours, []byte("plain"))
	if _, err := io.ReadFull(raw, make([]byte, 5)); err != nil {
		t.Error(err)
	}
}

// A peer that does not read costs its own packets and nobody else's.
func TestTCPPeerThatStopsReading(t *testing.T) {
	needRoot(t)
	e := newEnd(t, peers.MP, newSockets(t), "127.0.0.1:0")
	own, _ := keyPair(crypto.AESGCM, 0)
	stuck, _ := connected(t)
	good, raw := connected(t)
	vpn1, vpn2 := netip.MustParseAddr("10.8.0.2"), netip.MustParseAddr("10.8.0.3")
	stuckClient := e.addTCP(t, PeerConfig{ID: 1, TxID: 1, VPN4: vpn1}, own, stuck)
	e.addTCP(t, PeerConfig{ID: 2, TxID: 2, VPN4: vpn2}, own, good)
	packet := udp4("10.8.0.1", "10.8.0.2", string(make([]byte, 1400)))
	deadline := time.Now().Add(30 * time.Second)
	for e.Stats().Drops[DropSend.String()] == 0 {
		if time.Now().After(deadline) {
			t.Fatal("the stuck connection never filled up")
		}
		for range 100 {
			e.send(t, packet)
		}
	}
	// The other peer's transfer is complete, and neither slow nor mixed up, while the stuck one has more to send.
	const transfer = 500
	done := make(chan struct{})
	go func() {
		defer close(done)
		raw.SetReadDeadline(time.Now().Add(30 * time.Second))
		want := framePrefix + crypto.Overhead + len(packet)
		if n, err := io.CopyN(io.Discard, raw, int64(transfer*want)); err != nil {
			t.Errorf("%d bytes of the other peer's arrived, want %d: %v", n, transfer*want, err)
		}
	}()
	forTheOther := udp4("10.8.0.1", "10.8.0.3", string(make([]byte, 1400)))
	for range transfer {
		e.send(t, packet)
		e.send(t, forTheOther)
	}
	<-done
	if infos := e.Peers(); len(infos) != 2 {
		t.Errorf("%d peers, want 2: being slow is no error", len(infos))
	}
	// What the stuck client writes waits in its own socket, and then its writes do.
	written := 0
	for err := error(nil); err == nil; {
		var n int
		if err = withFD(stuckClient, func(fd int) (err error) { n, err = unix.Write(fd, controlFrame); return err }); err == nil {
			written += n
		} else if err != unix.EAGAIN {
			t.Errorf("the stuck client's write: %v, want EAGAIN", err)
		}
		if written > 2*maxClientRecord {
			t.Fatalf("the stuck client could write %d bytes", written)
		}
	}
	if err := e.do(func() {
		for _, p := range e.table.All() {
			if n := cap(transportOf(p).tcp.out); n > 2*maxUDPPayload {
				t.Errorf("%d bytes kept for a peer that does not read", n)
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
}

func TestTCPAttachErrors(t *testing.T) {
	e, client, _, _ := tcpPeer(t)
	// Not net.Listen's, which is an MPTCP socket.
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	listening := os.NewFile(uintptr(fd), "listening socket")
	defer listening.Close()
	if err := unix.Listen(fd, 1); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		rule  string
		file  *os.File
		errno unix.Errno
	}{
		{"the client's end carries a peer already", client, unix.EBUSY},
		{"not established", listening, unix.EINVAL},
	}
	for _, tt := range tests {
		t.Run(tt.rule, func(t *testing.T) {
			err := e.NewPeer(PeerConfig{ID: 2, TxID: 2, Socket: tt.file, Substitute: func(uint64, *os.File) error { return nil }})
			var attach *AttachError
			if !errors.As(err, &attach) || attach.Errno != tt.errno {
				t.Errorf("error = %v, want an AttachError with %v", err, tt.errno)
			}
		})
	}
	if infos := e.Peers(); len(infos) != 1 || infos[0].ID != 1 {
		t.Errorf("peers = %+v, want the first one untouched", infos)
	}
}

func TestTCPFailedNewPeerPutsTheDescriptorBack(t *testing.T) {
	needRoot(t)
	e := newEnd(t, peers.MP, newSockets(t), "127.0.0.1:0")
	own, _ := keyPair(crypto.AESGCM, 0)
	first, _ := connected(t)
	e.addTCP(t, PeerConfig{ID: 1, TxID: 1, VPN4: netip.MustParseAddr("10.8.0.2")}, own, first)
	second, raw := connected(t)
	file, err := second.File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	write(t, raw, []byte("early"))
	unread := func() int {
		n, err := unix.IoctlGetInt(int(file.Fd()), unix.SIOCINQ)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for unread() < len("early") {
		runtime.Gosched()
	}
	var placed []*os.File
	err = e.NewPeer(PeerConfig{ID: 1, TxID: 1, VPN4: netip.MustParseAddr("10.8.0.3"), Socket: file,
		Substitute: func(_ uint64, f *os.File) error {
			if placed = append(placed, f); f == file {
				// It takes its time, in which a worker may do what it must not.
				for start := time.Now(); unread() > 0 && time.Since(start) < 100*time.Millisecond; {
					time.Sleep(time.Millisecond)
				}
			}
			return nil
		}})
	if !errors.Is(err, peers.ErrIDInUse) {
		t.Fatalf("error = %v, want ErrIDInUse", err)
	}
	if len(placed) != 2 || placed[1] != file {
		t.Errorf("descriptors put in place: %v, want the pair's end and then the client's own again", placed)
	}
	if n := unread(); n != len("early") {
		t.Errorf("%d bytes that came before are left to the client, want %d", n, len("early"))
	}
	write(t, second, []byte("plain"))
	buf := make([]byte, 5)
	if _, err := io.ReadFull(raw, buf); err != nil || string(buf) != "plain" {
		t.Errorf("the connection carries %q, %v", buf, err)
	}
}

// fillUp has e send until what its only peer's connection takes is exhausted.
func fillUp(t *testing.T, e *end) {
	t.Helper()
	packet := udp4("10.8.0.1", "10.8.0.2", string(make([]byte, 1400)))
	deadline := time.Now().Add(30 * time.Second)
	for e.Stats().Drops[DropSend.String()] == 0 {
		if time.Now().After(deadline) {
			t.Fatal("the connection never filled up")
		}
		for range 100 {
			e.send(t, packet)
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

// A client that closes while the other side does not read: the peer goes at once, and the connection does not stay
// for ever.
func TestTCPClientCloseWithAStuckConnection(t *testing.T) {
	for rule, release := range map[string]func(raw *net.TCPConn){
		"other side resets": func(raw *net.TCPConn) { raw.SetLinger(0); raw.Close() },
		"other side reads":  func(raw *net.TCPConn) { go io.Copy(io.Discard, raw) },
	} {
		for _, when := range []string{"before", "after"} {
			t.Run(rule+" "+when+" the close", func(t *testing.T) {
				sockets := newSockets(t)
				e := newEnd(t, peers.P2P, sockets, "127.0.0.1:0")
				ours, raw := connected(t)
				own, _ := keyPair(crypto.AESGCM, 0)
				client := e.addTCP(t, PeerConfig{ID: 1, TxID: 2}, own, ours)
				fillUp(t, e)
				write(t, client, controlFrame)
				if when == "before" {
					release(raw)
				}
				client.Close()
				ev := e.event(t)
				if ev.Reason != peers.TransportDisconnect && (when == "after" || ev.Reason != peers.TransportError) {
					t.Errorf("event = %+v, want transport-disconnect", ev)
				}
				if when == "after" {
					release(raw)
				}
				noConnections(t, sockets)
			})
		}
	}
}

// The worker must not wait for a close.
func TestTCPLingeringClose(t *testing.T) {
	sockets := newSockets(t)
	e := newEnd(t, peers.P2P, sockets, "127.0.0.1:0")
	ours, _ := connected(t)
	ours.SetLinger(60)
	own, _ := keyPair(crypto.AESGCM, 0)
	client := e.addTCP(t, PeerConfig{ID: 1, TxID: 2}, own, ours)
	fillUp(t, e)
	if err := e.DeletePeer(1); err != nil {
		t.Fatal(err)
	}
	before := time.Now()
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(before); took > 30*time.Second {
		t.Errorf("closing the device took %v", took)
	}
	client.Close()
}

func TestTCPEmptyRecordIsNothing(t *testing.T) {
	_, client, raw, _ := tcpPeer(t)
	if err := withFD(client, func(fd int) error { return unix.Sendto(fd, nil, 0, nil) }); err != nil {
		t.Fatal(err)
	}
	write(t, client, controlFrame)
	if got := readFrame(t, raw); !bytes.Equal(got, controlFrame) {
		t.Errorf("frame = %x, want %x", got, controlFrame)
	}
}

func TestConnectionOfAClientsDescriptor(t *testing.T) {
	sockets := newSockets(t)
	e := newEnd(t, peers.P2P, sockets, "127.0.0.1:0")
	if sockets.HasConnections() {
		t.Error("connections before there was one")
	}
	ours, raw := connected(t)
	own, _ := keyPair(crypto.AESGCM, 0)
	client := e.addTCP(t, PeerConfig{ID: 1, TxID: 2}, own, ours)
	cookie, err := socketCookie(client)
	if err != nil {
		t.Fatal(err)
	}
	conn, ok := sockets.Connection(cookie)
	if !ok || !sockets.HasConnections() {
		t.Fatal("the connection is not known")
	}
	defer conn.Close()
	got, err := net.FileConn(conn)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	if got.LocalAddr().String() != raw.RemoteAddr().String() {
		t.Errorf("connection of %v, want %v", got.LocalAddr(), raw.RemoteAddr())
	}
	if _, ok := sockets.Connection(cookie + 1e6); ok {
		t.Error("a connection by a cookie that nobody has")
	}
	if own, err := socketCookie(conn); err != nil {
		t.Error(err)
	} else if _, ok := sockets.Connection(own); ok {
		t.Error("the connection itself is taken for the client's end")
	}
}
