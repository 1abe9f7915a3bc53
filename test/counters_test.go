package test

import (
	"context"
	"strconv"
	"strings"
	"testing"
	"time"

	"ovpn-go/bench"
	"ovpn-go/crypto"
)

// TestCounters compares what OpenVPN and our program say was carried with what was sent: exactly for
// the packets inside, and at least that plus the overhead of the data channel outside.
func TestCounters(t *testing.T) { overBoth(t, testCounters) }

func testCounters(t *testing.T, tcp bool) {
	t.Parallel()
	s := newScenario(t, 1)
	s.quiet()
	server := s.startServer(s.exec(s.Server), bench.ServerOptions{Options: bench.Options{Management: true, TCP: tcp}})
	client := s.startClient(s.exec(s.Clients[0]), 0, bench.ClientOptions{Options: bench.Options{Management: true, TCP: tcp}})
	server4, _ := s.addrs(server)
	s.waitLog(server, 0, "Data Channel: cipher", upTimeout) // the server has its key

	r := s.ping(bench.Ping{Node: s.Clients[0], To: server4, Count: 500, Interval: time.Millisecond, Payload: 872, Wait: 5 * time.Second})
	if r.Lost() != 0 {
		t.Fatalf("ping: %+v", r)
	}
	inner := uint64(r.Sent * r.PacketSize)
	link := inner + uint64(r.Sent*crypto.Overhead)
	// Control packets and keepalives; a handshake is a few kilobytes.
	const most = 100_000

	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cm, err := client.Management(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer cm.Close()
	status, err := cm.ClientStatus()
	if err != nil {
		t.Fatal(err)
	}
	if status.VPNRx != inner || status.VPNTx != inner {
		t.Errorf("client's status: %d bytes in and %d out inside the tunnel, want %d", status.VPNRx, status.VPNTx, inner)
	}
	checkLink := func(what string, got uint64) {
		t.Helper()
		if got < link || got > link+most {
			t.Errorf("%s: %d bytes, want %d and a little more", what, got, link)
		}
	}
	checkLink("client's status, read", status.LinkRx)
	checkLink("client's status, written", status.LinkTx)

	if _, err := cm.Command("bytecount 1"); err != nil {
		t.Fatal(err)
	}
	rx, tx := bytecount(t, ctx, cm, "BYTECOUNT", 0)
	checkLink("client's bytecount, in", rx)
	checkLink("client's bytecount, out", tx)

	sm, err := server.Management(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer sm.Close()
	clients, dco, err := sm.ServerStatus()
	if err != nil {
		t.Fatal(err)
	}
	if !dco || len(clients) != 1 {
		t.Fatalf("server's status: offloaded %v, clients %+v", dco, clients)
	}
	checkLink("server's status, received", clients[0].LinkRx)
	checkLink("server's status, sent", clients[0].LinkTx)
	if _, err := sm.Command("bytecount 1"); err != nil {
		t.Fatal(err)
	}
	rx, tx = bytecount(t, ctx, sm, "BYTECOUNT_CLI", 1)
	checkLink("server's bytecount, in", rx)
	checkLink("server's bytecount, out", tx)

	s.stop(client)
	s.stop(server)
	for _, tunnel := range []*bench.Tunnel{client, server} {
		removed := records(tunnel, 0, "peer removed")
		if len(removed) != 1 {
			t.Errorf("%s: %d peers removed", tunnel.Name, len(removed))
			continue
		}
		for key, want := range map[string]uint64{
			"vpn_rx_bytes": inner, "vpn_tx_bytes": inner,
			"vpn_rx_packets": uint64(r.Sent), "vpn_tx_packets": uint64(r.Sent),
		} {
			if got := removed[0].number(key); got != want {
				t.Errorf("%s: %s=%d, want %d", tunnel.Name, key, got, want)
			}
		}
		for _, direction := range []string{"rx", "tx"} {
			packets := removed[0].number("link_" + direction + "_packets")
			bytes := removed[0].number("link_" + direction + "_bytes")
			if packets < uint64(r.Sent) || bytes < link {
				t.Errorf("%s: link %s: %d packets, %d bytes; at least %d and %d expected", tunnel.Name, direction, packets, bytes, r.Sent, link)
			}
		}
	}
}

// TestCounterDirections: what a client sends is what it transmits and what its server receives, in every
// place that shows it. Pings look the same both ways.
func TestCounterDirections(t *testing.T) {
	t.Parallel()
	const transfer = 8 << 20
	s := newScenario(t, 1)
	server := s.startServer(s.exec(s.Server), bench.ServerOptions{Options: bench.Options{Management: true}})
	client := s.startClient(s.exec(s.Clients[0]), 0, bench.ClientOptions{Options: bench.Options{Management: true}})
	server4, _ := s.addrs(server)
	s.requireTransfer(s.Clients[0], s.Server, server4, transfer)

	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	check := func(what string, more, less uint64) {
		t.Helper()
		if more < transfer || less > transfer/2 {
			t.Errorf("%s: %d bytes with the transfer, %d against it", what, more, less)
		}
	}
	cm, err := client.Management(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer cm.Close()
	status, err := cm.ClientStatus()
	if err != nil {
		t.Fatal(err)
	}
	check("client's status, link", status.LinkTx, status.LinkRx)
	check("client's status, inside", status.VPNTx, status.VPNRx)
	sm, err := server.Management(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer sm.Close()
	clients, _, err := sm.ServerStatus()
	if err != nil || len(clients) != 1 {
		t.Fatalf("server's status: %+v, %v", clients, err)
	}
	check("server's status", clients[0].LinkRx, clients[0].LinkTx)

	s.stop(client)
	s.stop(server)
	for _, r := range records(client, 0, "peer removed") {
		check("client's peer", r.number("vpn_tx_bytes"), r.number("vpn_rx_bytes"))
		check("client's peer, link", r.number("link_tx_bytes"), r.number("link_rx_bytes"))
	}
	for _, r := range records(server, 0, "peer removed") {
		check("server's peer", r.number("vpn_rx_bytes"), r.number("vpn_tx_bytes"))
		check("server's peer, link", r.number("link_rx_bytes"), r.number("link_tx_bytes"))
	}
}

// bytecount waits for a byte count notification and returns its two numbers, which follow after the
// given number of other fields. The first notification may carry counts of an earlier moment.
func bytecount(t *testing.T, ctx context.Context, m *bench.Management, kind string, skip int) (rx, tx uint64) {
	t.Helper()
	for range 2 {
		event, err := m.Event(ctx, kind)
		if err != nil {
			t.Fatal(err)
		}
		fields := strings.Split(event, ",")
		if len(fields) != skip+2 {
			t.Fatalf("%s: %q", kind, event)
		}
		rx, _ = strconv.ParseUint(fields[skip], 10, 64)
		tx, _ = strconv.ParseUint(fields[skip+1], 10, 64)
	}
	return rx, tx
}
