package test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/bench"
)

// soakVariable holds how long TestSoak goes on; `make soak` sets it.
const soakVariable = "OVPN_GO_TEST_SOAK"

const (
	soakDuration = 30 * time.Second // where the variable doesn't say
	soakRounds   = 8                // at least, so that four parts of them can be told apart
	soakLifetime = 5                // of a key, in seconds
)

// TestSoak has a server with clients that stay, over UDP, over TCP and with an address that changes every few seconds, and one that
// comes and goes, in order and by force. All the while data flows and keys are renewed. After each round, when the same
// clients are connected as after any other, it asks every program what it holds; in the last quarter that must be what
// it was in the second one. The first is for what is made once.
func TestSoak(t *testing.T) {
	duration := soakDuration
	if text := os.Getenv(soakVariable); text != "" {
		var err error
		if duration, err = time.ParseDuration(text); err != nil {
			t.Fatalf("%s: %v", soakVariable, err)
		}
	}
	s := newSoak(t)
	start := time.Now()
	var rounds [][]holding // what each program held after each round
	for n := 0; time.Since(start) < duration || n < soakRounds; n++ {
		s.round(n)
		held := s.holdings()
		rounds = append(rounds, held)
		text := fmt.Sprintf("%v: round %d, %d transfers", time.Since(start).Round(time.Second), n, s.transferred())
		for i, program := range s.steady {
			text += fmt.Sprintf("; %s: %v", program.Name, held[i])
		}
		t.Log(text)
	}
	s.endTraffic()
	for i, program := range s.steady {
		second, last := quarter(rounds, 1, i), quarter(rounds, 3, i)
		for _, what := range second.growth(last) {
			t.Errorf("%s, from the second quarter to the last: %s", program.Name, what)
		}
		if n, want := len(program.Log.Match(0, negotiated)), int(duration.Seconds())/(4*soakLifetime); n < want {
			t.Errorf("%s negotiated new keys %d times, want at least %d", program.Name, n, want)
		}
	}
	for _, program := range slices.Backward(s.steady) {
		s.stop(program)
		// A packet id that is used twice is a replay to who receives it.
		s.requireNoDrops(program, "replay", "authentication")
	}
}

// A holding is what a program holds.
type holding struct {
	heap, resident          int // bytes: what is live after a collection, and what no other process has
	descriptors, goroutines int
}

func (h holding) String() string {
	return fmt.Sprintf("%d KiB live of %d, %d descriptors, %d goroutines", h.heap>>10, h.resident>>10, h.descriptors, h.goroutines)
}

// growth says what of a later holding is too much.
func (h holding) growth(later holding) (what []string) {
	for _, row := range []struct {
		name                  string
		before, after, margin int
	}{
		{"bytes live", h.heap, later.heap, h.heap/10 + 1<<20},
		{"bytes resident", h.resident, later.resident, h.resident/5 + 8<<20},
		{"descriptors", h.descriptors, later.descriptors, 2},
		{"goroutines", h.goroutines, later.goroutines, 2},
	} {
		if row.after > row.before+row.margin {
			what = append(what, fmt.Sprintf("%d %s became %d, at most %d expected", row.before, row.name, row.after, row.before+row.margin))
		}
	}
	return what
}

// quarter returns the medians of what a program held in a quarter (0 to 3) of the rounds.
func quarter(rounds [][]holding, which, program int) (m holding) {
	part := rounds[which*len(rounds)/4 : (which+1)*len(rounds)/4]
	median := func(of func(holding) int) int {
		var all []int
		for _, held := range part {
			all = append(all, of(held[program]))
		}
		slices.Sort(all)
		return all[len(all)/2]
	}
	return holding{
		heap:        median(func(h holding) int { return h.heap }),
		resident:    median(func(h holding) int { return h.resident }),
		descriptors: median(func(h holding) int { return h.descriptors }),
		goroutines:  median(func(h holding) int { return h.goroutines }),
	}
}

