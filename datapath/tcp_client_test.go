package datapath

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/crypto"
	"ovpn-go/peers"
	"ovpn-go/tun/netns"
)

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
			if err := netns.Control(client, func(fd int) error { return unix.Shutdown(fd, tt.how) }); err != nil {
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
	if err := netns.Control(client, func(fd int) error { return unix.Shutdown(fd, unix.SHUT_WR) }); err != nil {
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
	if err := netns.Control(client, func(fd int) error { return unix.Sendto(fd, nil, 0, nil) }); err != nil {
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
	conn, err := sockets.Connection(cookie)
	if conn == nil || !sockets.HasConnections() {
		t.Fatal("the connection is not known", err)
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
	if other, err := sockets.Connection(cookie + 1e6); other != nil || err != nil {
		t.Error("a connection by a cookie that nobody has")
	}
	if own, err := socketCookie(conn); err != nil {
		t.Error(err)
	} else if other, err := sockets.Connection(own); other != nil || err != nil {
		t.Error("the connection itself is taken for the client's end")
	}
}
