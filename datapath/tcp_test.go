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
	"ovpn-go/tun/netns"
)

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
		if err = netns.Control(stuckClient, func(fd int) (err error) { n, err = unix.Write(fd, controlFrame); return err }); err == nil {
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
	file := fileOf(t, second)
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
	err := e.NewPeer(PeerConfig{ID: 1, TxID: 1, VPN4: netip.MustParseAddr("10.8.0.3"), Socket: file,
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
