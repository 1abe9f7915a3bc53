package test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/bench"
	"ovpn-go/bench/benchtest"
	"ovpn-go/netlinksrv/daemon/wire"
)

// A sessionHost is a process that goes through sessions, or a shell that starts one for each line it reads, with all that it was
// started by.
type sessionHost struct {
	*testing.T
	node    *bench.Node
	cmd     *exec.Cmd
	in      io.WriteCloser
	lines   *bufio.Scanner
	err     bytes.Buffer
	service int // the daemon's process id, if there is one
}

// startHost starts a session by the command that prefix is the beginning of, or with many a shell for sessions. socket is that of the
// daemon to use, or wire.None.
func startHost(t *testing.T, node *bench.Node, tcp, many bool, socket string, prefix ...string) *sessionHost {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	command := []string{self, "step"}
	if many {
		command = []string{"/bin/sh", "-c", `while read how; do "$0" $how; echo ended $?; done`, self}
	}
	command = append(prefix, command...)
	h := &sessionHost{T: t, node: node, cmd: exec.Command(command[0], command[1:]...)}
	h.cmd.Env = append(os.Environ(), sessionVariable+"="+transportName(tcp), wire.Variable+"="+socket, "GORACE=atexit_sleep_ms=0")
	h.cmd.Stderr = &h.err
	if h.in, err = h.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	h.lines = bufio.NewScanner(out)
	if err := node.Do(h.cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.wait() })
	return h
}

func transportName(tcp bool) string {
	if tcp {
		return "tcp"
	}
	return "udp"
}

// wait ends the host's input, waits until it has ended, and returns its exit status as a shell would give it.
func (h *sessionHost) wait() int {
	h.Helper()
	if h.cmd.ProcessState == nil {
		h.in.Close()
		for h.lines.Scan() {
		}
		h.cmd.Wait()
		if bad := regexp.MustCompile("DATA RACE|level=ERROR|panic|may miss events").Find(h.err.Bytes()); bad != nil || h.Failed() {
			h.Errorf("the host says:\n%s", h.err.Bytes())
		}
	}
	status := h.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}

func (h *sessionHost) say(line string) {
	h.Helper()
	if _, err := fmt.Fprintln(h.in, line); err != nil {
		h.Fatal(err)
	}
}

// line reads a line. Who keeps it waiting for too long is asked what it is doing.
func (h *sessionHost) line() string {
	h.Helper()
	stuck := time.AfterFunc(time.Minute, func() {
		for _, pid := range append(descendants(h.cmd.Process.Pid), h.service) {
			if pid > 0 {
				unix.Kill(pid, unix.SIGQUIT)
			}
		}
	})
	defer stuck.Stop()
	if !h.lines.Scan() {
		h.Fatalf("the session's host has ended\n%s", h.err.Bytes())
	}
	return h.lines.Text()
}

func (h *sessionHost) expect(want string) {
	h.Helper()
	if got := h.line(); got != want {
		h.Fatalf("the session says %q, want %q", got, want)
	}
}

// pid reads the process id of a session that begins.
func (h *sessionHost) pid() int {
	h.Helper()
	pid, err := strconv.Atoi(h.line())
	if err != nil {
		h.Fatal(err)
	}
	return pid
}

// upTo has a session that has said its process id go on up to a step, by its number.
func (h *sessionHost) upTo(last int) {
	h.Helper()
	for i, step := range sessionSteps[:last+1] {
		h.expect(step.name)
		if i < last {
			h.say("go on")
		}
	}
}

// whole has the shell run a session from its beginning to its end.
func (h *sessionHost) whole() {
	h.Helper()
	h.say("hurry")
	h.pid()
	h.expect("ended 0")
}

// clear has the shell clear what a session left.
func (h *sessionHost) clear() {
	h.Helper()
	h.say("clear")
	h.expect("ended 0")
	h.requireLink(false)
}

// requireLink checks whether the session's link is there.
func (h *sessionHost) requireLink(want bool) {
	h.Helper()
	if has, err := h.node.HasLink(sessionLink); err != nil || has != want {
		h.Errorf("the link is there: %v (%v), want %v", has, err, want)
	}
}

// requireNothing waits until processes and the link have gone.
func (h *sessionHost) requireNothing(pids []int) {
	h.Helper()
	eventually(h.T, 15*time.Second, "the processes to end", func() bool { return !slices.ContainsFunc(pids, alive) })
	eventually(h.T, 15*time.Second, "the link to go", func() bool {
		has, err := h.node.HasLink(sessionLink)
		return err == nil && !has
	})
}

