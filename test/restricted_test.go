package test

import (
	"net/netip"
	"testing"

	"ovpn-go/bench"
)

// TestRestrictedUserNamespace is TestRestricted with a client whose container has a user namespace, as rootless Podman's have.
func TestRestrictedUserNamespace(t *testing.T) {
	t.Parallel()
	overBoth(t, func(t *testing.T, tcp bool) {
		t.Parallel()
		s := newScenario(t, 1)
		s.quiet()
		inner := s.startContainer("container")
		outside, inside := netip.MustParsePrefix("10.9.100.1/24"), netip.MustParsePrefix("10.9.100.2/24")
		err := s.Connect(
			bench.End{Node: s.Server, Name: "eth100", Addrs: []netip.Prefix{outside}},
			bench.End{Node: inner.node, Name: "eth0", Addrs: []netip.Prefix{inside}})
		if err != nil {
			t.Fatal(err)
		}
		options := bench.Options{TCP: tcp, Renegotiate: 4}
		server := s.startServer(s.restrictedAt(s.Server, "server", nil), bench.ServerOptions{Options: options})
		options.Keepalive = [2]int{1, 30}
		options.Name = "container"
		rootless := func(c *restricted) { c.Holder = inner.pid }
		client := s.startClient(s.restrictedAt(inner.node, "client", rootless), 0, bench.ClientOptions{
			Options: options, Remote: netip.AddrPortFrom(outside.Addr(), bench.DefaultPort)})
		s.requireWorksRestricted(server, client, false, true)
	})
}

// TestRestricted has OpenVPN at both ends in containers as Docker makes them, with nothing added but the TUN device and
// CAP_NET_ADMIN.
func TestRestricted(t *testing.T) {
	t.Parallel()
	hardened := []string{"process_vm_readv", "process_vm_writev", "ptrace"}
	for _, test := range []struct {
		name           string
		forbidden      []string
		server, client string // programs
		renegotiate    int    // every so many seconds, or never
	}{
		{name: "Docker's profile", renegotiate: 4},
		{name: "no process_vm_readv and no ptrace either", forbidden: hardened, renegotiate: 4},
		{name: "OpenVPN 2.6", server: openvpn26, client: openvpn26, renegotiate: 4},
		{name: "OpenVPN 2.6's client", client: openvpn26},
		{name: "OpenVPN 2.6's server", server: openvpn26},
	} {
		t.Run(test.name, func(t *testing.T) {
			overBoth(t, func(t *testing.T, tcp bool) {
				t.Parallel()
				s := newScenario(t, 1)
				s.quiet()
				harder := func(c *restricted) { c.Forbidden = test.forbidden }
				options := bench.Options{Program: test.server, TCP: tcp, Renegotiate: test.renegotiate}
				server := s.startServer(s.restrictedAt(s.Server, "server", harder), bench.ServerOptions{Options: options})
				options.Program, options.Keepalive = test.client, [2]int{1, 30}
				client := s.startClient(s.restrictedAt(s.Clients[0], "client", harder), 0, bench.ClientOptions{Options: options})
				s.requireWorksRestricted(server, client, test.forbidden != nil, test.renegotiate != 0)
				for tunnel, program := range map[*bench.Tunnel]string{server: test.server, client: test.client} {
					if want := "OpenVPN " + versionOf(program); !tunnel.Log.Contains(want) {
						t.Errorf("%s is not %s", tunnel.Name, want)
					}
				}
			})
		})
	}
}

// requireWorksRestricted checks that the tunnel carries traffic and, where it renews them, is given new keys, by way of what is done
// where a client can't be looked into.
func (s *scenario) requireWorksRestricted(server, client *bench.Tunnel, noMemory, renews bool) {
	s.Helper()
	const transfer = 1 << 20
	server4, _ := s.addrs(server)
	client4, _ := s.addrs(client)
	s.requirePing(client.Node, server4)
	s.requirePing(server.Node, client4)
	s.requireTransfer(client.Node, server.Node, server4, transfer)
	s.requireTransfer(server.Node, client.Node, client4, transfer)
	for _, tunnel := range []*bench.Tunnel{server, client} {
		if kept := records(tunnel, 0, keptMessage); len(kept) != 1 {
			s.Errorf("%s: descriptors could be taken from the client: this is not Docker's profile", tunnel.Name)
		}
		if read := records(tunnel, 0, memoryMessage); len(read) == 1 != noMemory {
			s.Errorf("%s: the client's memory is read as a file: %v, want %v", tunnel.Name, !noMemory, noMemory)
		}
	}
	if renews { // and the tunnel goes on
		s.waitLog(server, server.Log.Mark(), "Control Channel: TLS", upTimeout)
		s.requirePing(client.Node, server4)
	}
	s.stop(client)
	s.stop(server)
	s.requireCarried(client, 1, transfer, transfer)
	s.requireCarried(server, 1, transfer, transfer)
}

// What our program logs where a client can't be looked into.
const (
	keptMessage   = "descriptors can't be taken from the client: its sockets are made here and kept"
	memoryMessage = "the client's memory can't be copied: it is read as a file"
)
