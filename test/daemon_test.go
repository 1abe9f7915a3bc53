package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/bench"
	"ovpn-go/bench/benchtest"
)

// A daemonProcess is `ovpn-go serve` in the namespace of the tests.
type daemonProcess struct {
	*testing.T
	binary, socket, log string
	prefix              []string // a command that is given the daemon's to run; nil if there is none
	pprof               string   // where it serves its profiles
	cmd                 *exec.Cmd
	notify              *net.UnixConn // what it tells the service manager
}

// startDaemon starts a daemon and waits until it says that it is ready. It must be started before a scenario whose tunnels use it, so
// that it ends after them.
func startDaemon(t *testing.T, build func() (string, error), prefix ...string) *daemonProcess {
	t.Helper()
	benchtest.Root(t)
	binary, err := build()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	d := &daemonProcess{T: t, binary: binary, socket: filepath.Join(dir, "socket"), log: filepath.Join(dir, "log"), prefix: prefix}
	d.start()
	t.Cleanup(func() {
		if d.cmd.ProcessState == nil {
			d.stop()
		}
		text := d.text()
		if bytes.Contains(text, []byte("level=ERROR")) || bytes.Contains(text, []byte("DATA RACE")) {
			t.Error("the daemon has something to complain about")
		}
		if t.Failed() {
			t.Logf("--- daemon\n%s", text)
		}
	})
	return d
}

// start starts the daemon, once more after it has ended.
func (d *daemonProcess) start() {
	d.Helper()
	if d.notify == nil {
		var err error
		d.notify, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(d.TempDir(), "notify"), Net: "unixgram"})
		if err != nil {
			d.Fatal(err)
		}
		d.Cleanup(func() { d.notify.Close() })
	}
	log, err := os.OpenFile(d.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		d.Fatal(err)
	}
	defer log.Close()
	d.pprof = filepath.Join(d.TempDir(), "pprof")
	command := append(slices.Clone(d.prefix), d.binary, "serve", "--socket", d.socket, "--pprof", d.pprof)
	d.cmd = exec.Command(command[0], command[1:]...)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.Env = append(d.cmd.Environ(), "NOTIFY_SOCKET="+d.notify.LocalAddr().String(), "GORACE=atexit_sleep_ms=0")
	if err := d.cmd.Start(); err != nil {
		d.Fatal(err)
	}
	if !d.says("READY=1") {
		d.kill()
		d.Fatalf("the daemon is not ready\n%s", d.text())
	}
}

// says waits until the daemon says how it is, and reports whether it is so.
func (d *daemonProcess) says(want string) bool {
	state := make([]byte, 100)
	if err := d.notify.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		d.Fatal(err)
	}
	n, err := d.notify.Read(state)
	return err == nil && string(state[:n]) == want
}

func (d *daemonProcess) text() []byte {
	text, _ := os.ReadFile(d.log)
	return text
}

// stop ends the daemon in the orderly way.
func (d *daemonProcess) stop() {
	d.Helper()
	if err := d.cmd.Process.Signal(unix.SIGTERM); err != nil {
		d.Error(err)
	}
	if !d.says("STOPPING=1") {
		d.Error("the daemon does not say that it stops")
	}
	stuck := time.AfterFunc(40*time.Second, func() { d.cmd.Process.Kill() })
	defer stuck.Stop()
	if err := d.cmd.Wait(); err != nil {
		d.Errorf("the daemon ends with %v\n%s", err, d.text())
	}
	if _, err := os.Lstat(d.socket); err == nil {
		d.Error("the daemon has left its socket behind")
	}
}

// kill ends it in the other way.
func (d *daemonProcess) kill() {
	d.Helper()
	if err := d.cmd.Process.Kill(); err != nil {
		d.Fatal(err)
	}
	d.cmd.Wait()
}

// scenario is one whose processes use the daemon.
func (d *daemonProcess) scenario(clients int) *scenario {
	d.Helper()
	s := newScenario(d.T, clients)
	s.prefix = []string{d.binary, "--socket", d.socket, "exec", "--datapath", "userspace", "--log-level", "info", "--"}
	return s
}