// A soak's clients are by link: one over UDP, one over TCP, one that moves, and one that comes and goes.
const (
	soakUDP = iota
	soakTCP
	soakMoving
	soakPassing
	soakClients
)

type soak struct {
	*scenario
	steady     []*bench.Tunnel // the server and the clients that stay
	management *bench.Management
	server4    netip.Addr

	cancel  context.CancelFunc
	traffic sync.WaitGroup
	done    [soakPassing]atomic.Int64 // transfers of each client that stays
}

func newSoak(t *testing.T) *soak {
	s := &soak{scenario: newScenarioWith(t, soakClients, plainBinary)}
	s.quiet()
	if err := s.Clients[soakMoving].SetSysctl("net.ipv4.conf.all.promote_secondaries", "1"); err != nil {
		t.Fatal(err)
	}
	serverOptions, clientOptions := s.rekeyEvery(soakLifetime)
	serverOptions.Verb, clientOptions.Verb = 3, 3
	serverOptions.Management = true
	listen := []string{}
	for i := range soakClients {
		if i != soakTCP {
			listen = append(listen, fmt.Sprintf("%v %d udp", s.ServerAddr4(i), bench.DefaultPort))
		}
		if i == soakTCP || i == soakPassing {
			listen = append(listen, fmt.Sprintf("%v %d tcp-server", s.ServerAddr4(i), bench.DefaultPort))
		}
	}
	server := s.startServer(s.watched(s.Server, "server"), bench.ServerOptions{Options: serverOptions, Listen: listen})
	s.steady = append(s.steady, server)
	s.server4, _ = s.addrs(server)
	var err error
	if s.management, err = server.Management(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.management.Close() })

	ctx, cancel := context.WithCancel(t.Context())
	s.cancel = cancel
	t.Cleanup(s.endTraffic) // before what newScenario cleans up, as that stops the tunnels
	for i := range soakPassing {
		o := clientOptions
		o.Name, o.TCP = fmt.Sprintf("client%d", i+1), i == soakTCP
		o.Extra = []string{"status " + s.Inside(o.Name+".status") + " 1"}
		client := s.startClient(s.watched(s.Clients[i], o.Name), i, bench.ClientOptions{Options: o})
		s.steady = append(s.steady, client)
		s.awaitPing(s.Clients[i], s.server4)
		client4, _ := s.addrs(client)
		s.traffic.Go(func() { s.exchange(ctx, i, client4) })
	}
	return s
}

// watched is exec with a program that answers at profileSocket.
func (s *scenario) watched(node *bench.Node, name string) bench.Placement {
	at := s.exec(node)
	at.Prefix = slices.Insert(slices.Clone(at.Prefix), 2, "--pprof", s.profileSocket(name))
	return at
}

func (s *scenario) profileSocket(name string) string { return filepath.Join(s.Dir(), name+".pprof") }

func (s *soak) endTraffic() {
	s.cancel()
	s.traffic.Wait()
}

