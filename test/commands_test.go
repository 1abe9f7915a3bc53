package test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ovpn-go/bench"
	"ovpn-go/bench/benchtest"
)

// A shell is a shell under the program, in a namespace. Commands are typed into it as a user would.
type shell struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func startShell(t *testing.T, node *bench.Node, program string) *shell {
	t.Helper()
	cmd := exec.Command(program, "exec", "--datapath", "userspace", "--log-level", "warn", "--", "sh")
	return runShell(t, node, cmd, program, program)
}

// shell starts a shell whose commands are the daemon's clients.
func (d *daemonProcess) shell(node *bench.Node) *shell {
	d.Helper()
	return runShell(d.T, node, exec.Command("sh"), d.binary, d.binary+" --socket "+d.socket)
}

// runShell starts a shell in which $P is the program's command.
func runShell(t *testing.T, node *bench.Node, cmd *exec.Cmd, program, command string) *shell {
	t.Helper()
	s := &shell{t: t, cmd: cmd}
	s.cmd.Env = append(s.cmd.Environ(), "PATH="+filepath.Dir(program)+":/usr/sbin:/usr/bin:/sbin:/bin",
		"P="+command,
		"GORACE=atexit_sleep_ms=0") // a race build otherwise takes a second to end
	var err error
	if s.in, err = s.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.cmd.Stderr = s.cmd.Stdout
	s.out = bufio.NewScanner(out)
	if err := node.Do(s.cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.end)
	return s
}

// end ends the shell. Nothing may be left for the program to wait for.
func (s *shell) end() {
	s.in.Close()
	stuck := time.AfterFunc(20*time.Second, func() {
		s.t.Error("the program does not end: something that it started is left")
		s.cmd.Process.Signal(unix.SIGTERM)
	})
	defer stuck.Stop()
	for s.out.Scan() {
		s.t.Log(s.out.Text())
	}
	if err := s.cmd.Wait(); err != nil {
		s.t.Errorf("the shell ended with %v", err)
	}
}

// try runs a command and returns what it printed and its exit status.
func (s *shell) try(command string) (output, status string) {
	s.t.Helper()
	const mark = "=== status "
	// $P is the program; a process that is left behind must not hold the pipe.
	if _, err := fmt.Fprintf(s.in, "%s\necho '%s'$?\n", command, mark); err != nil {
		s.t.Fatal(err)
	}
	var lines []string
	for s.out.Scan() {
		if status, ok := strings.CutPrefix(s.out.Text(), mark); ok {
			return strings.Join(lines, "\n"), status
		}
		lines = append(lines, s.out.Text())
	}
	s.t.Fatalf("%s: the shell has ended: %s", command, strings.Join(lines, "\n"))
	return "", ""
}

// run runs a command that must succeed.
func (s *shell) run(command string) string {
	s.t.Helper()
	output, status := s.try(command)
	if status != "0" {
		s.t.Fatalf("%s: exit status %s\n%s", command, status, output)
	}
	return output
}

// jsonOf runs a command that must succeed and decodes what it prints.
func jsonOf[T any](s *shell, command string) (value T) {
	s.t.Helper()
	output := s.run(command)
	if err := json.Unmarshal([]byte(output), &value); err != nil {
		s.t.Fatalf("%s: %v\n%s", command, err, output)
	}
	return value
}

type shownPeer struct {
	ID        uint32 `json:"id"`
	TxID      uint32 `json:"tx_id"`
	Remote    string `json:"remote"`
	LocalPort int    `json:"local_port"`
	VPN4      string `json:"vpn_ipv4"`
	Interval  int    `json:"keepalive_interval"`
	Timeout   int    `json:"keepalive_timeout"`
	LastSeen  *int64 `json:"last_seen"`
	Keys      []struct {
		Slot, Cipher string
		ID           int
		Age          *int64
	} `json:"keys"`
	Link struct {
		RxPackets uint64 `json:"rx_packets"`
		TxPackets uint64 `json:"tx_packets"`
	} `json:"link"`
}