// run runs a command of ours in a node's namespace and returns what it prints.
func (d *daemonProcess) run(node *bench.Node, args ...string) (string, error) {
	cmd := exec.CommandContext(d.Context(), d.binary, append([]string{"--socket", d.socket}, args...)...)
	cmd.Env = append(cmd.Environ(), "GORACE=atexit_sleep_ms=0")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := node.Do(cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	return out.String(), err
}

// mustRun is run of what must succeed and print something that contains want.
func (d *daemonProcess) mustRun(node *bench.Node, want string, args ...string) {
	d.Helper()
	if out, err := d.run(node, args...); err != nil || !strings.Contains(out, want) {
		d.Errorf("%s: %v, without %q:\n%s", strings.Join(args, " "), err, want, out)
	}
}

// TestDaemonIsShared: two OpenVPN processes, iproute2, the kernel selftests' client and our own commands use one daemon at once, and see what
// the others have made.
func TestDaemonIsShared(t *testing.T) { overBoth(t, testDaemonIsShared) }

func testDaemonIsShared(t *testing.T, tcp bool) {
	t.Parallel()
	d := startDaemon(t, raceBinary)
	s := d.scenario(1)
	server := s.startServer(s.exec(s.Server), bench.ServerOptions{Options: bench.Options{TCP: tcp}})
	client := s.startClient(s.exec(s.Clients[0]), 0, bench.ClientOptions{Options: bench.Options{TCP: tcp}})
	here, _ := s.addrs(server)
	there, _ := s.addrs(client)
	s.requirePing(s.Clients[0], here)
	s.requirePing(s.Server, there)
	s.requireTransfer(s.Clients[0], s.Server, here, 4<<20)
	name, _, err := server.Device()
	if err != nil {
		t.Fatal(err)
	}
	d.mustRun(s.Server, name+": mode mp", "show")
	d.mustRun(s.Server, "1 peer", "show", name)
	d.mustRun(s.Server, "ovpn ", "exec", "--datapath", "userspace", "--", "ip", "-d", "link", "show", name)
	d.mustRun(s.Server, "", "exec", "--datapath", "userspace", "--", "ip", "link", "add", "other0", "type", "ovpn")
	d.mustRun(s.Server, "other0", "link", "show", "other0")
	d.mustRun(s.Server, "", "peer", "add", "other0", "5", "--local", ":1199", "--remote", "127.0.0.1:9")
	d.mustRun(s.Server, "1 peer", "show", "other0")
	// The daemon tells what the netlink family has no words for.
	for link, heard := range map[string]bool{name: true, "other0": false} {
		out, err := d.run(s.Server, "peer", "show", link, "--json")
		var shown []shownPeer
		if err := errors.Join(err, json.Unmarshal([]byte(out), &shown)); err != nil || len(shown) != 1 {
			t.Fatalf("peer show %s: %v\n%s", link, err, out)
		}
		if seen := shown[0].LastSeen; (seen != nil) != heard || heard && *seen > 60 {
			t.Errorf("%s: the peer was last seen %v seconds ago\n%s", link, seen, out)
		}
		if keys := shown[0].Keys; heard && (len(keys) == 0 || keys[0].Age == nil || *keys[0].Age > 120) {
			t.Errorf("%s: the keys' age\n%s", link, out)
		}
	}
	d.mustRun(s.Server, "", "link", "del", "other0")
	if has, err := s.Server.HasLink("other0"); err != nil || has {
		t.Errorf("the interface that was deleted is still there (%v)", err)
	}
	requireSelftestsClient(d, s)
	s.requirePing(s.Clients[0], here) // none of it has disturbed the tunnel
}

// TestDaemonOutlivesItsClients: what a client made stays when the client is killed, as with the kernel's module, and its peers go.
func TestDaemonOutlivesItsClients(t *testing.T) {
	t.Parallel()
	d := startDaemon(t, raceBinary)
	s := d.scenario(1)
	server := s.startServer(s.exec(s.Server), bench.ServerOptions{})
	name, _, err := server.Device()
	if err != nil {
		t.Fatal(err)
	}
	pids := descendants(server.PID())
	if err := unix.Kill(server.PID(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-server.Done()
	eventually(t, 10*time.Second, "every process of the killed program to end", func() bool {
		return !slices.ContainsFunc(pids, alive)
	})
	d.mustRun(s.Server, "mp", "link", "show", name)
	d.mustRun(s.Server, "", "link", "del", name)
	s.requireGone(server)
}

// TestDaemonStops: when the daemon is told to end, its clients end first and in order, whatever they say a failure, and
// nothing is left.
func TestDaemonStops(t *testing.T) {
	t.Parallel()
	d := startDaemon(t, raceBinary)
	s := d.scenario(1)
	server := s.startServer(s.exec(s.Server), bench.ServerOptions{})
	client := s.startClient(s.exec(s.Clients[0]), 0, bench.ClientOptions{})
	d.mustRun(s.Server, "", "link", "add", "forgotten0")
	d.stop()
	for _, tunnel := range s.tunnels {
		if code, err := tunnel.Wait(); code != 126 || err != nil {
			t.Errorf("%s ends with %d, %v", tunnel.Name, code, err)
		}
		if !tunnel.Log.Contains("process exiting") {
			t.Errorf("%s has not ended in order", tunnel.Name)
		}
		if !tunnel.Log.Contains("the daemon was stopped") {
			t.Errorf("%s does not say why it has ended", tunnel.Name)
		}
	}
	s.requireGone(server)
	s.requireGone(client)
	if has, err := s.Server.HasLink("forgotten0"); err != nil || has {
		t.Errorf("an interface is left (%v)", err)
	}
}

// TestDaemonDies: when the daemon is killed, so are its clients, who would otherwise spin on system calls that nobody answers; they say
// why; no interface is left. With the next daemon they can be started again at once.
func TestDaemonDies(t *testing.T) { overBoth(t, testDaemonDies) }

func testDaemonDies(t *testing.T, tcp bool) {
	t.Parallel()
	d := startDaemon(t, raceBinary)
	s := d.scenario(1)
	for range 2 {
		server := s.startServer(s.exec(s.Server), bench.ServerOptions{Options: bench.Options{TCP: tcp}})
		client := s.startClient(s.exec(s.Clients[0]), 0, bench.ClientOptions{Options: bench.Options{TCP: tcp}})
		here, _ := s.addrs(server)
		s.requirePing(s.Clients[0], here)
		pids := slices.Concat(descendants(server.PID()), descendants(client.PID()))
		d.kill()
		for _, tunnel := range []*bench.Tunnel{server, client} {
			if code, err := tunnel.Wait(); code != 126 || err != nil {
				t.Errorf("%s ends with %d, %v", tunnel.Name, code, err)
			}
			if !tunnel.Log.Contains("the daemon is gone") {
				t.Errorf("%s does not say why it has ended", tunnel.Name)
			}
			s.requireGone(tunnel)
		}
		eventually(t, 10*time.Second, "every process of the clients to end", func() bool {
			return !slices.ContainsFunc(pids, alive)
		})
		d.start()
	}
}

// TestDaemonRefuses: the daemon's rights are not its clients'.
func TestDaemonRefuses(t *testing.T) {
	t.Parallel()
	requireTools(t, "setpriv")
	d := startDaemon(t, raceBinary)
	star := benchtest.Star(t, 1)
	d.mustRun(star.Server, "", "link", "add", "mp0", "--mode", "mp")
	for _, command := range [][]string{
		{"--socket", d.socket, "link", "add", "other0"},
		{"--socket", d.socket, "link", "del", "mp0"},
		{"--socket", d.socket, "peer", "add", "mp0", "1", "--local", ":1194", "--remote", "127.0.0.1:9", "--vpn-ipv4", "10.8.0.2"},
		{"--socket", d.socket, "show", "mp0"},
		{"--socket", d.socket, "exec", "--datapath", "userspace", "--", "ip", "link", "add", "other0", "type", "ovpn"},
		{"--socket", d.socket, "exec", "--datapath", "userspace", "--", "ip", "link", "del", "mp0"},
		{"--socket", d.socket, "exec", "--datapath", "userspace", "--", d.binary, "peer", "del", "mp0", "1"},
	} {
		t.Run(strings.Join(command[2:], " "), func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), "setpriv", append([]string{"--bounding-set=-net_admin", "--inh-caps=-net_admin", d.binary}, command...)...)
			cmd.Env = append(cmd.Environ(), "GORACE=atexit_sleep_ms=0")
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			err := star.Server.Do(cmd.Start)
			if err == nil {
				err = cmd.Wait()
			}
			if refused := regexp.MustCompile(`(?i)operation not permitted`); err == nil || !refused.Match(out.Bytes()) {
				t.Errorf("it ends with %v\n%s", err, out.Bytes())
			}
		})
	}
	d.mustRun(star.Server, "0 peers", "show")
	d.mustRun(star.Server, "", "link", "del", "mp0")
}

