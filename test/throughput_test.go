package test

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"ovpn-go/bench"
)

// TestThroughput compares one TCP stream through a tunnel of ours with the same through OpenVPN's own
// data channel. Both tunnels stand side by side between the same two namespaces and take turns, so
// that whatever else the machine does meets both.
func TestThroughput(t *testing.T) {
	const (
		rounds = 5
		least  = 3.0
	)
	s := newScenarioWith(t, 1, plainBinary)
	const otherPort = bench.DefaultPort + 1
	ours := s.startServer(s.exec(s.Server), bench.ServerOptions{})
	s.startClient(s.exec(s.Clients[0]), 0, bench.ClientOptions{})
	theirs := s.startServer(plain(s.Server), bench.ServerOptions{
		Options: bench.Options{Name: "plain-server", DisableDCO: true}, Port: otherPort,
		Pool4: netip.MustParsePrefix("10.88.0.0/24")})
	s.startClient(plain(s.Clients[0]), 0, bench.ClientOptions{
		Options: bench.Options{Name: "plain-client", DisableDCO: true},
		Remote:  netip.AddrPortFrom(s.ServerAddr4(0), otherPort)})

	var ratios []float64
	for range rounds {
		a := s.throughput(ours)
		b := s.throughput(theirs)
		ratios = append(ratios, a/b)
		t.Logf("ours %.2f Gbit/s, OpenVPN's %.2f Gbit/s, ratio %.1f", a/1e9, b/1e9, a/b)
	}
	slices.Sort(ratios)
	if median := ratios[len(ratios)/2]; median < least {
		t.Errorf("median ratio %.2f, expected at least %.1f", median, least)
	}
}

func (s *scenario) throughput(server *bench.Tunnel) float64 {
	s.Helper()
	addr, _ := s.addrs(server)
	bits, err := bench.Throughput{
		From: s.Clients[0], To: s.Server, Addr: addr, Duration: 1500 * time.Millisecond,
	}.Run(s.Context())
	if err != nil {
		s.Fatal(err)
	}
	return bits
}
