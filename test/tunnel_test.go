package test

import (
	"net/netip"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"ovpn-go/bench"
)

var (
	ciphers = []string{"AES-256-GCM", "AES-128-GCM", "CHACHA20-POLY1305"}
	pool6   = netip.MustParsePrefix("fd00:8::/64")
)

// TestTunnels runs one server and three clients, all under our program, over every transport and with
// every cipher, and sends IPv4 and IPv6 through them.
func TestTunnels(t *testing.T) {
	const transfer = 4 << 20
	for _, outer := range []struct {
		name      string
		ipv6, tcp bool
		ciphers   []string
		workers   string
	}{
		{"UDP over IPv4", false, false, ciphers, "1"},
		{"UDP over IPv6", true, false, ciphers, "1"},
		{"TCP over IPv4", false, true, ciphers, "1"},
		{"TCP over IPv6", true, true, ciphers[2:], "1"},
		{"UDP, 3 workers", false, false, ciphers[:1], "3"},
		{"TCP, 3 workers", false, true, ciphers[:1], "3"},
	} {
		for _, cipher := range outer.ciphers {
			t.Run(outer.name+"/"+cipher, func(t *testing.T) {
				t.Parallel()
				s := newScenario(t, 3)
				s.prefix = slices.Insert(s.prefix, 2, "--workers", outer.workers)
				if err := s.Server.Forward(); err != nil {
					t.Fatal(err)
				}
				common := bench.Options{IPv6: outer.ipv6, TCP: outer.tcp, Cipher: cipher}
				server := s.startServer(s.exec(s.Server), bench.ServerOptions{Options: common, Pool6: pool6})
				server4, server6 := s.addrs(server)
				var clients []*bench.Tunnel
				for i, node := range s.Clients {
					clients = append(clients, s.launchClient(s.exec(node), i, bench.ClientOptions{Options: common}))
				}
				for i, client := range clients {
					s.waitUp(client, 0)
					s.requireDCO(client, true)
					client4, client6 := s.addrs(client)
					s.requirePing(s.Clients[i], server4)
					s.requirePing(s.Clients[i], server6)
					s.requirePing(s.Server, client4)
					s.requirePing(s.Server, client6)
					s.requireTransfer(s.Clients[i], s.Server, server4, transfer)
					s.requireTransfer(s.Server, s.Clients[i], client6, transfer)
				}
				// Between clients, by way of the server's forwarding.
				other4, _ := s.addrs(clients[1])
				s.requirePing(s.Clients[0], other4)

				for _, client := range clients {
					s.stop(client)
					s.requireCarried(client, 1, transfer, transfer)
					s.requireNoDrops(client, "authentication", "replay")
					if !outer.tcp {
						// A connection keeps what the server sends before the client has its key.
						s.requireNoDrops(client, "unknown-key")
					}
				}
				s.stop(server)
				s.requireCarried(server, len(clients), transfer*3, transfer*3)
				s.requireNoDrops(server, "authentication", "replay", "unknown-key")
			})
		}
	}
}

// TestInteroperability joins our program to an OpenVPN that keeps its data channel to itself.
func TestInteroperability(t *testing.T) {
	for _, tt := range []struct {
		name   string
		cipher string
		ours   string // which side is ours
		tcp    bool
	}{
		{"our server, AES-256-GCM", "AES-256-GCM", "server", false},
		{"our server, CHACHA20-POLY1305", "CHACHA20-POLY1305", "server", false},
		{"our server over TCP", "AES-256-GCM", "server", true},
		{"our client, AES-256-GCM", "AES-256-GCM", "client", false},
		{"our client, AES-128-GCM", "AES-128-GCM", "client", false},
		{"our client over TCP", "AES-256-GCM", "client", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newScenario(t, 1)
			place := func(side string, node *bench.Node) bench.Placement {
				if side == tt.ours {
					return s.exec(node)
				}
				return plain(node)
			}
			server := s.startServer(place("server", s.Server), bench.ServerOptions{
				Options: bench.Options{TCP: tt.tcp, Cipher: tt.cipher, DisableDCO: tt.ours != "server", TLSCrypt: true}, Pool6: pool6})
			client := s.startClient(place("client", s.Clients[0]), 0, bench.ClientOptions{
				Options: bench.Options{TCP: tt.tcp, Cipher: tt.cipher, DisableDCO: tt.ours != "client", TLSCrypt: true}})
			server4, server6 := s.addrs(server)
			client4, client6 := s.addrs(client)
			s.requirePing(s.Clients[0], server4)
			s.requirePing(s.Clients[0], server6)
			s.requirePing(s.Server, client4)
			s.requirePing(s.Server, client6)
			const transfer = 4 << 20
			s.requireTransfer(s.Clients[0], s.Server, server4, transfer)
			s.requireTransfer(s.Server, s.Clients[0], client4, transfer)

			s.stop(client)
			s.stop(server)
			ours := map[string]*bench.Tunnel{"server": server, "client": client}[tt.ours]
			s.requireCarried(ours, 1, transfer, transfer)
			s.requireNoDrops(ours, "authentication", "replay", "unknown-key")
		})
	}
}

// TestTunnelWithoutOffloads has both ends where the TUN driver refuses TUNSETOFFLOAD.
func TestTunnelWithoutOffloads(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := newScenario(t, 1)
	refused := handicap{Deny: []denial{deny(unix.SYS_IOCTL, unix.EINVAL).where(1, unix.TUNSETOFFLOAD)}}
	s.prefix = append([]string{"/usr/bin/env", refused.variable(t), self}, s.prefix...)
	server := s.startServer(s.exec(s.Server), bench.ServerOptions{Pool6: pool6})
	client := s.startClient(s.exec(s.Clients[0]), 0, bench.ClientOptions{})
	server4, _ := s.addrs(server)
	_, client6 := s.addrs(client)
	const transfer = 4 << 20
	s.requireTransfer(s.Clients[0], s.Server, server4, transfer)
	s.requireTransfer(s.Server, s.Clients[0], client6, transfer)
	s.stop(client)
	s.stop(server)
	for _, tunnel := range []*bench.Tunnel{server, client} {
		s.requireCarried(tunnel, 1, transfer, transfer)
		s.requireNoDrops(tunnel, "authentication", "replay")
		for _, r := range records(tunnel, 0, "device removed") {
			// Keepalives were not read from the interface.
			if r.number("tx_packets") > 2*r.number("tun_reads") {
				t.Errorf("%s: super-frames were read: %v", tunnel.Name, r)
			}
		}
	}
}
