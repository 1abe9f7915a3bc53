package test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"ovpn-go/bench"
)

// TestLossyPathUDP has datagrams of a tunnel lost, doubled, delayed, altered and cut, from the first one on, while keys are renewed. What goes
// through the tunnel arrives unaltered and no packet twice. Then the path is dead for long enough that both ends give up, and then as good
// as any.
func TestLossyPathUDP(t *testing.T) {
	t.Parallel()
	const transfer = 128 << 10
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	l := newLossyTunnel(t, bench.Options{Renegotiate: 5})
	path := newUDPPath(t, l.newPathNode(), seed)
	part := func(least float64) float64 { return least + 0.03*path.random.Float64() }
	faults := pathFaults{lose: part(0.01), double: part(0.01), delay: part(0.05), alter: part(0.01), cut: part(0.01)}
	t.Logf("%+v", faults)
	path.suffer(faults)
	l.connect()

	pings := make(chan bench.PingResult, 1)
	traffic := bench.Ping{Node: l.Clients[0], To: l.server4, Interval: 10 * time.Millisecond, Duration: 8 * time.Second, Wait: 2 * time.Second}
	go func() {
		r, err := traffic.Run(t.Context())
		if err != nil {
			t.Error(err)
		}
		pings <- r
	}()
	mark := l.client.Log.Mark()
	l.requireTransfer(l.Clients[0], l.Server, l.server4, transfer)
	l.requireTransfer(l.Server, l.Clients[0], l.client4, transfer)
	mark = l.waitLog(l.client, mark, keysNegotiated, upTimeout)
	r := <-pings
	if r.Duplicates != 0 || r.Lost() == 0 || r.Received == 0 {
		t.Errorf("of %d pings %d were answered, %d twice: want some lost and none twice", r.Sent, r.Received, r.Duplicates)
	}

	path.suffer(pathFaults{})
	l.requireService()
	l.waitLog(l.client, mark, keysNegotiated, upTimeout)
	l.requireService()
	if n := len(records(l.client, 0, "peer added")); n != 1 {
		t.Errorf("the client made %d peers, want the one it began with", n)
	}

	mark = l.client.Log.Mark()
	path.suffer(pathFaults{lose: 1})
	l.waitLog(l.client, mark, "SIGUSR1", upTimeout)
	l.awaitClients(0)
	path.suffer(pathFaults{})
	l.waitUp(l.client, mark)
	l.requireService()
	l.end()
	for _, tunnel := range []*bench.Tunnel{l.server, l.client} {
		for _, reason := range []string{"authentication", "replay"} {
			counted := func(r record) bool { return strings.Contains(r["drops"], reason+":") }
			if !slices.ContainsFunc(records(tunnel, 0, "device removed"), counted) {
				t.Errorf("%s dropped nothing for %s", tunnel.Name, reason)
			}
		}
	}
}

// TestLossyPathTCP has a tunnel's connection come in pieces of any size, stall, be altered, ended and reset. What it carries arrives unaltered,
// and where the connection is lost OpenVPN makes another.
func TestLossyPathTCP(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	l := newLossyTunnel(t, bench.Options{TCP: true})
	path := newTCPPath(t, l.newPathNode(), seed)
	l.connect()
	l.requireService()

	resume := path.stall()
	r, err := bench.Ping{Node: l.Clients[0], To: l.server4, Count: 20, Interval: 10 * time.Millisecond, Wait: time.Second}.Run(t.Context())
	if err != nil || r.Received != 0 {
		t.Errorf("%d pings were answered over a path that lets nothing pass, %v", r.Received, err)
	}
	resume()
	l.requireService()
	if n := len(records(l.client, 0, "peer added")); n != 1 {
		t.Errorf("the client made %d peers before the connection was lost, want 1", n)
	}

	// What is altered may be a packet, and then that is lost, or a length, and then the connection is.
	path.alter.Store(20)
	eventually(t, upTimeout, "what passes to be altered", func() bool {
		l.ping(bench.Ping{Node: l.Clients[0], To: l.server4, Count: 10, Interval: time.Millisecond, Wait: 100 * time.Millisecond})
		return path.alter.Load() <= 0
	})
	l.requireService()

	for _, fault := range []struct {
		name string
		do   func()
	}{
		{"reset", path.reset},
		{"ended by half", path.endHalf},
		{"stalled for long", func() {
			resume := path.stall()
			defer resume()
			l.waitLog(l.client, l.client.Log.Mark(), "SIGUSR1", upTimeout)
		}},
		{"reset again", path.reset},
	} {
		mark := l.client.Log.Mark()
		fault.do()
		l.waitUp(l.client, mark)
		l.requireService()
		if t.Failed() {
			t.Fatalf("the connection was %s", fault.name)
		}
	}
	l.end()
}

