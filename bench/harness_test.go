package bench_test

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/bench"
	"ovpn-go/bench/benchtest"
)

func TestPing(t *testing.T) {
	star := benchtest.Star(t, 1)
	for _, tt := range []struct {
		name string
		to   netip.Addr
		size int
	}{
		{"IPv4", star.ServerAddr4(0), 20 + 8 + 100},
		{"IPv6", star.ServerAddr6(0), 40 + 8 + 100},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := bench.Ping{Node: star.Clients[0], To: tt.to, Count: 50, Interval: time.Millisecond, Payload: 100}.Run(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if r.Sent != 50 || r.Lost() != 0 || r.Duplicates != 0 || r.PacketSize != tt.size || r.Median <= 0 || r.P99 < r.Median {
				t.Errorf("got %+v", r)
			}
		})
	}
}

func TestPingReportsWhatIsLost(t *testing.T) {
	star := benchtest.Star(t, 1)
	nobody := netip.MustParseAddr("10.9.0.77")
	r, err := bench.Ping{Node: star.Clients[0], To: nobody, Count: 3, Interval: time.Millisecond, Wait: 50 * time.Millisecond}.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if r.Sent != 3 || r.Lost() != 3 || len(r.Missing) != 3 || r.Median != 0 {
		t.Errorf("got %+v", r)
	}
}

func TestTransferAndThroughput(t *testing.T) {
	star := benchtest.Star(t, 1)
	transfer := bench.Transfer{From: star.Clients[0], To: star.Server, Addr: star.ServerAddr6(0), Bytes: 1 << 20}
	if err := transfer.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	bits, err := bench.Throughput{
		From: star.Server, To: star.Clients[0], Addr: star.ClientAddr4(0), Streams: 2,
		Warmup: 20 * time.Millisecond, Duration: 100 * time.Millisecond,
	}.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if bits < 100e6 {
		t.Errorf("%.0f bit/s over a veth pair", bits)
	}
}

func TestTransferEndsWithItsContext(t *testing.T) {
	star := benchtest.Star(t, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	err := bench.Transfer{From: star.Clients[0], To: star.Server, Addr: star.ServerAddr4(0), Bytes: 1 << 50}.Run(ctx)
	// A connection that isn't made in time may say so itself.
	if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

// The launcher's promises: the root is the process's root, nobody else sees its mounts, and closing
// it ends what it started.
func TestLauncher(t *testing.T) {
	openvpn := benchtest.OpenVPN(t)
	star := benchtest.Star(t, 1)
	before, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	l, err := bench.NewLauncher(openvpn.Root)
	if err != nil {
		t.Fatal(err)
	}
	path, err := l.WriteFile("some/file", []byte("found me\n"), 0o644)
	if err != nil {
		t.Fatal(err)
	}
	p, err := l.Start(bench.Command{Node: star.Clients[0], Args: []string{"sh", "-c",
		"cat " + path + "; test -c /dev/null && test -d /proc/self && ip -o addr show dev eth0; exit 3"}})
	if err != nil {
		t.Fatal(err)
	}
	code, err := p.Wait()
	if err != nil || code != 3 {
		t.Errorf("exit code %d, %v", code, err)
	}
	for _, want := range []string{"found me", star.ClientAddr4(0).String() + "/24"} {
		if !p.Log.Contains(want) {
			t.Errorf("output lacks %q:\n%s", want, p.Log.Tail(10))
		}
	}
	after, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if string(before) != string(after) {
		t.Errorf("the mounts of the launcher are visible outside of it:\n%s", after)
	}

	stays, err := l.Start(bench.Command{Node: star.Server, Args: []string{"sleep", "1000"}})
	if err != nil {
		t.Fatal(err)
	}
	dir := l.Dir()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if code, err := stays.Wait(); code != 128+int(unix.SIGKILL) {
		t.Errorf("after Close: exit code %d, %v", code, err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("directory %s: %v", dir, err)
	}
}

func TestLogWaitFor(t *testing.T) {
	benchtest.Root(t)
	star := benchtest.Star(t, 1)
	l, err := bench.NewLauncher("")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p, err := l.Start(bench.Command{Node: star.Server, Args: []string{"sh", "-c", "echo one; echo two >&2; echo one more; exec cat"}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, mark, err := p.Log.WaitFor(ctx, 0, "one")
	if err != nil {
		t.Fatal(err)
	}
	line, _, err := p.Log.WaitFor(ctx, mark, "one")
	if err != nil || line != "one more" {
		t.Errorf("second match %q, %v", line, err)
	}
	if _, _, err := p.Log.WaitFor(ctx, 0, "never said"); !errors.Is(err, bench.ErrExited) || !strings.Contains(err.Error(), "one more") {
		t.Errorf("after the end: %v", err)
	}
}

// A pair of OpenVPN processes without data channel offload proves certificates, configurations,
// addresses and the management client on their own.
func TestOpenVPNPair(t *testing.T) {
	lab := benchtest.Lab(t)
	star := benchtest.Star(t, 1)
	ctx := t.Context()
	server, err := lab.StartServer(bench.Placement{Node: star.Server}, bench.ServerOptions{
		Options: bench.Options{Name: "server", IPv6: true, Cipher: "CHACHA20-POLY1305", DisableDCO: true,
			TLSCrypt: true, Keepalive: [2]int{2, 10}, Management: true},
		Pool6: netip.MustParsePrefix("fd00:8::/64"),
	})
	if err != nil {
		t.Fatal(err)
	}
	client, err := lab.StartClient(bench.Placement{Node: star.Clients[0]}, bench.ClientOptions{
		Options: bench.Options{Name: "client1", IPv6: true, Cipher: "CHACHA20-POLY1305", DisableDCO: true,
			TLSCrypt: true, Management: true},
		Remote: netip.AddrPortFrom(star.ServerAddr6(0), bench.DefaultPort),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := client.WaitUp(ctx, 20*time.Second); err != nil {
		t.Fatalf("%v\nserver:\n%s", err, server.Log.Tail(30))
	}
	if name, dco, err := client.Device(); err != nil || dco || name != "tun0" {
		t.Errorf("device %q, dco %v, %v", name, dco, err)
	}
	v4, v6, err := server.VPNAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, to := range []netip.Addr{v4, v6} {
		r, err := bench.Ping{Node: star.Clients[0], To: to, Count: 5, Interval: 10 * time.Millisecond}.Run(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if r.Lost() != 0 {
			t.Errorf("ping %v: %+v", to, r)
		}
	}

	m, err := server.Management(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	clients, dco, err := m.ServerStatus()
	if err != nil {
		t.Fatal(err)
	}
	if dco || len(clients) != 1 || clients[0].CommonName != "client1" || clients[0].LinkRx == 0 {
		t.Errorf("status: dco %v, %+v", dco, clients)
	}
	cm, err := client.Management(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer cm.Close()
	if s, err := cm.ClientStatus(); err != nil || s.LinkTx == 0 || s.VPNTx == 0 {
		t.Errorf("client status %+v, %v", s, err)
	}
	if err := client.Stop(); err != nil {
		t.Error(err)
	}
	if err := server.Stop(); err != nil {
		t.Error(err)
	}
	if has, err := star.Server.HasLink("tun0"); err != nil || has {
		t.Errorf("interface still there: %v, %v", has, err)
	}
}
