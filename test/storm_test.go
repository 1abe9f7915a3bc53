package test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/bench"
)

// stormVariable says how many clients TestManyGoAtOnce has, over each transport; `make storm` sets it.
const stormVariable = "OVPN_GO_TEST_STORM"

const stormClients = 60 // where the variable doesn't say

// TestManyGoAtOnce: a server loses half of its clients at once while it does not read what it is told, and then its interface, and with it
// the others. OpenVPN must hear of each, once, and know the same clients as the device then.
func TestManyGoAtOnce(t *testing.T) { overBoth(t, testManyGoAtOnce) }

func testManyGoAtOnce(t *testing.T, tcp bool) {
	t.Parallel()
	clients := stormClients
	if text := os.Getenv(stormVariable); text != "" {
		var err error
		if clients, err = strconv.Atoi(text); err != nil {
			t.Fatalf("%s: %v", stormVariable, err)
		}
	}
	d := startDaemon(t, plainBinary)
	s := &storm{scenario: d.scenario(1), daemon: d}
	s.quiet()
	before := held(t, d.cmd.Process.Pid, d.pprof)
	options := bench.Options{TCP: tcp, Keepalive: [2]int{1, 7}, Management: true}
	s.server = s.startServer(s.exec(s.Server), bench.ServerOptions{Options: options, Pool4: netip.MustParsePrefix("10.8.0.0/16")})
	var err error
	if s.name, _, err = s.server.Device(); err != nil {
		t.Fatal(err)
	}
	if s.management, err = s.server.Management(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer s.management.Close()

	// They need not carry anything, so they have no interface.
	options = bench.Options{TCP: tcp, DisableDCO: true, Verb: 1, Extra: []string{"dev null", "ifconfig-noexec", "route-noexec"}}
	start := time.Now()
	var all []*bench.Tunnel
	for i := range clients {
		options.Name = fmt.Sprintf("client%d", i+1)
		all = append(all, s.launchClient(plain(s.Clients[0]), 0, bench.ClientOptions{Options: options}))
	}
	s.tunnels = s.tunnels[:1]
	s.requireAgreed(clients)
	t.Logf("%d clients are connected after %v", clients, time.Since(start))

	mark := s.server.Log.Mark()
	pid := s.openvpnPID(s.server)
	s.signal(pid, unix.SIGSTOP)
	for _, client := range all[:clients/2] {
		client.Kill()
	}
	eventually(t, 90*time.Second, "the peers to expire", func() bool { return len(s.peers()) == clients-clients/2 })
	s.signal(pid, unix.SIGCONT)
	s.requireAgreed(clients - clients/2)
	if !tcp { // over TCP it may see the end of a connection first
		s.requireTold(mark, "ping expired", clients/2)
	}

	mark = s.server.Log.Mark()
	for _, client := range all[clients/2:] {
		client.Kill()
	}
	if !tcp { // over TCP the ends of the connections have OpenVPN ask for counters, and without an interface it ends then
		if err := s.Server.DelLink(s.name); err != nil {
			t.Fatal(err)
		}
	}
	s.requireAgreed(0)
	if !tcp {
		s.requireTold(mark, "unknown reason", clients-clients/2) // which is its word for a teardown
	}
	s.stop(s.server)
	requireHeld(t, d.cmd.Process.Pid, d.pprof, before)
}

// A storm is a server with many clients.
type storm struct {
	*scenario
	daemon     *daemonProcess
	server     *bench.Tunnel
	management *bench.Management
	name       string // of its interface
}

// requireTold checks how often OpenVPN has ended a client's instance since the mark for what it was told of its peer.
func (s *storm) requireTold(mark int, reason string, want int) {
	s.Helper()
	if got := len(s.server.Log.Match(mark, regexp.MustCompile("ovpn-dco: "+reason))); got != want {
		s.Errorf("OpenVPN has ended %d clients for %q, want %d", got, reason, want)
	}
}

func (s *storm) signal(pid int, sig unix.Signal) {
	s.Helper()
	if err := unix.Kill(pid, sig); err != nil {
		s.Fatal(err)
	}
}

// peers lists the ids of the device's peers. There are none if it is gone.
func (s *storm) peers() (ids []int) {
	s.Helper()
	if has, err := s.Server.HasLink(s.name); err != nil || !has {
		return nil
	}
	out, err := s.daemon.run(s.Server, "peer", "show", s.name, "--json")
	var shown []shownPeer
	if err := errors.Join(err, json.Unmarshal([]byte(out), &shown)); err != nil {
		s.Fatalf("%v\n%s", err, out)
	}
	for _, p := range shown {
		ids = append(ids, int(p.ID))
	}
	slices.Sort(ids)
	return ids
}

// requireAgreed waits until OpenVPN has as many clients and the device the same peers.
func (s *storm) requireAgreed(want int) {
	s.Helper()
	var openvpn, device []int
	for deadline := time.Now().Add(90 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		clients, _, err := s.management.ServerStatus()
		if err != nil {
			s.Fatal(err)
		}
		openvpn = nil
		for _, c := range clients {
			id, err := strconv.Atoi(c.PeerID)
			if err != nil {
				s.Fatalf("peer id of %+v: %v", c, err)
			}
			openvpn = append(openvpn, id)
		}
		slices.Sort(openvpn)
		device = s.peers()
		if len(openvpn) == want && slices.Equal(openvpn, device) {
			return
		}
		if time.Now().After(deadline) {
			s.Fatalf("OpenVPN has the clients %d, the device the peers %d, want %d", openvpn, device, want)
		}
	}
}