// A lossyTunnel is a server and a client with a path between them.
type lossyTunnel struct {
	*scenario
	options          bench.Options
	server, client   *bench.Tunnel
	server4, client4 netip.Addr
	management       *bench.Management
	alone            holding // of the server, before it had a client
}

func newLossyTunnel(t *testing.T, options bench.Options) *lossyTunnel {
	l := &lossyTunnel{scenario: newScenario(t, 1), options: options}
	l.quiet()
	l.options.TLSCrypt = true // else an altered control packet breaks the session off
	return l
}

// connect starts both ends, over a path that is there.
func (l *lossyTunnel) connect() {
	l.Helper()
	o := bench.ServerOptions{Options: l.options}
	o.Name, o.Management, o.Keepalive = "server", true, [2]int{1, 6}
	l.server = l.startServer(l.watched(l.Server, "server"), o)
	var err error
	if l.management, err = l.server.Management(l.Context()); err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { l.management.Close() })
	l.alone = l.holding(l.server)
	c := bench.ClientOptions{Options: l.options, Remote: pathToClient}
	if !c.TCP {
		c.Extra = []string{"explicit-exit-notify 1"}
	}
	if c.Renegotiate != 0 {
		c.Renegotiate += 2                                                  // the server begins
		c.Extra = append(c.Extra, "status "+l.Inside("client.status")+" 1") // as in rekeyEvery
	}
	l.client = l.startClient(l.exec(l.Clients[0]), 0, c)
	l.server4, _ = l.addrs(l.server)
	l.client4, _ = l.addrs(l.client)
	l.awaitPing(l.Clients[0], l.server4)
}

// requireService waits until pings pass without a loss, and checks what streams carry. A renewal of keys that began over the faulty path may
// cost a packet when that is over.
func (l *lossyTunnel) requireService() {
	l.Helper()
	for _, way := range []bench.Ping{{Node: l.Clients[0], To: l.server4}, {Node: l.Server, To: l.client4}} {
		way.Count, way.Interval, way.Wait = 5, 20*time.Millisecond, time.Second
		eventually(l.T, upTimeout, "pings without a loss", func() bool {
			r := l.ping(way)
			if r.Duplicates != 0 {
				l.Errorf("%d pings from %s came twice", r.Duplicates, way.Node.Name)
			}
			return r.Lost() == 0
		})
	}
	l.requireTransfer(l.Clients[0], l.Server, l.server4, pairTransfer)
	l.requireTransfer(l.Server, l.Clients[0], l.client4, pairTransfer)
}

// awaitClients waits until the server has so many clients.
func (l *lossyTunnel) awaitClients(n int) {
	l.Helper()
	eventually(l.T, upTimeout, "the server to miss its client", func() bool {
		clients, _, err := l.management.ServerStatus()
		return err == nil && len(clients) == n
	})
}

// end stops the client, and checks that all the server has of it is gone; then the server.
func (l *lossyTunnel) end() {
	l.Helper()
	l.stop(l.client)
	l.awaitClients(0)
	eventually(l.T, 10*time.Second, "what the server's program had for its clients to go", func() bool {
		now := l.holding(l.server)
		return now.descriptors <= l.alone.descriptors && now.goroutines <= l.alone.goroutines
	})
	l.stop(l.server)
	for _, tunnel := range []*bench.Tunnel{l.server, l.client} {
		added, removed := len(records(tunnel, 0, "peer added")), len(records(tunnel, 0, "peer removed"))
		if added == 0 || added != removed {
			l.Errorf("%s made %d peers, and %d were removed", tunnel.Name, added, removed)
		}
	}
}