// TestDaemonCannotLook: a daemon that may not look at a client, or not take its descriptors, says so to the client and in its log, keeps
// nothing of it and goes on serving the others.
func TestDaemonCannotLook(t *testing.T) {
	t.Parallel()
	requireTools(t, "setpriv")
	benchtest.Root(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	fewer := []string{"setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"}
	other := []string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=+net_admin", "--ambient-caps=+net_admin"}
	link := []string{"link", "add", "other0"}
	run := []string{"exec", "--datapath", "userspace", "--", "true"}
	peer := []string{"peer", "add", "own0", "1", "--local", ":1194", "--remote", "127.0.0.1:9"}
	for _, daemon := range []struct {
		name     string
		handicap handicap
		says     string
		refused  map[string][2][]string // a client's prefix, and what it runs
	}{
		{"without CAP_SYS_PTRACE", handicap{Drop: []int{unix.CAP_SYS_PTRACE}}, "CAP_SYS_PTRACE: .*permission denied", map[string][2][]string{
			"one with more rights":                 {nil, link},
			"one with more rights, under a filter": {nil, run},
			"one of another user":                  {other, link},
			"one of another user, under a filter":  {other, run},
			"one of another user, that only looks": {other, {"show"}},
		}},
		{"without pidfd_getfd", handicap{Deny: []denial{deny(unix.SYS_PIDFD_GETFD, unix.EPERM)}}, "operation not permitted|peer socket .*-1", map[string][2][]string{
			"one under a filter": {fewer, run},
			"one with a socket":  {fewer, peer},
		}},
	} {
		t.Run(daemon.name, func(t *testing.T) {
			d := startDaemon(t, raceBinary, "env", daemon.handicap.variable(t), self)
			for dir := filepath.Dir(d.socket); dir != os.TempDir(); dir = filepath.Dir(dir) {
				if err := os.Chmod(dir, 0o711); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Chmod(d.socket, 0o666); err != nil {
				t.Fatal(err)
			}
			binary := filepath.Join(filepath.Dir(d.socket), "ovpn-go") // where another user finds it
			if err := os.Link(d.binary, binary); err != nil {
				t.Fatal(err)
			}
			node := benchtest.Star(t, 1).Server
			command := func(prefix, args []string) (string, error) {
				line := slices.Concat(prefix, []string{binary, "--socket", d.socket}, args)
				cmd := exec.CommandContext(t.Context(), line[0], line[1:]...)
				cmd.Env = append(cmd.Environ(), "GORACE=atexit_sleep_ms=0")
				var out bytes.Buffer
				cmd.Stdout, cmd.Stderr = &out, &out
				err := node.Do(cmd.Start)
				if err == nil {
					err = cmd.Wait()
				}
				return out.String(), err
			}
			mustServe := func(args ...string) {
				t.Helper()
				if out, err := command(fewer, args); err != nil {
					t.Fatalf("%v: %v\n%s", args, err, out)
				}
			}
			mustServe("link", "add", "own0")
			mustServe("link", "del", "own0")
			before := held(t, d.cmd.Process.Pid, d.pprof) // with what is made once
			mustServe("link", "add", "own0")
			for name, client := range daemon.refused {
				out, err := command(client[0], client[1])
				if err == nil || !regexp.MustCompile(daemon.says).MatchString(out) {
					t.Errorf("%s: %v ends with %v\n%s", name, client[1], err, out)
				}
			}
			if has, err := node.HasLink("other0"); err != nil || has {
				t.Errorf("a client that was refused has its link (%v)", err)
			}
			if out, err := command(fewer, []string{"show"}); err != nil || !strings.Contains(out, "0 peers") {
				t.Errorf("show: %v\n%s", err, out)
			}
			mustServe("link", "del", "own0")
			requireHeld(t, d.cmd.Process.Pid, d.pprof, before)
		})
	}
}

// TestDaemonSocket: who may connect is decided by the socket's mode.
func TestDaemonSocket(t *testing.T) {
	t.Parallel()
	d := startDaemon(t, plainBinary)
	info, err := os.Stat(d.socket)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket's mode is %v, %v", info.Mode(), err)
	}
	out, err := exec.Command(d.binary, "serve", "--socket", d.socket).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another daemon") {
		t.Errorf("a second daemon on the same socket ends with %v\n%s", err, out)
	}
	// doctor finds it, and would say so if it were not usable.
	out, _ = exec.Command(d.binary, "doctor", "--json", "--socket", d.socket).Output()
	if !strings.Contains(string(out), "one answers at "+d.socket) {
		t.Errorf("doctor does not find the daemon:\n%s", out)
	}
	missing := filepath.Join(d.TempDir(), "missing")
	for _, command := range []string{"show", "exec -- true"} {
		out, err = exec.Command(d.binary, append([]string{"--socket", missing}, strings.Fields(command)...)...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), missing) {
			t.Errorf("%s without the daemon that was named ends with %v\n%s", command, err, out)
		}
	}
}

