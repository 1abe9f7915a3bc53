package test

import (
	"regexp"
	"testing"
	"time"

	"ovpn-go/bench"
)

// keySwapped matches OpenVPN's own report, at verb 6, that it told the device to swap keys.
var keySwapped = regexp.MustCompile(`dco_swap_keys`)

// keysNegotiated is its report, at any verbosity, that a handshake is complete, and negotiated matches it.
const keysNegotiated = "Control Channel: TLSv1"

var negotiated = regexp.MustCompile(keysNegotiated)

// rekeyEvery returns options for a session whose keys are renewed every so many seconds, and in whose
// log each renewal shows.
//
// With lifetimes as short as a test wants them, OpenVPN itself loses packets unless it is helped: it
// changes to a new key half a lifetime after it was made, but only looks at the clock when something
// wakes it, and it deletes the old key when the next renewal begins. If nothing wakes it in between,
// both ends change and delete in the same instant, and what is under way arrives without its key; with the
// kernel's module at both ends just as with us. So
// the client writes its status every second, which wakes it, and leaves it to the server to begin.
func (s *scenario) rekeyEvery(seconds int) (server, client bench.Options) {
	server = bench.Options{Renegotiate: seconds, Verb: 6}
	client = bench.Options{Renegotiate: seconds + 2, Verb: 6}
	client.Extra = []string{"status " + s.Inside("client.status") + " 1"}
	return server, client
}

// TestRekey renews the keys every ten seconds for a minute under a thousand packets a second each
// way, and expects nobody to notice.
func TestRekey(t *testing.T) {
	const (
		lifetime = 10 // seconds
		duration = time.Minute
		renewals = 4 // at least; the first key's life begins with the handshake
	)
	s := newScenario(t, 1)
	s.quiet()
	serverOptions, clientOptions := s.rekeyEvery(lifetime)
	server := s.startServer(s.exec(s.Server), bench.ServerOptions{Options: serverOptions})
	client := s.startClient(s.exec(s.Clients[0]), 0, bench.ClientOptions{Options: clientOptions})
	server4, _ := s.addrs(server)
	s.awaitPing(s.Clients[0], server4)

	r := s.ping(bench.Ping{
		Node: s.Clients[0], To: server4, Interval: time.Millisecond, Duration: duration, Wait: 5 * time.Second,
	})
	t.Logf("%d pings, median %v, p99 %v", r.Sent, r.Median, r.P99)
	if r.Lost() != 0 || r.Duplicates != 0 || r.Refused != 0 {
		t.Errorf("of %d pings %d were lost, %d came twice, %d could not be sent; missing: %v",
			r.Sent, r.Lost(), r.Duplicates, r.Refused, r.Missing[:min(len(r.Missing), 20)])
	}
	if want := int(duration/time.Millisecond) * 9 / 10; r.Sent < want {
		t.Errorf("only %d pings were sent, expected at least %d", r.Sent, want)
	}
	for _, tunnel := range []*bench.Tunnel{server, client} {
		if n := len(tunnel.Log.Match(0, keySwapped)); n < renewals {
			t.Errorf("%s swapped keys %d times, expected at least %d", tunnel.Name, n, renewals)
		}
	}
	s.stop(client)
	s.stop(server)
	for _, tunnel := range []*bench.Tunnel{server, client} {
		s.requireNoDrops(tunnel, "replay", "unknown-key", "authentication", "no-key", "link")
		s.requireCarried(tunnel, 1, uint64(r.Sent*r.PacketSize), uint64(r.Sent*r.PacketSize))
	}
}
