package test

import (
	"fmt"
	"net/netip"
	"testing"

	"ovpn-go/bench"
)

// openvpn26 is OpenVPN 2.6 in the test root. It speaks the family of the module that came before the kernel's.
const openvpn26 = "/opt/openvpn-2.6/usr/sbin/openvpn"

// TestPairings has OpenVPN 2.7 and 2.6 at either end of a tunnel, in every combination: in namespaces that root made, where 2.6
// renews its keys as well; in those of unprivileged containers, where the kernel's module would refuse both ends; and with one daemon for
// both ends.
func TestPairings(t *testing.T) {
	const current = ""
	for _, pair := range []struct{ server, client string }{
		{current, current}, {current, openvpn26}, {openvpn26, current}, {openvpn26, openvpn26},
	} {
		old := pair.server == openvpn26 || pair.client == openvpn26
		for _, row := range []struct {
			place string
			tcp   bool
			run   func(*testing.T, pairing)
		}{
			{"privileged", false, privilegedPair},
			{"privileged", true, privilegedPair},
			{"containers", false, containedPair},
			{"containers", true, containedPair},
			{"daemon", false, daemonPair},
		} {
			if row.tcp && row.place == "containers" && pair.server == pair.client {
				continue // over TCP the place makes no difference that the others would not show
			}
			transport := map[bool]string{false: "UDP", true: "TCP"}[row.tcp]
			t.Run(fmt.Sprintf("server %s, client %s, %s, %s", versionOf(pair.server), versionOf(pair.client), row.place, transport), func(t *testing.T) {
				t.Parallel()
				row.run(t, pairing{pair.server, pair.client, row.tcp, old})
			})
		}
	}
}

// A pairing is two OpenVPN programs, as in bench.Options.Program, and what is between them.
type pairing struct {
	server, client string
	tcp            bool
	renew          bool // where there is time for it
}

func versionOf(program string) string {
	if program == openvpn26 {
		return "2.6"
	}
	return "2.7"
}

// pairTransfer is what passes through the tunnel of a pairing in each direction, in bytes.
const pairTransfer = 1 << 20

// privilegedPair joins the server and the first client of the star.
func privilegedPair(t *testing.T, p pairing) {
	s := newScenario(t, 1)
	s.quiet()
	renegotiate := 0
	if p.renew {
		renegotiate = 4
	}
	server, client := s.startPair(s.exec(s.Server), s.exec(s.Clients[0]), netip.Addr{}, p, renegotiate)
	if p.renew {
		mark := s.waitLog(server, server.Log.Mark(), "Control Channel: TLS", upTimeout)
		s.waitLog(server, mark, "Control Channel: TLS", upTimeout)
		server4, _ := s.addrs(server)
		s.requirePing(s.Clients[0], server4)
	}
	s.stopPair(server, client)
}

// containedPair joins two containers.
func containedPair(t *testing.T, p pairing) {
	s := newScenario(t, 0)
	ends := [2]container{s.startContainer("server"), s.startContainer("client")}
	addrs := [2]netip.Prefix{netip.MustParsePrefix("10.9.100.1/24"), netip.MustParsePrefix("10.9.100.2/24")}
	var veth [2]bench.End
	for i, c := range ends {
		veth[i] = bench.End{Node: c.node, Name: "eth0", Addrs: addrs[i : i+1]}
	}
	if err := s.Connect(veth[0], veth[1]); err != nil {
		s.Fatal(err)
	}
	server, client := s.startPair(s.contain(ends[0]), s.contain(ends[1]), addrs[0].Addr(), p, 0)
	s.stopPair(server, client)
}

// daemonPair joins the server and the first client of the star, whose devices are one daemon's.
func daemonPair(t *testing.T, p pairing) {
	d := startDaemon(t, raceBinary)
	s := d.scenario(1)
	server, client := s.startPair(s.exec(s.Server), s.exec(s.Clients[0]), netip.Addr{}, p, 0)
	for _, tunnel := range []*bench.Tunnel{server, client} {
		d.mustRun(tunnel.Node, "1 peer", "show")
	}
	s.stop(client)
	s.stop(server)
}

// startPair starts both ends and sends through the tunnel. The client connects to the remote address, or as usual if that is invalid.
func (s *scenario) startPair(serverAt, clientAt bench.Placement, remote netip.Addr, p pairing, renegotiate int) (server, client *bench.Tunnel) {
	s.Helper()
	server = s.startServer(serverAt, bench.ServerOptions{
		Options: bench.Options{Program: p.server, TCP: p.tcp, Renegotiate: renegotiate}})
	options := bench.ClientOptions{
		Options: bench.Options{Name: "client", Program: p.client, TCP: p.tcp, Keepalive: [2]int{1, 30}}}
	if remote.IsValid() {
		options.Remote = netip.AddrPortFrom(remote, bench.DefaultPort)
	}
	client = s.startClient(clientAt, 0, options)
	for tunnel, program := range map[*bench.Tunnel]string{server: p.server, client: p.client} {
		if want := "OpenVPN " + versionOf(program); !tunnel.Log.Contains(want) {
			s.Fatalf("%s is not %s", tunnel.Name, want)
		}
	}
	server4, _ := s.addrs(server)
	client4, _ := s.addrs(client)
	s.requirePing(client.Node, server4)
	s.requirePing(server.Node, client4)
	s.requireTransfer(client.Node, server.Node, server4, pairTransfer)
	s.requireTransfer(server.Node, client.Node, client4, pairTransfer)
	return server, client
}

// stopPair ends both ends, of which each must have carried what was sent.
func (s *scenario) stopPair(server, client *bench.Tunnel) {
	s.Helper()
	s.stop(client)
	s.stop(server)
	for _, tunnel := range []*bench.Tunnel{server, client} {
		s.requireCarried(tunnel, 1, pairTransfer, pairTransfer)
	}
}
