package test

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"ovpn-go/bench"
	"ovpn-go/bench/benchtest"
)

// Bounds on what should take moments; they only matter when something is broken, or the machine is
// very busy.
const (
	upTimeout   = 40 * time.Second
	pingTimeout = 30 * time.Second
)

// A scenario is a star of namespaces with OpenVPN in them, each process under `ovpn-go exec` unless
// it is started plain.
type scenario struct {
	*testing.T
	*bench.Star
	*bench.Lab
	prefix  []string
	tunnels []*bench.Tunnel
}

// newScenario makes the namespaces and builds the program. When the test ends, every tunnel is
// stopped, clients first, and what must hold for any of them is checked.
func newScenario(t *testing.T, clients int) *scenario {
	t.Helper()
	return newScenarioWith(t, clients, raceBinary)
}

func newScenarioWith(t *testing.T, clients int, build func() (string, error)) *scenario {
	t.Helper()
	found := requireOpenVPN(t)
	binary, err := build()
	if err != nil {
		t.Fatal(err)
	}
	s := &scenario{T: t, Star: benchtest.Star(t, clients)}
	s.prefix = []string{binary, "exec", "--datapath", "userspace", "--log-level", "info", "--"}
	if s.Lab, err = bench.NewLab(found); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.stopAll()
		if err := s.Lab.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// ownError matches what our program logs when something is wrong with itself.
var ownError = regexp.MustCompile(`^time=\S+ level=ERROR .*`)

// stopAll ends what still runs, in reverse order of starting, and shows the logs of a failed test.
func (s *scenario) stopAll() {
	for i := len(s.tunnels) - 1; i >= 0; i-- {
		s.stop(s.tunnels[i])
	}
	for _, tunnel := range s.tunnels {
		if tunnel.Log.Contains("DATA RACE") {
			s.Errorf("%s: the race detector has something to say", tunnel.Name)
		}
		for _, m := range tunnel.Log.Match(0, ownError) {
			s.Errorf("%s: %s", tunnel.Name, m[0])
		}
		if s.Failed() {
			s.Logf("--- %s\n%s", tunnel.Name, tunnel.Log.Tail(60))
		}
	}
}

// stop ends a tunnel in the orderly way, if it has not ended already, and checks that its interface
// is gone and that it exits with 0.
func (s *scenario) stop(tunnel *bench.Tunnel) {
	s.Helper()
	select {
	case <-tunnel.Done():
		return
	default:
	}
	if err := tunnel.Stop(); err != nil {
		s.Error(err)
		return
	}
	if code, err := tunnel.Wait(); err != nil || code != 0 {
		s.Errorf("%s: exit code %d, %v", tunnel.Name, code, err)
	}
	s.requireGone(tunnel)
}

// quiet keeps IPv6 off the tunnels' interfaces, so that nothing but what the test sends enters them:
// an interface that comes up with IPv6 announces itself before there is a key, or even a peer.
func (s *scenario) quiet() {
	s.Helper()
	for _, node := range append([]*bench.Node{s.Server}, s.Clients...) {
		if err := node.DisableIPv6(); err != nil {
			s.Fatal(err)
		}
	}
}

// requireGone checks that the tunnel's interface does not exist any more.
func (s *scenario) requireGone(tunnel *bench.Tunnel) {
	s.Helper()
	name, _, err := tunnel.Device()
	if err != nil {
		return // it never had one
	}
	if has, err := tunnel.Node.HasLink(name); err != nil || has {
		s.Errorf("%s has ended and its interface %s is still there (%v)", tunnel.Name, name, err)
	}
}

// exec places a process on a node under our program; plain leaves our program out.
func (s *scenario) exec(node *bench.Node) bench.Placement {
	return bench.Placement{Node: node, Prefix: s.prefix}
}

func plain(node *bench.Node) bench.Placement { return bench.Placement{Node: node} }

func (s *scenario) startServer(at bench.Placement, o bench.ServerOptions) *bench.Tunnel {
	s.Helper()
	if o.Name == "" {
		o.Name = "server"
	}
	if o.Keepalive == [2]int{} {
		o.Keepalive = [2]int{2, 20}
	}
	tunnel, err := s.StartServer(at, o)
	if err != nil {
		s.Fatal(err)
	}
	s.tunnels = append(s.tunnels, tunnel)
	s.waitUp(tunnel, 0)
	s.requireDCO(tunnel, !o.DisableDCO && at.Prefix != nil)
	return tunnel
}

// launchClient starts client i without waiting for it.
func (s *scenario) launchClient(at bench.Placement, i int, o bench.ClientOptions) *bench.Tunnel {
	s.Helper()
	if o.Name == "" {
		o.Name = fmt.Sprintf("client%d", i+1)
	}
	if !o.Remote.IsValid() {
		addr := s.ServerAddr4(i)
		if o.IPv6 {
			addr = s.ServerAddr6(i)
		}
		o.Remote = netip.AddrPortFrom(addr, bench.DefaultPort)
	}
	tunnel, err := s.StartClient(at, o)
	if err != nil {
		s.Fatal(err)
	}
	s.tunnels = append(s.tunnels, tunnel)
	return tunnel
}

func (s *scenario) startClient(at bench.Placement, i int, o bench.ClientOptions) *bench.Tunnel {
	s.Helper()
	tunnel := s.launchClient(at, i, o)
	s.waitUp(tunnel, 0)
	s.requireDCO(tunnel, !o.DisableDCO && at.Prefix != nil)
	return tunnel
}

// waitUp waits until the tunnel came up after the mark.
func (s *scenario) waitUp(tunnel *bench.Tunnel, mark int) {
	s.Helper()
	s.waitLog(tunnel, mark, bench.Initialized, upTimeout)
}

// waitLog waits for a line at or after the mark and returns the mark behind it.
func (s *scenario) waitLog(tunnel *bench.Tunnel, mark int, text string, timeout time.Duration) int {
	s.Helper()
	next, err := tunnel.WaitLog(s.Context(), mark, text, timeout)
	if err != nil {
		s.Fatal(err)
	}
	return next
}

// requireDCO checks that OpenVPN itself says whether its data channel is offloaded.
func (s *scenario) requireDCO(tunnel *bench.Tunnel, want bool) {
	s.Helper()
	name, dco, err := tunnel.Device()
	if err != nil {
		s.Fatal(err)
	}
	if dco != want {
		s.Fatalf("%s: interface %s: data channel offloaded: %v, want %v\n%s", tunnel.Name, name, dco, want, tunnel.Log.Tail(60))
	}
	if want && tunnel.Log.Contains("disabling data channel offload") {
		s.Fatalf("%s disables data channel offload:\n%s", tunnel.Name, tunnel.Log.Tail(60))
	}
}

// openvpnPID returns the process id of the tunnel's OpenVPN.
func (s *scenario) openvpnPID(tunnel *bench.Tunnel) int {
	s.Helper()
	pid, err := tunnel.OpenVPNPID()
	if err != nil {
		s.Fatal(err)
	}
	return pid
}

// addrs returns the addresses of the tunnel's interface.
func (s *scenario) addrs(tunnel *bench.Tunnel) (v4, v6 netip.Addr) {
	s.Helper()
	v4, v6, err := tunnel.VPNAddrs()
	if err != nil {
		s.Fatal(err)
	}
	return v4, v6
}

// requirePing pings and, once the tunnel works, tolerates no loss.
func (s *scenario) requirePing(from *bench.Node, to netip.Addr) {
	s.Helper()
	// OpenVPN's server may install its key a second after its client says that all is up, over TCP above all.
	s.awaitPing(from, to)
	r := s.ping(bench.Ping{Node: from, To: to, Count: 5, Interval: 20 * time.Millisecond, Wait: 5 * time.Second})
	if r.Lost() != 0 || r.Duplicates != 0 {
		s.Errorf("ping %v from %s: %+v", to, from.Name, r)
	}
}

func (s *scenario) ping(p bench.Ping) bench.PingResult {
	s.Helper()
	r, err := p.Run(s.Context())
	if err != nil {
		s.Fatal(err)
	}
	return r
}

// awaitPing pings until an answer comes.
func (s *scenario) awaitPing(from *bench.Node, to netip.Addr) {
	s.Helper()
	deadline := time.Now().Add(pingTimeout)
	for {
		r := s.ping(bench.Ping{Node: from, To: to, Count: 1, Wait: 500 * time.Millisecond})
		if r.Received > 0 {
			return
		}
		if time.Now().After(deadline) {
			s.Fatalf("ping %v from %s: no answer within %v", to, from.Name, pingTimeout)
		}
	}
}

// requireTransfer sends bytes over TCP and checks that they arrive as they were.
func (s *scenario) requireTransfer(from, to *bench.Node, addr netip.Addr, bytes int64) {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), time.Minute)
	defer cancel()
	if err := (bench.Transfer{From: from, To: to, Addr: addr, Bytes: bytes}).Run(ctx); err != nil {
		s.Errorf("from %s: %v", from.Name, err)
	}
}

