package test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/bench"
)

// TestKilledClientExpires: nobody tells the server that a client was killed, so its peer must expire
// by keepalive, and OpenVPN must hear of it.
func TestKilledClientExpires(t *testing.T) {
	t.Parallel()
	s := newScenario(t, 1)
	server := s.startServer(s.exec(s.Server), bench.ServerOptions{Options: bench.Options{Keepalive: [2]int{1, 3}}})
	client := s.startClient(s.exec(s.Clients[0]), 0, bench.ClientOptions{})
	server4, _ := s.addrs(server)
	s.requirePing(s.Clients[0], server4)

	mark := server.Log.Mark()
	if err := unix.Kill(s.openvpnPID(client), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	// The program passes on how its client ended.
	if code, err := client.Wait(); err != nil || code != 128+int(unix.SIGKILL) {
		t.Errorf("exit code %d, %v", code, err)
	}
	s.requireGone(client)
	s.waitLog(server, mark, "ping expired", 30*time.Second)

	// The server is in order: the client may come back.
	again := s.startClient(s.exec(s.Clients[0]), 0, bench.ClientOptions{})
	s.requirePing(s.Clients[0], server4)
	s.stop(again)
	s.stop(server)
	expired := false
	for _, r := range records(server, 0, "peer removed") {
		expired = expired || r["reason"] == "expired"
	}
	if !expired {
		t.Error("no peer was removed for the reason expired")
	}
}

// TestKilledTCPPeer: over TCP the other side sees the connection end, whichever side was killed.
func TestKilledTCPPeer(t *testing.T) {
	for _, side := range []string{"client", "server"} {
		t.Run(side, func(t *testing.T) {
			t.Parallel()
			s := newScenario(t, 1)
			// No keepalive to speak of: it must be the end of the connection that tells.
			options := bench.Options{TCP: true, Keepalive: [2]int{20, 120}, Management: true}
			server := s.startServer(s.exec(s.Server), bench.ServerOptions{Options: options})
			client := s.startClient(s.exec(s.Clients[0]), 0, bench.ClientOptions{Options: bench.Options{TCP: true}})
			server4, _ := s.addrs(server)
			s.requirePing(s.Clients[0], server4)

			target := map[string]*bench.Tunnel{"client": client, "server": server}[side]
			mark := client.Log.Mark()
			if err := unix.Kill(s.openvpnPID(target), unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			<-target.Done()
			s.requireGone(target)
			if side == "client" {
				m, err := server.Management(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				defer m.Close()
				eventually(t, 10*time.Second, "the server to notice", func() bool {
					clients, _, err := m.ServerStatus()
					return err == nil && len(clients) == 0
				})
				client = s.startClient(s.exec(s.Clients[0]), 0, bench.ClientOptions{Options: bench.Options{TCP: true}})
			} else {
				s.waitLog(client, mark, "Connection reset", 10*time.Second)
				s.startServer(s.exec(s.Server), bench.ServerOptions{Options: options})
				s.waitUp(client, mark)
			}
			s.awaitPing(s.Clients[0], server4)
			s.stop(client)
		})
	}
}

// TestSignals sends OpenVPN the signals that make it start over, on either side and by way of our
// program as well as directly. A server binds the same port again at once.
func TestSignals(t *testing.T) {
	for _, tt := range []struct {
		name   string
		sig    unix.Signal
		side   string
		direct bool // to OpenVPN's own process, not to our program
		tcp    bool
	}{
		{"SIGUSR1 to the client", unix.SIGUSR1, "client", true, false},
		{"SIGUSR1 to the client through us", unix.SIGUSR1, "client", false, false},
		{"SIGUSR1 to the client over TCP", unix.SIGUSR1, "client", true, true},
		{"SIGHUP to the client", unix.SIGHUP, "client", true, false},
		{"SIGHUP to the client over TCP", unix.SIGHUP, "client", true, true},
		{"SIGUSR1 to the server", unix.SIGUSR1, "server", true, false},
		{"SIGUSR1 to the server over TCP", unix.SIGUSR1, "server", true, true},
		{"SIGHUP to the server", unix.SIGHUP, "server", true, false},
		{"SIGHUP to the server over TCP", unix.SIGHUP, "server", true, true},
		{"SIGHUP to the server through us", unix.SIGHUP, "server", false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newScenario(t, 1)
			options := bench.Options{TCP: tt.tcp, Keepalive: [2]int{1, 4}}
			if !tt.tcp {
				// A server that restarts tells its clients; over TCP they see the connection end.
				options.Extra = []string{"explicit-exit-notify 1"}
			}
			server := s.startServer(s.exec(s.Server), bench.ServerOptions{Options: options})
			client := s.startClient(s.exec(s.Clients[0]), 0, bench.ClientOptions{Options: bench.Options{TCP: tt.tcp}})
			server4, _ := s.addrs(server)
			s.requirePing(s.Clients[0], server4)

			target := map[string]*bench.Tunnel{"client": client, "server": server}[tt.side]
			pid := target.PID()
			if tt.direct {
				pid = s.openvpnPID(target)
			}
			// Twice: what the first restart leaves behind is in the second one's way.
			for range 2 {
				clientMark, targetMark := client.Log.Mark(), target.Log.Mark()
				if err := unix.Kill(pid, tt.sig); err != nil {
					t.Fatal(err)
				}
				s.waitUp(target, targetMark)
				s.waitUp(client, clientMark)
				s.requireDCO(client, true)
				s.requireDCO(server, true)
				s.awaitPing(s.Clients[0], server4)
			}
			s.stop(client)
			s.stop(server)
		})
	}
}

// TestPrivilegeDrop: OpenVPN gives up root and keeps only CAP_NET_ADMIN. Restarting with a new peer
// on the old interface, and deleting the interface, must still work.
func TestPrivilegeDrop(t *testing.T) { overBoth(t, testPrivilegeDrop) }

func testPrivilegeDrop(t *testing.T, tcp bool) {
	t.Parallel()
	s := newScenario(t, 1)
	drop := bench.Options{User: "nobody", Group: "nogroup", PersistTun: true, TCP: tcp}
	serverOptions := drop
	if !tcp { // over TCP the end of the connection is notice enough
		serverOptions.Extra = []string{"explicit-exit-notify 1"}
	}
	server := s.startServer(s.exec(s.Server), bench.ServerOptions{Options: serverOptions})
	client := s.startClient(s.exec(s.Clients[0]), 0, bench.ClientOptions{Options: drop})
	server4, _ := s.addrs(server)
	s.requirePing(s.Clients[0], server4)

	for _, target := range []*bench.Tunnel{client, server} {
		clientMark, targetMark := client.Log.Mark(), target.Log.Mark()
		if err := unix.Kill(s.openvpnPID(target), unix.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		s.waitUp(target, targetMark)
		s.waitUp(client, clientMark)
		s.awaitPing(s.Clients[0], server4)
	}
	s.stop(client)
	s.stop(server)
}

// TestExplicitExitNotify: a client that says good-bye is gone from the server, with its peer, long
// before it would have expired. OpenVPN waits five seconds, for the sake of packets still on their
// way.
func TestExplicitExitNotify(t *testing.T) {
	t.Parallel()
	s := newScenario(t, 1)
	server := s.startServer(s.exec(s.Server), bench.ServerOptions{Options: bench.Options{Management: true}})
	client := s.startClient(s.exec(s.Clients[0]), 0, bench.ClientOptions{Options: bench.Options{
		Extra: []string{"explicit-exit-notify 1"}}})
	server4, _ := s.addrs(server)
	s.requirePing(s.Clients[0], server4)

	mark := server.Log.Mark()
	s.stop(client)
	s.waitLog(server, mark, "exit message received by peer", 10*time.Second)
	s.waitLog(server, mark, "client-instance exiting", 15*time.Second)
	m, err := server.Management(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	clients, _, err := m.ServerStatus()
	if err != nil || len(clients) != 0 {
		t.Errorf("the server still has clients: %+v, %v", clients, err)
	}
	s.requireCarried(server, 1, 1, 1)
}

// TestManagementKill: the server ends a client's session by hand, and the client comes back with a
// new one.
func TestManagementKill(t *testing.T) {
	t.Parallel()
	s := newScenario(t, 1)
	server := s.startServer(s.exec(s.Server), bench.ServerOptions{Options: bench.Options{Management: true}})
	client := s.startClient(s.exec(s.Clients[0]), 0, bench.ClientOptions{})
	server4, _ := s.addrs(server)
	m, err := server.Management(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	clients, _, err := m.ServerStatus()
	if err != nil || len(clients) != 1 {
		t.Fatalf("clients: %+v, %v", clients, err)
	}
	mark := client.Log.Mark()
	if _, err := m.Command("client-kill " + clients[0].ClientID); err != nil {
		t.Fatal(err)
	}
	s.waitUp(client, mark)
	s.awaitPing(s.Clients[0], server4)
}

// TestClientConfigDir: a client's own address, and a network behind it that is reached by way of an
// ordinary kernel route to the client's address.
func TestClientConfigDir(t *testing.T) { overBoth(t, testClientConfigDir) }

func testClientConfigDir(t *testing.T, tcp bool) {
	t.Parallel()
	s := newScenario(t, 2)
	host, err := s.AddNode("lan")
	if err != nil {
		t.Fatal(err)
	}
	var (
		own     = netip.MustParseAddr("10.8.0.50")
		lan     = netip.MustParsePrefix("192.168.77.0/24")
		gateway = netip.MustParseAddr("192.168.77.1")
		addr    = netip.MustParseAddr("192.168.77.2")
	)
	err = s.Connect(
		bench.End{Node: s.Clients[1], Name: "lan0", Addrs: []netip.Prefix{netip.PrefixFrom(gateway, 24)}},
		bench.End{Node: host, Name: "eth0", Addrs: []netip.Prefix{netip.PrefixFrom(addr, 24)}})
	if err != nil {
		t.Fatal(err)
	}
	if err := host.AddRoute(netip.MustParsePrefix("10.8.0.0/24"), gateway, "eth0"); err != nil {
		t.Fatal(err)
	}
	if err := s.Clients[1].Forward(); err != nil {
		t.Fatal(err)
	}
	s.quiet()
	server := s.startServer(s.exec(s.Server), bench.ServerOptions{
		Options: bench.Options{TCP: tcp, Extra: []string{fmt.Sprintf("route %s 255.255.255.0", lan.Addr())}},
		Clients: map[string][]string{"client2": {
			fmt.Sprintf("ifconfig-push %s 255.255.255.0", own),
			fmt.Sprintf("iroute %s 255.255.255.0", lan.Addr()),
		}},
	})
	first := s.startClient(s.exec(s.Clients[0]), 0, bench.ClientOptions{Options: bench.Options{TCP: tcp}})
	second := s.startClient(s.exec(s.Clients[1]), 1, bench.ClientOptions{Options: bench.Options{TCP: tcp}})
	if got, _ := s.addrs(second); got != own {
		t.Errorf("the client has address %v, want %v", got, own)
	}
	server4, _ := s.addrs(server)
	first4, _ := s.addrs(first)
	s.requirePing(s.Server, own)
	s.requirePing(s.Server, first4)
	s.requirePing(s.Server, addr)
	s.requirePing(host, server4)
	s.requireTransfer(s.Server, host, addr, 1<<20)
	s.stop(second)
	s.stop(first)
	s.stop(server)
	s.requireNoDrops(server, "reverse-path", "no-peer")
}