// TestStaticKeyTunnel builds a tunnel without OpenVPN, by the program's own commands: a server with a multi-peer link, and
// a client with a point-to-point one.
func TestStaticKeyTunnel(t *testing.T) {
	t.Parallel()
	program, err := raceBinary()
	if err != nil {
		t.Fatal(err)
	}
	benchtest.Root(t)
	star := benchtest.Star(t, 1)
	server, client := startShell(t, star.Server, program), startShell(t, star.Clients[0], program)
	key := filepath.Join(t.TempDir(), "tunnel.key")
	server.run("umask 077; $P key generate > " + key)

	server.run("$P link add ovpn0 --mode mp --mtu 1400")
	server.run(fmt.Sprintf("$P peer add ovpn0 7 --local :1194 --remote %v:1194 --vpn-ipv4 10.8.0.7 --keepalive 5,60", star.ClientAddr4(0)))
	server.run("$P key add ovpn0 7 --direction 0 --file " + key)
	client.run("$P link add ovpn0")
	client.run(fmt.Sprintf("$P peer add ovpn0 7 --local 0.0.0.0:1194 --remote %v:1194", star.ServerAddr4(0)))
	client.run("$P key add ovpn0 7 --direction 1 --file - < " + key)

	near, far := netip.MustParseAddr("10.8.0.1"), netip.MustParseAddr("10.8.0.7")
	for node, addr := range map[*bench.Node]netip.Addr{star.Server: near, star.Clients[0]: far} {
		if err := node.AddAddr("ovpn0", netip.PrefixFrom(addr, 24)); err != nil {
			t.Fatal(err)
		}
		if err := node.SetUp("ovpn0"); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for node, addr := range map[*bench.Node]netip.Addr{star.Server: far, star.Clients[0]: near} {
		if err := node.WaitRunning(ctx, "ovpn0"); err != nil {
			t.Fatal(err)
		}
		result, err := bench.Ping{Node: node, To: addr, Count: 10, Interval: 10 * time.Millisecond}.Run(ctx)
		if err != nil || result.Received == 0 {
			t.Fatalf("ping from %s: %+v, %v", node.Name, result, err)
		}
	}

	shown := jsonOf[[]shownPeer](server, "$P peer show ovpn0 --json")
	if len(shown) != 1 || shown[0].Link.RxPackets == 0 || shown[0].Link.TxPackets == 0 {
		t.Fatalf("the peer is shown as %+v", shown)
	}
	shown[0].Link.RxPackets, shown[0].Link.TxPackets = 0, 0
	want := shownPeer{ID: 7, TxID: 7, Remote: fmt.Sprintf("%v:1194", star.ClientAddr4(0)), LocalPort: 1194,
		VPN4: "10.8.0.7", Interval: 5, Timeout: 60, Keys: shown[0].Keys}
	if diff := cmp.Diff(want, shown[0]); diff != "" {
		t.Errorf("peer show (-want +got):\n%s", diff)
	}
	if k := shown[0].Keys; len(k) != 1 || k[0].Slot != "primary" || k[0].Cipher != "aes-gcm" || k[0].Age != nil {
		t.Errorf("keys are %+v", k)
	}

	// A new key goes to the second slot of both ends, and the slots are exchanged.
	server.run("$P key generate > " + key)
	server.run("$P key add ovpn0 7 --slot secondary --id 1 --cipher chacha20-poly1305 --direction 0 --file " + key)
	client.run("$P key add ovpn0 7 --slot secondary --id 1 --cipher CHACHA20-POLY1305 --direction 1 --file " + key)
	client.run("$P key swap ovpn0 7")
	server.run("$P key swap ovpn0 7")
	client.run("$P key del ovpn0 7 --slot secondary")
	server.run("$P key del ovpn0 7 --slot secondary")
	if got := server.run("$P key show ovpn0 7"); got != "primary: key id 1, chacha20-poly1305" {
		t.Errorf("key show prints %q", got)
	}
	result, err := bench.Ping{Node: star.Server, To: far, Count: 5, Interval: 10 * time.Millisecond}.Run(ctx)
	if err != nil || result.Received == 0 {
		t.Errorf("ping after the key was renewed: %+v, %v", result, err)
	}

	server.run("$P peer set ovpn0 7 --vpn-ipv4 10.8.0.9 --tx-id 9 --keepalive 0,0")
	if p := jsonOf[[]shownPeer](server, "$P peer show ovpn0 7 --json")[0]; p.VPN4 != "10.8.0.9" || p.TxID != 9 || p.Interval != 0 {
		t.Errorf("after peer set: %+v", p)
	}
	if text := server.run("$P show"); !strings.Contains(text, "ovpn0: mode mp, MTU 1400, up, 1 peer") || !strings.Contains(text, "10.8.0.9") {
		t.Errorf("show prints\n%s", text)
	}

	// What happens is announced, and when its last peer has gone the socket is free again.
	events := filepath.Join(t.TempDir(), "events")
	server.run("$P monitor --json > " + events + " 2>&1 & monitor=$!; while ! $P peer add ovpn0 8 --local :1194 --remote 127.0.0.1:9 --vpn-ipv4 10.8.0.8; do :; done")
	server.run("until test -s " + events + "; do $P peer del ovpn0 8; $P peer add ovpn0 8 --local :1194 --remote 127.0.0.1:9 --vpn-ipv4 10.8.0.8; done")
	server.run("kill $monitor; wait $monitor")
	var event struct {
		Event, Reason string
		Peer          int
	}
	first := server.run("head -n 1 " + events)
	if err := json.Unmarshal([]byte(first), &event); err != nil || event.Event != "peer-deleted" || event.Peer != 8 || event.Reason != "userspace" {
		t.Errorf("monitor printed %s (%v)", first, err)
	}
	server.run("$P peer del ovpn0 7; $P peer del ovpn0 8")
	server.run("until $P peer add ovpn0 1 --local 127.0.0.1:1194 --remote 127.0.0.1:9 --vpn-ipv4 10.8.0.1; do :; done")
	server.run("$P link del ovpn0")
	client.run("$P link del ovpn0")
}

// TestStaticKeyTunnelOverTCP builds one over TCP, under exec and by a daemon's clients: one side waits for the other's connection. When
// either deletes its peer, both are gone, and so are the connection and those that held it.
func TestStaticKeyTunnelOverTCP(t *testing.T) {
	t.Parallel()
	t.Run("exec", func(t *testing.T) {
		t.Parallel()
		program, err := raceBinary()
		if err != nil {
			t.Fatal(err)
		}
		benchtest.Root(t)
		testStaticKeyTunnelOverTCP(t, func(node *bench.Node) *shell { return startShell(t, node, program) })
	})
	t.Run("daemon", func(t *testing.T) {
		t.Parallel()
		testStaticKeyTunnelOverTCP(t, startDaemon(t, raceBinary).shell)
	})
}

func testStaticKeyTunnelOverTCP(t *testing.T, start func(*bench.Node) *shell) {
	star := benchtest.Star(t, 1)
	server, client := start(star.Server), start(star.Clients[0])
	key := filepath.Join(t.TempDir(), "tunnel.key")
	server.run("umask 077; $P key generate > " + key)
	server.run("$P link add ovpn0")
	client.run("$P link add ovpn0")
	devices := []*bench.Node{star.Server, star.Clients[0]}
	for i, d := range devices {
		if err := errors.Join(d.AddAddr("ovpn0", netip.PrefixFrom(tunnelEnds[i], 24)), d.SetUp("ovpn0")); err != nil {
			t.Fatal(err)
		}
	}
	for _, deleter := range []*shell{client, server} {
		server.run("$P peer add ovpn0 1 --tcp --local :1194 & listener=$!")
		client.run(fmt.Sprintf("until $P peer add ovpn0 1 --tcp --remote %v:1194 2>/dev/null; do :; done", star.ServerAddr4(0)))
		server.run("wait $listener")
		server.run("$P key add ovpn0 1 --direction 0 --file " + key)
		client.run("$P key add ovpn0 1 --direction 1 --file " + key)
		requirePings(t, devices, 20)
		if shown := jsonOf[[]shownPeer](server, "$P peer show ovpn0 --json"); len(shown) != 1 || shown[0].Remote != "" || shown[0].LocalPort != 1194 {
			t.Errorf("the peer is shown as %+v", shown)
		}
		deleter.run("$P peer del ovpn0 1")
		for _, s := range []*shell{server, client} {
			s.run("until [ \"$($P peer show ovpn0 --json)\" = '[]' ]; do :; done")
			s.run("while grep -q ovpn-go/tcp/ /proc/net/unix; do :; done")
			s.run("while grep -q ' 01 ' /proc/net/tcp /proc/net/tcp6; do :; done") // established
		}
	}
	server.run("$P link del ovpn0")
	client.run("$P link del ovpn0")
}

// TestCommandsSayWhatIsWrong: an error names what was wrong, and nothing has happened.
func TestCommandsSayWhatIsWrong(t *testing.T) {
	t.Parallel()
	program, err := raceBinary()
	if err != nil {
		t.Fatal(err)
	}
	benchtest.Root(t)
	star := benchtest.Star(t, 1)
	s := startShell(t, star.Server, program)
	s.run("$P link add p2p0; $P link add mp0 --mode mp; $P peer add p2p0 1 --remote 127.0.0.1:9")
	before := s.run("$P show --json")
	const withoutRight = "setpriv --bounding-set=-net_admin --inh-caps=-net_admin "
	tests := []struct{ name, command, want string }{
		{"a link that is there", "$P link add p2p0", "file exists"},
		{"a mode that is not", "$P link add x --mode tap", "must be p2p or mp"},
		{"no such link", "$P link del nothing", "no such device"},
		{"a link of another kind", "$P link del lo", "not of kind ovpn"},
		{"a peer id that is none", "$P peer add mp0 16777216 --remote 127.0.0.1:9", "0 to 16777215"},
		{"no remote", "$P peer add mp0 1", "--remote is required"},
		{"neither end of a connection", "$P peer add mp0 1 --tcp", "a --local with a port"},
		{"a connection that nobody takes", "$P peer add mp0 1 --tcp --remote 127.0.0.1:9 --vpn-ipv4 10.1.1.1", "connection refused"},
		{"a source address over TCP", "$P peer add mp0 1 --tcp --remote 127.0.0.1:9 --from 127.0.0.1", "--from is for UDP"},
		{"a remote without port", "$P peer add mp0 1 --remote 127.0.0.1", "127.0.0.1"},
		{"no VPN address in mode mp", "$P peer add mp0 1 --remote 127.0.0.1:9", "at least one VPN IP"},
		{"a VPN address in mode p2p", "$P peer set p2p0 1 --vpn-ipv4 10.1.2.3", "unexpected VPN IP in P2P mode"},
		{"no such peer", "$P peer del mp0 5", "cannot find peer with id 5"},
		{"half a keepalive", "$P peer set p2p0 1 --keepalive 10", "two numbers"},
		{"a key for nobody", "$P key generate | $P key add mp0 3 --direction 0 --file -", "no peer with id 3"},
		{"a file that holds no key", "echo nonsense | $P key add p2p0 1 --direction 0 --file -", "not an OpenVPN static key"},
		{"a file that is not there", "$P key add p2p0 1 --direction 0 --file /nothing", "/nothing"},
		{"no direction", "$P key add p2p0 1 --file -", "direction"},
		{"a third direction", "$P key add p2p0 1 --direction 2 --file /dev/null", "must be 0 at one end"},
		{"a cipher that is none", "$P key add p2p0 1 --direction 0 --cipher DES --file -", "AES-256-GCM"},
		{"a key id that is none", "$P key generate | $P key add p2p0 1 --id 8 --direction 0 --file -", "out of range"},
		{"a link without the right", withoutRight + "$P link add other0", "operation not permitted"},
		{"a peer without the right", withoutRight + "$P peer add mp0 2 --remote 127.0.0.1:9 --vpn-ipv4 10.1.1.1", "operation not permitted"},
		{"a look without the right", withoutRight + "$P show mp0", "operation not permitted"},
		{"an address in use", "$P peer add mp0 2 --local 192.0.2.1:1 --remote 127.0.0.1:9 --vpn-ipv4 10.1.1.1", "cannot assign requested address"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			output, status := s.try(test.command)
			if status != "1" || !strings.Contains(output, test.want) {
				t.Errorf("exit status %s, want 1; %q is missing from %q", status, test.want, output)
			}
			if diff := cmp.Diff(before, s.run("$P show --json")); diff != "" {
				t.Errorf("it changed something:\n%s", diff)
			}
		})
	}
	s.run("$P link del p2p0; $P link del mp0")
	t.Run("no module", func(t *testing.T) {
		var out []byte
		err := star.Clients[0].Do(func() error {
			var failure error
			if out, failure = exec.Command(program, "link", "add", "x").CombinedOutput(); failure == nil {
				return errors.New("it succeeds")
			}
			return nil
		})
		if err != nil || !strings.Contains(string(out), "ovpn-go exec") {
			t.Errorf("it says %q, %v", out, err)
		}
	})
}