func kill(t *testing.T, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// held asks a program of ours that serves profiles at a socket what it holds beside memory.
func held(t *testing.T, pid int, socket string) holding {
	t.Helper()
	goroutines := profileNumber(t, socket, "goroutine?debug=1", "goroutine profile: total ")
	return holding{descriptors: descriptors(t, pid), goroutines: goroutines}
}

// requireHeld waits until a program of ours holds no more than it did.
func requireHeld(t *testing.T, pid int, path string, want holding) {
	t.Helper()
	var now holding
	deadline := time.Now().Add(15 * time.Second)
	for now = held(t, pid, path); now.descriptors > want.descriptors || now.goroutines > want.goroutines; now = held(t, pid, path) {
		if time.Now().After(deadline) {
			t.Fatalf("the program holds %d descriptors and %d goroutines, before it was %d and %d",
				now.descriptors, now.goroutines, want.descriptors, want.goroutines)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// leavesLink reports whether a session that ends after a step leaves its link.
func leavesLink(step int) bool {
	number := func(name string) int {
		return slices.IndexFunc(sessionSteps, func(s sessionStep) bool { return s.name == name })
	}
	return step >= number(linkMade) && step < number(linkDeleted)
}

// TestClientKilledAtAnyStep: of a client that is killed, after any step of its session, its link is left, as by the kernel's module, and
// nothing else: the next session finds everything free.
func TestClientKilledAtAnyStep(t *testing.T) { overBoth(t, testClientKilledAtAnyStep) }

func testClientKilledAtAnyStep(t *testing.T, tcp bool) {
	eachService(t, tcp, func(t *testing.T, h *sessionHost, pid int, pprof string) {
		h.whole() // what is made once is made now
		before := held(t, pid, pprof)
		for step := range sessionSteps {
			h.say("step")
			session := h.pid()
			h.upTo(step)
			kill(t, session)
			h.expect("ended 137")
			h.requireLink(leavesLink(step))
			h.clear()
			requireHeld(t, pid, pprof, before)
		}
		h.whole()
	})
}

// eachService runs a test with a host for sessions of each kind: served by a supervisor of their own, by a daemon, and by a daemon under a
// supervisor. pid is who serves, and pprof where it serves profiles.
func eachService(t *testing.T, tcp bool, test func(t *testing.T, h *sessionHost, pid int, pprof string)) {
	benchtest.Root(t)
	for _, service := range []struct {
		name        string
		daemon, run bool
	}{
		{"beside others under one supervisor", false, true},
		{"of a daemon", true, false},
		{"of a daemon, under a supervisor", true, true},
	} {
		t.Run(service.name, func(t *testing.T) {
			t.Parallel()
			var h *sessionHost
			var pid int // of who serves
			var pprof string
			if service.daemon {
				d := startDaemon(t, raceBinary)
				node := benchtest.Star(t, 1).Server
				pid, pprof = d.cmd.Process.Pid, d.pprof
				if service.run {
					h = startHost(t, node, tcp, true, wire.None, d.binary, "--socket", d.socket, "exec", "--datapath", "userspace", "--")
				} else {
					h = startHost(t, node, tcp, true, d.socket)
				}
				h.service = pid
			} else {
				binary, err := raceBinary()
				if err != nil {
					t.Fatal(err)
				}
				pprof = filepath.Join(t.TempDir(), "pprof")
				h = startHost(t, benchtest.Star(t, 1).Server, tcp, true, wire.None,
					binary, "exec", "--datapath", "userspace", "--log-level", "warn", "--pprof", pprof, "--")
				pid = h.cmd.Process.Pid
			}
			test(t, h, pid, pprof)
		})
	}
}

// TestKilledWithItsSupervisor: a program that has no other client ends with the one that was killed, as it did, after any step of a session,
// and when it is killed itself its client is as well. Nothing is left in either case.
func TestKilledWithItsSupervisor(t *testing.T) { overBoth(t, testKilledWithItsSupervisor) }

func testKilledWithItsSupervisor(t *testing.T, tcp bool) {
	binary, err := raceBinary()
	if err != nil {
		t.Fatal(err)
	}
	for _, victim := range []string{"client", "supervisor"} {
		t.Run(victim, func(t *testing.T) {
			t.Parallel()
			node := benchtest.Star(t, 1).Server
			for step := range sessionSteps {
				h := startHost(t, node, tcp, false, wire.None, binary, "exec", "--datapath", "userspace", "--log-level", "warn", "--")
				client, supervisor := h.pid(), h.cmd.Process.Pid
				pids := descendants(supervisor)
				h.upTo(step)
				if victim == "client" {
					kill(t, client)
				} else {
					kill(t, supervisor)
				}
				if status := h.wait(); status != 137 {
					t.Errorf("%s: the program ends with %d", sessionSteps[step].name, status)
				}
				h.requireNothing(pids)
			}
		})
	}
}

// TestDaemonKilledAtAnyStep: after any step of a session the daemon may be killed. A client under its supervisor is killed, one of the daemon's
// own is told, and the next daemon serves the next ones.
func TestDaemonKilledAtAnyStep(t *testing.T) { overBoth(t, testDaemonKilledAtAnyStep) }

func testDaemonKilledAtAnyStep(t *testing.T, tcp bool) {
	t.Parallel()
	d := startDaemon(t, raceBinary)
	star := benchtest.Star(t, 1)
	for step := range sessionSteps {
		run := startHost(t, star.Server, tcp, false, wire.None, d.binary, "--socket", d.socket, "exec", "--datapath", "userspace", "--")
		direct := startHost(t, star.Clients[0], tcp, false, d.socket)
		run.pid()
		direct.pid()
		pids := append(descendants(run.cmd.Process.Pid), descendants(direct.cmd.Process.Pid)...)
		run.upTo(step)
		direct.upTo(step)
		d.kill()
		if status := run.wait(); status != 126 {
			t.Errorf("%s: the client's program ends with %d", sessionSteps[step].name, status)
		}
		// It goes on until it needs the daemon.
		for going := true; going; {
			_, _ = fmt.Fprintln(direct.in, "go on") // it may have ended
			going = direct.lines.Scan()
			if why, ok := strings.CutPrefix(direct.lines.Text(), "failed: "); ok && !regexp.MustCompile("the daemon is gone|network is unreachable").MatchString(why) {
				t.Errorf("after %q the client fails: %s", sessionSteps[step].name, why)
			}
		}
		want := 1
		if step == len(sessionSteps)-1 {
			want = 0
		}
		if status := direct.wait(); status != want {
			t.Errorf("%s: the client ends with %d, want %d", sessionSteps[step].name, status, want)
		}
		run.requireNothing(pids)
		direct.requireNothing(nil)
		d.start()
	}
}