// exchange sends data to the server and from it until the context ends, with pauses that leave the machine to others.
func (s *soak) exchange(ctx context.Context, i int, client4 netip.Addr) {
	ways := [2]bench.Transfer{
		{From: s.Clients[i], To: s.Server, Addr: s.server4, Bytes: 512 << 10},
		{From: s.Server, To: s.Clients[i], Addr: client4, Bytes: 512 << 10},
	}
	for n := 0; ctx.Err() == nil; n++ {
		bounded, cancel := context.WithTimeout(ctx, time.Minute)
		err := ways[n%2].Run(bounded)
		cancel()
		if err != nil && ctx.Err() == nil {
			s.Errorf("client%d: %v", i+1, err)
			return
		}
		s.done[i].Add(1)
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (s *soak) transferred() (n int64) {
	for i := range s.done {
		n += s.done[i].Load()
	}
	return n
}

// round moves the moving client and has the passing one come and go, while the others' data flows.
func (s *soak) round(n int) {
	s.Helper()
	var before [soakPassing]int64
	for i := range before {
		before[i] = s.done[i].Load()
	}
	s.move(n)
	switch n % 3 {
	case 0:
		s.stop(s.pass(false))
	case 1:
		s.end(s.pass(true))
	case 2:
		s.end(s.pass(false))
		s.stop(s.pass(false)) // in the place of the one before, which the server has not missed yet
	}
	s.eventually("the passing client to be gone", func() bool {
		clients, _, err := s.management.ServerStatus()
		return err == nil && len(clients) == soakPassing
	})
	for i := range before {
		s.eventually(fmt.Sprintf("data of client%d, both ways", i+1), func() bool { return s.done[i].Load() >= before[i]+2 })
	}
}

func (s *soak) eventually(what string, condition func() bool) {
	s.Helper()
	eventually(s.T, time.Minute, what, func() bool { return s.Failed() || condition() })
	if s.Failed() {
		s.FailNow()
	}
}

// move changes the moving client's address.
func (s *soak) move(n int) {
	s.Helper()
	addrs := [2]netip.Prefix{netip.PrefixFrom(s.ClientAddr4(soakMoving), 24), netip.PrefixFrom(s.ClientAddr4(soakMoving).Next(), 24)}
	node := s.Clients[soakMoving]
	if err := errors.Join(node.AddAddr("eth0", addrs[(n+1)%2]), node.DelAddr("eth0", addrs[n%2])); err != nil {
		s.Fatal(err)
	}
}

// pass has the passing client come.
func (s *soak) pass(tcp bool) *bench.Tunnel {
	s.Helper()
	o := bench.Options{Name: "passing", TCP: tcp}
	if !tcp {
		o.Extra = []string{"explicit-exit-notify 1"}
	}
	client := s.startClient(s.exec(s.Clients[soakPassing]), soakPassing, bench.ClientOptions{Options: o})
	s.tunnels = s.tunnels[:len(s.tunnels)-1] // there may be thousands; its logs are not kept
	s.requirePing(s.Clients[soakPassing], s.server4)
	return client
}

// end has a client end by force.
func (s *soak) end(client *bench.Tunnel) {
	s.Helper()
	if err := unix.Kill(s.openvpnPID(client), unix.SIGKILL); err != nil {
		s.Fatal(err)
	}
	<-client.Done()
}

// holdings asks the programs of those that stay what they hold.
func (s *soak) holdings() (all []holding) {
	s.Helper()
	for _, program := range s.steady {
		all = append(all, s.holding(program))
	}
	return all
}

// holding asks the program of a tunnel, which was started watched under its name.
func (s *scenario) holding(program *bench.Tunnel) holding {
	s.Helper()
	socket, pid := s.profileSocket(program.Name), program.PID()
	return holding{
		resident: residentBytes(s.T, pid), descriptors: descriptors(s.T, pid),
		goroutines: profileNumber(s.T, socket, "goroutine?debug=1", "goroutine profile: total "),
		heap:       profileNumber(s.T, socket, "heap?gc=1&debug=1", "# HeapAlloc = "),
	}
}

// profileNumber returns the number behind the label in a profile that a program serves at a socket.
func profileNumber(t *testing.T, socket, profile, label string) int {
	t.Helper()
	transport := &http.Transport{
		DisableKeepAlives: true, // a connection is a descriptor and goroutines of its own
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}
	client := http.Client{Transport: transport, Timeout: time.Minute}
	answer, err := client.Get("http://program/debug/pprof/" + profile)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	lines := bufio.NewScanner(answer.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		text, ok := strings.CutPrefix(lines.Text(), label)
		if !ok {
			continue
		}
		n, err := strconv.Atoi(strings.TrimSpace(text))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	t.Fatalf("%s has no %q: %v", profile, label, lines.Err())
	return 0
}
