package test

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"ovpn-go/bench"
	"ovpn-go/bench/benchtest"
)

// openvpn3Root returns the tree with openvpn3-linux, which is built first if there is none.
var openvpn3Root = sync.OnceValues(func() (string, error) {
	root := cmp.Or(os.Getenv("OVPN_GO_OPENVPN3"), "/var/cache/ovpn-go/openvpn3")
	out, err := exec.Command("openvpn3/build.sh", root).CombinedOutput()
	if err != nil {
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		return "", fmt.Errorf("test/openvpn3/build.sh %s: %w: %s", root, err, lines[len(lines)-1])
	}
	return root, nil
})

// TestOpenVPN3 has openvpn3-linux for a client, unmodified: a D-Bus daemon of its own and the services that this starts, each as
// the user and with the rights that it is meant to have. One of them owns the connection to the server, another, which gets it over
// D-Bus, adds the peer and the keys. Its UDP socket is a connected one.
func TestOpenVPN3(t *testing.T) {
	overBoth(t, func(t *testing.T, tcp bool) {
		t.Parallel()
		s := newScenario(t, 1)
		s.quiet()
		const transfer = 1 << 20
		server := s.startServer(s.exec(s.Server), bench.ServerOptions{
			Options: bench.Options{TCP: tcp}})
		client := s.startOpenVPN3(s.Clients[0], tcp)
		client.run("session-start", "--config", "tunnel")
		if list := client.run("sessions-list"); !strings.Contains(list, "-dco:") {
			t.Errorf("the session does not use the device:\n%s", list)
		}
		server4, _ := s.addrs(server)
		s.requirePing(s.Clients[0], server4)
		client4 := netip.MustParseAddr("10.8.0.2")
		s.requirePing(s.Server, client4)
		s.requireTransfer(s.Clients[0], s.Server, server4, transfer)
		s.requireTransfer(s.Server, s.Clients[0], client4, transfer)
		// New keys, and the tunnel goes on.
		s.waitLog(client.Tunnel, 0, "swap-keys", upTimeout)
		s.requirePing(s.Clients[0], server4)
		s.requirePing(s.Server, client4)
		client.run("session-manage", "--config", "tunnel", "--disconnect")
		if has, err := s.Clients[0].HasLink("tun"); err != nil || has {
			t.Errorf("the session has ended and its interface is still there (%v)", err)
		}
		s.requireCarried(client.Tunnel, 1, transfer, transfer)
		s.stop(client.Tunnel)
		s.stop(server)
	})
}

// openvpn3 is openvpn3-linux under our program: the process is the D-Bus daemon.
type openvpn3 struct {
	*scenario
	*bench.Tunnel
	launcher *bench.Launcher
}

// startOpenVPN3 starts the D-Bus daemon on a node and imports the profile "tunnel" for the scenario's server.
func (s *scenario) startOpenVPN3(node *bench.Node, tcp bool) *openvpn3 {
	s.Helper()
	root, err := openvpn3Root()
	if err != nil {
		benchtest.Missing(s.T, err.Error())
	}
	launcher, err := bench.NewLauncher(root)
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() {
		if err := launcher.Close(); err != nil {
			s.Error(err)
		}
	})
	// What the services keep is in this daemon's mount namespace only.
	const mounts = `root=$1; shift
		mount -t tmpfs -o mode=755 run $root/run && mkdir $root/run/dbus &&
		cp -a $root/var/lib/openvpn3 $root/run/state && mount --bind $root/run/state $root/var/lib/openvpn3 &&
		exec "$@"`
	prefix := append([]string{"unshare", "--mount", "sh", "-c", mounts, "sh", root}, s.prefix...)
	prefix[slices.Index(prefix, "info")] = "debug"
	process, err := launcher.Start(bench.Command{
		Node: node, Prefix: prefix,
		Args: []string{"dbus-daemon", "--system", "--nofork", "--nopidfile", "--nosyslog", "--print-address=1"},
	})
	if err != nil {
		s.Fatal(err)
	}
	client := &openvpn3{s, &bench.Tunnel{Process: process, Node: node, Name: "openvpn3"}, launcher}
	s.tunnels = append(s.tunnels, client.Tunnel)
	s.waitLog(client.Tunnel, 0, "unix:path=", upTimeout)

	cred, err := s.PKI.Client("client")
	if err != nil {
		s.Fatal(err)
	}
	transport := "udp"
	if tcp {
		transport = "tcp-client"
	}
	// The client sends with a new key from half of its time on.
	profile := fmt.Sprintf("client\ndev tun\nnobind\nremote %v %d %s\nremote-cert-tls server\nreneg-sec 6\n<ca>\n%s</ca>\n<cert>\n%s</cert>\n<key>\n%s</key>\n",
		s.ServerAddr4(0), bench.DefaultPort, transport, s.PKI.CA, cred.Cert, cred.Key)
	path, err := launcher.WriteFile("client.ovpn", []byte(profile), 0o644)
	if err != nil {
		s.Fatal(err)
	}
	client.run("config-import", "--config", path, "--name", "tunnel")
	client.run("config-manage", "--config", "tunnel", "--dco", "true")
	return client
}

// run runs a command of openvpn3-linux's own, which must succeed, and returns what it prints.
func (c *openvpn3) run(args ...string) string {
	c.Helper()
	process, err := c.launcher.Start(bench.Command{
		Node:   c.Node,
		Prefix: []string{"nsenter", "--target", fmt.Sprint(c.PID()), "--mount", "--"},
		Args:   append([]string{"openvpn3"}, args...),
	})
	if err != nil {
		c.Fatal(err)
	}
	code, err := process.Wait()
	if err == nil && code != 0 {
		err = errors.New(process.Log.Tail(20))
	}
	if err != nil {
		c.Fatalf("openvpn3 %s: %v", strings.Join(args, " "), err)
	}
	return process.Log.Tail(50)
}
