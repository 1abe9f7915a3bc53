package test

import (
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/bench"
)

// TestMixedServer: one OpenVPN listens over UDP and over TCP, so that the peers of one interface have
// transports of both kinds.
func TestMixedServer(t *testing.T) {
	t.Parallel()
	const transfer = 2 << 20
	s := newScenario(t, 2)
	if err := s.Server.Forward(); err != nil {
		t.Fatal(err)
	}
	server := s.startServer(s.exec(s.Server), bench.ServerOptions{Pool6: pool6, Listen: []string{
		fmt.Sprintf("%v %d udp", s.ServerAddr4(0), bench.DefaultPort),
		fmt.Sprintf("%v %d tcp-server", s.ServerAddr4(1), bench.DefaultPort),
	}})
	server4, server6 := s.addrs(server)
	var clients []*bench.Tunnel
	for i := range s.Clients {
		clients = append(clients, s.startClient(s.exec(s.Clients[i]), i, bench.ClientOptions{Options: bench.Options{TCP: i == 1}}))
	}
	for i, client := range clients {
		client4, client6 := s.addrs(client)
		s.awaitPing(s.Clients[i], server4) // the kernel may take a second to notice the carrier
		s.requirePing(s.Clients[i], server6)
		s.requirePing(s.Server, client4)
		s.requirePing(s.Server, client6)
		s.requireTransfer(s.Clients[i], s.Server, server4, transfer)
		s.requireTransfer(s.Server, s.Clients[i], client4, transfer)
	}
	// From one transport to the other.
	over, _ := s.addrs(clients[1])
	s.requirePing(s.Clients[0], over)
	s.requireTransfer(s.Clients[0], s.Clients[1], over, transfer)

	for _, client := range clients {
		s.stop(client)
		s.requireCarried(client, 1, transfer, transfer)
	}
	s.stop(server)
	s.requireCarried(server, 2, 2*transfer, 2*transfer)
	s.requireNoDrops(server, "authentication", "replay", "unknown-key")
}

// TestTCPServerReplaced: a server ends in the orderly way and another takes its port at once, while
// clients still have connections to the old one.
func TestTCPServerReplaced(t *testing.T) {
	t.Parallel()
	s := newScenario(t, 1)
	options := bench.Options{TCP: true}
	server := s.startServer(s.exec(s.Server), bench.ServerOptions{Options: options})
	client := s.startClient(s.exec(s.Clients[0]), 0, bench.ClientOptions{Options: options})
	server4, _ := s.addrs(server)
	s.awaitPing(s.Clients[0], server4)
	for range 2 {
		mark := client.Log.Mark()
		s.stop(server)
		server = s.startServer(s.exec(s.Server), bench.ServerOptions{Options: options})
		s.waitUp(client, mark)
		s.requireDCO(client, true)
		s.awaitPing(s.Clients[0], server4)
	}
	s.stop(client)
	s.stop(server)
}

// TestRekeyOverTCP renews the keys under traffic, and expects nobody to notice.
func TestRekeyOverTCP(t *testing.T) {
	const (
		lifetime = 8 // seconds
		duration = 30 * time.Second
		renewals = 2 // at least
	)
	t.Parallel()
	s := newScenario(t, 1)
	s.quiet()
	serverOptions, clientOptions := s.rekeyEvery(lifetime)
	serverOptions.TCP, clientOptions.TCP = true, true
	server := s.startServer(s.exec(s.Server), bench.ServerOptions{Options: serverOptions})
	client := s.startClient(s.exec(s.Clients[0]), 0, bench.ClientOptions{Options: clientOptions})
	server4, _ := s.addrs(server)
	s.awaitPing(s.Clients[0], server4)

	r := s.ping(bench.Ping{
		Node: s.Clients[0], To: server4, Interval: 2 * time.Millisecond, Duration: duration, Wait: 5 * time.Second,
	})
	t.Logf("%d pings, median %v, p99 %v", r.Sent, r.Median, r.P99)
	if r.Lost() != 0 || r.Duplicates != 0 || r.Refused != 0 {
		t.Errorf("of %d pings %d were lost, %d came twice, %d could not be sent; missing: %v",
			r.Sent, r.Lost(), r.Duplicates, r.Refused, r.Missing[:min(len(r.Missing), 20)])
	}
	for _, tunnel := range []*bench.Tunnel{server, client} {
		if n := len(tunnel.Log.Match(0, keySwapped)); n < renewals {
			t.Errorf("%s swapped keys %d times, expected at least %d", tunnel.Name, n, renewals)
		}
	}
	s.stop(client)
	s.stop(server)
	for _, tunnel := range []*bench.Tunnel{server, client} {
		s.requireNoDrops(tunnel, "replay", "unknown-key", "authentication", "no-key", "send")
		s.requireCarried(tunnel, 1, uint64(r.Sent*r.PacketSize), uint64(r.Sent*r.PacketSize))
	}
}

// TestTCPClientsComeAndGo restarts three clients of one server again and again, in the orderly way and by
// killing them, and compares what the server's program holds afterwards with what it held before.
func TestTCPClientsComeAndGo(t *testing.T) {
	t.Parallel()
	const rounds = 4
	s := newScenario(t, 3)
	options := bench.Options{TCP: true}
	serverOptions := options
	serverOptions.Management = true
	server := s.startServer(s.exec(s.Server), bench.ServerOptions{Options: serverOptions})
	m, err := server.Management(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	empty := func() {
		t.Helper()
		eventually(t, 20*time.Second, "the server to be alone", func() bool {
			clients, _, err := m.ServerStatus()
			return err == nil && len(clients) == 0
		})
	}
	before := descriptors(t, server.PID())
	processes := len(descendants(server.PID()))
	for round := range rounds {
		var clients []*bench.Tunnel
		for i, node := range s.Clients {
			clients = append(clients, s.launchClient(s.exec(node), i, bench.ClientOptions{Options: options}))
		}
		server4, _ := s.addrs(server)
		for i, client := range clients {
			s.waitUp(client, 0)
			s.awaitPing(s.Clients[i], server4) // the kernel may take a second to notice the carrier
		}
		for i, client := range clients {
			if (round+i)%2 == 0 {
				s.stop(client)
				continue
			}
			if err := unix.Kill(s.openvpnPID(client), unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			<-client.Done()
		}
		empty()
		eventually(t, 10*time.Second, "the connections to be let go of", func() bool {
			return descriptors(t, server.PID()) <= before
		})
	}
	if n := len(descendants(server.PID())); n != processes {
		t.Errorf("%d processes below the server's program, %d before", n, processes)
	}
	s.stop(server)
	if removed := records(server, 0, "peer removed"); len(removed) != rounds*len(s.Clients) {
		t.Errorf("%d peers were removed, want %d", len(removed), rounds*len(s.Clients))
	}
}

// descriptors counts a process's descriptors.
func descriptors(t *testing.T, pid int) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