// A record is one line of the program's own log, by key.
type record map[string]string

// number returns a value as a number; a key that is missing is 0.
func (r record) number(key string) uint64 {
	n, _ := strconv.ParseUint(r[key], 10, 64)
	return n
}

var logPair = regexp.MustCompile(`(\w+)=("(?:[^"\\]|\\.)*"|\S*)`)

// records returns the lines that our program logged with a message, from the mark on.
func records(tunnel *bench.Tunnel, mark int, message string) []record {
	var all []record
	for _, m := range tunnel.Log.Match(mark, recordLine(message)) {
		all = append(all, parseRecord(m[0]))
	}
	return all
}

// recordLine matches a line that our program logs with a message.
func recordLine(message string) *regexp.Regexp {
	return regexp.MustCompile(`(?m)^time=\S+ level=\S+ msg=` + regexp.QuoteMeta(strconv.Quote(message)) + `.*`)
}

func parseRecord(line string) record {
	r := record{}
	for _, pair := range logPair.FindAllStringSubmatch(line, -1) {
		value := pair[2]
		if unquoted, err := strconv.Unquote(value); err == nil {
			value = unquoted
		}
		r[pair[1]] = value
	}
	return r
}

// requireCarried checks, by what our program logged when the tunnel's peers were removed, that it
// carried at least so many bytes of inner packets each way.
func (s *scenario) requireCarried(tunnel *bench.Tunnel, peers int, rx, tx uint64) {
	s.Helper()
	removed := records(tunnel, 0, "peer removed")
	if len(removed) < peers {
		s.Errorf("%s: %d of %d peers were removed by our program", tunnel.Name, len(removed), peers)
	}
	var sumRx, sumTx uint64
	for _, r := range removed {
		sumRx += r.number("vpn_rx_bytes")
		sumTx += r.number("vpn_tx_bytes")
	}
	if sumRx < rx || sumTx < tx {
		s.Errorf("%s: our program carried %d bytes in and %d out, expected at least %d and %d",
			tunnel.Name, sumRx, sumTx, rx, tx)
	}
}

// requireNoDrops checks that no device of the tunnel dropped a packet for one of the reasons.
func (s *scenario) requireNoDrops(tunnel *bench.Tunnel, reasons ...string) {
	s.Helper()
	removed := records(tunnel, 0, "device removed")
	if len(removed) == 0 {
		s.Errorf("%s: no device was removed by our program", tunnel.Name)
	}
	for _, r := range removed {
		for _, reason := range reasons {
			if strings.Contains(r["drops"], reason+":") {
				s.Errorf("%s: drops %s", tunnel.Name, r["drops"])
			}
		}
	}
}

// overBoth runs a test with the tunnels over UDP and over TCP.
func overBoth(t *testing.T, test func(t *testing.T, tcp bool)) {
	t.Run("UDP", func(t *testing.T) { test(t, false) })
	t.Run("TCP", func(t *testing.T) { test(t, true) })
}
