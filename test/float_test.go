package test

import (
	"context"
	"net/netip"
	"sync"
	"testing"
	"time"

	"ovpn-go/bench"
)

// TestFloat takes a client's address away while it sends. The session must move to the client's new
// address, in the data channel and in the control channel.
func TestFloat(t *testing.T) {
	for _, tt := range []struct {
		name     string
		ipv6     bool
		old, new netip.Prefix
	}{
		{"IPv4", false, netip.MustParsePrefix("10.9.0.2/24"), netip.MustParsePrefix("10.9.0.3/24")},
		{"IPv6", true, netip.MustParsePrefix("fd09::2/64"), netip.MustParsePrefix("fd09::3/64")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newScenario(t, 1)
			node := s.Clients[0]
			// Else deleting an interface's first address takes its later ones along.
			if err := node.SetSysctl("net.ipv4.conf.all.promote_secondaries", "1"); err != nil {
				t.Fatal(err)
			}
			s.quiet()
			serverOptions, clientOptions := s.rekeyEvery(15)
			serverOptions.IPv6, clientOptions.IPv6 = tt.ipv6, tt.ipv6
			serverOptions.Management = true
			server := s.startServer(s.exec(s.Server), bench.ServerOptions{Options: serverOptions})
			client := s.startClient(s.exec(node), 0, bench.ClientOptions{Options: clientOptions})
			server4, _ := s.addrs(server)
			s.requirePing(node, server4)

			// Traffic all along.
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			var traffic sync.WaitGroup
			defer traffic.Wait()
			defer stop()
			traffic.Go(func() {
				bench.Ping{Node: node, To: server4, Count: 1 << 16, Interval: 10 * time.Millisecond}.Run(ctx)
			})

			mark := server.Log.Mark()
			if err := node.AddAddr("eth0", tt.new); err != nil {
				t.Fatal(err)
			}
			if err := node.DelAddr("eth0", tt.old); err != nil {
				t.Fatal(err)
			}
			s.waitLog(server, mark, "received CMD_PEER_FLOAT_NTF", 20*time.Second)
			floated := s.waitLog(server, mark, "floated from", 20*time.Second)
			s.requirePing(node, server4)
			client4, _ := s.addrs(client)
			s.requirePing(s.Server, client4)

			// The control channel follows: both ends make new keys and change to them.
			renewed := s.waitLog(server, floated, "dco_new_key", time.Minute)
			s.waitLog(server, renewed, "dco_swap_keys", time.Minute)
			s.requirePing(node, server4)

			m, err := server.Management(ctx)
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			clients, dco, err := m.ServerStatus()
			if err != nil {
				t.Fatal(err)
			}
			if !dco {
				t.Error("the server's status says that its data channel is not offloaded")
			}
			if len(clients) != 1 {
				t.Fatalf("the server has %d clients: %+v", len(clients), clients)
			}
			if real := realAddr(clients[0].RealAddress); real != tt.new.Addr() {
				t.Errorf("the server's status has the client at %s, want %v", clients[0].RealAddress, tt.new.Addr())
			}
			stop()
			traffic.Wait()
			s.stop(client)
			s.stop(server)
			s.requireNoDrops(server, "authentication", "replay", "unknown-key")
		})
	}
}

// realAddr parses the address of a status line, such as "udp4:10.9.0.3:40000" or "[fd09::3]:40000".
func realAddr(text string) netip.Addr {
	for i := range text {
		if addr, err := netip.ParseAddrPort(text[i:]); err == nil {
			return addr.Addr().Unmap()
		}
	}
	return netip.Addr{}
}