// TestDaemonIsActivated: the daemon takes the socket that a service manager has opened, and leaves it there.
func TestDaemonIsActivated(t *testing.T) {
	t.Parallel()
	requireTools(t, "systemd-socket-activate")
	binary, err := plainBinary()
	if err != nil {
		t.Fatal(err)
	}
	benchtest.Root(t)
	socket := filepath.Join(t.TempDir(), "socket")
	activate := exec.CommandContext(t.Context(), "systemd-socket-activate", "--seqpacket", "-l", socket, binary, "serve")
	var log bytes.Buffer
	activate.Stdout, activate.Stderr = &log, &log
	if err := activate.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if t.Failed() {
			t.Logf("%s", log.Bytes())
		}
	}()
	eventually(t, 10*time.Second, "the socket", func() bool {
		_, err := os.Stat(socket)
		return err == nil
	})
	star := benchtest.Star(t, 1)
	d := &daemonProcess{T: t, binary: binary, socket: socket}
	d.mustRun(star.Server, "", "link", "add", "mp0", "--mode", "mp")
	d.mustRun(star.Server, "mp0", "link", "show")
	if err := activate.Process.Signal(unix.SIGTERM); err != nil { // it has become the daemon
		t.Error(err)
	}
	if err := activate.Wait(); err != nil {
		t.Errorf("the daemon ends with %v", err)
	}
	if has, err := star.Server.HasLink("mp0"); err != nil || has {
		t.Errorf("the daemon has left its interface (%v)", err)
	}
	if _, err := os.Stat(socket); err != nil {
		t.Error("the daemon has removed the service manager's socket")
	}
}
