package test

import (
	"fmt"
	"testing"

	"ovpn-go/bench"
)

// openvpn26 is OpenVPN 2.6 in the test root. It speaks the family of the module that came before the kernel's.
const openvpn26 = "/opt/openvpn-2.6/usr/sbin/openvpn"

// TestOpenVPN26 has OpenVPN 2.6 at either end, and at both.
func TestOpenVPN26(t *testing.T) {
	const current = ""
	version := map[string]string{current: "2.7", openvpn26: "2.6"}
	for _, pair := range []struct{ server, client string }{
		{openvpn26, openvpn26}, {openvpn26, current}, {current, openvpn26},
	} {
		for _, tcp := range []bool{false, true} {
			transport := map[bool]string{false: "UDP", true: "TCP"}[tcp]
			t.Run(fmt.Sprintf("server %s, client %s, %s", version[pair.server], version[pair.client], transport), func(t *testing.T) {
				t.Parallel()
				s := newScenario(t, 1)
				s.quiet()
				const transfer = 1 << 20
				server := s.startServer(s.exec(s.Server), bench.ServerOptions{
					Options: bench.Options{Name: "server", Program: pair.server, TCP: tcp, Renegotiate: 4}})
				client := s.startClient(s.exec(s.Clients[0]), 0, bench.ClientOptions{
					Options: bench.Options{Name: "client", Program: pair.client, TCP: tcp, Keepalive: [2]int{1, 30}}})
				for tunnel, program := range map[*bench.Tunnel]string{server: pair.server, client: pair.client} {
					if want := "OpenVPN " + version[program]; !tunnel.Log.Contains(want) {
						t.Fatalf("%s is not %s", tunnel.Name, want)
					}
				}
				server4, _ := s.addrs(server)
				client4, _ := s.addrs(client)
				s.requirePing(s.Clients[0], server4)
				s.requirePing(s.Server, client4)
				s.requireTransfer(s.Clients[0], s.Server, server4, transfer)
				s.requireTransfer(s.Server, s.Clients[0], client4, transfer)
				// New keys, and the tunnel goes on.
				mark := s.waitLog(server, server.Log.Mark(), "Control Channel: TLS", upTimeout)
				s.waitLog(server, mark, "Control Channel: TLS", upTimeout)
				s.requirePing(s.Clients[0], server4)
				s.stop(client)
				s.stop(server)
			})
		}
	}
}
