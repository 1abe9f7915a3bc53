package datapath

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/crypto"
	"ovpn-go/peers"
)

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

// A connection whose other side has sent its last is the client's as well, to send on and to end.
func TestTCPClientGetsBackWhatTheOtherSideHasFinished(t *testing.T) {
	for rule, remove := range map[string]func(e *end) error{
		"after PEER_DEL":              func(e *end) error { return e.DeletePeer(1) },
		"when the device is deleted":  func(e *end) error { e.Teardown(); return nil },
		"when the program deletes it": func(e *end) error { return e.Close() },
	} {
		t.Run(rule, func(t *testing.T) {
			e, _, raw, has := restorable(t)
			if err := raw.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			client := has(1)
			client.SetReadDeadline(time.Now().Add(5 * time.Second))
			if _, err := client.Read(make([]byte, 1)); err != io.EOF {
				t.Fatalf("the client reads %v, want the end", err)
			}
			if err := remove(e); err != nil {
				t.Fatal(err)
			}
			client = has(2)
			write(t, client, []byte("plain"))
			client.Close()
			raw.SetReadDeadline(time.Now().Add(5 * time.Second))
			if got, err := io.ReadAll(raw); err != nil || string(got) != "plain" {
				t.Errorf("the other side reads %q, %v", got, err)
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
	file := fileOf(t, ours)
	var placed []*os.File
	err := e.NewPeer(PeerConfig{ID: 1, TxID: 1, Socket: file, Substitute: func(_ uint64, f *os.File) error {
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
