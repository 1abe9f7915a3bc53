package exec

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	osexec "os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestExitStatus(t *testing.T) {
	tests := []struct {
		name    string
		command []string
		want    Status
		errno   unix.Errno
	}{
		{"success", []string{"true"}, Status{}, 0},
		{"failure", []string{"false"}, Status{Code: 1}, 0},
		{"any status", []string{"sh", "-c", "exit 77"}, Status{Code: 77}, 0},
		{"a signal", []string{"sh", "-c", "kill -TERM $$"}, Status{Code: 143, Signal: unix.SIGTERM}, 0},
		{"kill", []string{"sh", "-c", "kill -KILL $$"}, Status{Code: 137, Signal: unix.SIGKILL}, 0},
		{"no such program", []string{"/nonexistent"}, Status{Code: 127}, unix.ENOENT},
		{"not executable", []string{"/etc/passwd"}, Status{Code: 126}, unix.EACCES},
		{"a directory", []string{"/"}, Status{Code: 126}, unix.EISDIR},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			o := underSupervisor(t, newFakeServer(), nil, test.command...)
			if diff := cmp.Diff(test.want, o.status); diff != "" {
				t.Errorf("status (-want +got):\n%s\n%s", diff, o.output)
			}
			if test.errno == 0 && o.err != nil || test.errno != 0 && !errors.Is(o.err, test.errno) {
				t.Errorf("error %v, want %v", o.err, test.errno)
			}
		})
	}
}

// What a program can see of its surroundings is the same with and without a supervisor.
func TestSurroundingsPassThrough(t *testing.T) {
	extra, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer extra.Close()
	const number = 11
	if err := unix.Dup2(int(extra.Fd()), number); err != nil { // without close-on-exec
		t.Fatal(err)
	}
	defer unix.Close(number)
	t.Setenv("OVPN_EXEC_TEST", "a value\nof two lines")
	t.Chdir(t.TempDir())
	script := `{ ulimit -a; ulimit -Ha; umask; pwd; env | grep -v ^_= | sort; ls /proc/$$/fd; readlink /proc/$$/fd/11
		cut -d' ' -f5-8 /proc/$$/stat; nice; cat /proc/$$/cgroup; cat /proc/$$/oom_score_adj
		exec grep -E '^(Sig(Blk|Ign)|Cap|Uid|Gid|Groups)' /proc/self/status; }`

	direct, err := syscall.ForkExec("/bin/sh", []string{"sh", "-c", script + " > direct"}, &syscall.ProcAttr{
		Env: os.Environ(), Files: []uintptr{0, 1, 2},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ignoringEINTR(func() (int, error) { return unix.Wait4(direct, nil, 0, nil) }); err != nil {
		t.Fatal(err)
	}
	mustSucceed(t, newFakeServer(), "sh", "-c", script+" > supervised")

	read := func(name string) string {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	want := read("direct")
	if !strings.Contains(want, "/dev/null\n") {
		t.Errorf("descriptor %d is missing from\n%s", number, want)
	}
	if diff := cmp.Diff(want, read("supervised")); diff != "" {
		t.Errorf("surroundings differ (-direct +supervised):\n%s", diff)
	}
}

// A pipe that only the client has got ends when the client closes it.
func TestInheritedDescriptorsAreTheClientsAlone(t *testing.T) {
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	gate, open, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer gate.Close()
	argv := roleCommand("supervise", "sh", "-c", "echo written >&3; exec 3>&-; read line; exit 3")
	cmd := osexec.Command(argv[0], argv[1:]...)
	cmd.ExtraFiles = []*os.File{write}
	cmd.Stdin = gate
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	write.Close()
	if b, err := io.ReadAll(read); err != nil || string(b) != "written\n" {
		t.Errorf("read %q, %v", b, err)
	}
	open.Close() // lets the client end
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 3 {
		t.Errorf("exit status %d", code)
	}
}

func TestServiceManagerVariablesNameTheClient(t *testing.T) {
	t.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	t.Setenv("WATCHDOG_PID", "1")
	mustSucceed(t, newFakeServer(), "sh", "-c", `test "$LISTEN_PID $WATCHDOG_PID" = "$$ 1"`)
	garbage := filepath.Join(t.TempDir(), "garbage")
	if err := os.WriteFile(garbage, []byte("no program"), 0o755); err != nil {
		t.Fatal(err)
	}
	if o := underSupervisor(t, newFakeServer(), nil, garbage); o.err != nil || o.status != (Status{Code: 126}) {
		t.Errorf("a program that can't be executed: %v, %v", o.status, o.err)
	}
}

func TestWindowBelow(t *testing.T) {
	tests := []struct {
		soft uint64
		want window
	}{
		{unix.RLIM_INFINITY, window{768, 1024}},
		{1 << 20, window{768, 1024}},
		{1024, window{768, 1024}},
		{512, window{384, 512}},
		{256, window{192, 256}},
		{20, window{15, 20}},
	}
	for _, test := range tests {
		if got := windowBelow(test.soft); got != test.want {
			t.Errorf("below %d: %v, want %v", test.soft, got, test.want)
		}
	}
}

func TestLowLimitOnDescriptors(t *testing.T) {
	// The supervisor's own soft limit decides, so it needs a process of its own.
	command := append([]string{"-c", "ulimit -Sn 256; exec \"$@\"", "sh"}, roleCommand("supervise", roleCommand("low")...)...)
	out, err := osexec.Command("sh", command...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func TestCancelledContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	reason := errors.New("enough")
	var pid int
	o := superviseUntil(t, ctx, newFakeServer(), func(o *options) {
		o.started = func(client, _ int) { pid = client; cancel(reason) }
	}, "sleep", "1000")
	if !errors.Is(o.err, reason) {
		t.Errorf("error %v, want %v", o.err, reason)
	}
	if alive(pid) {
		t.Error("client is still there")
	}
}

func init() {
	// supervise is Run with the fake server. It prints the pids of client and guard and ends as the
	// client ends.
	roles["supervise"] = func(args []string) error {
		logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
		status, err := run(context.Background(), options{
			args:          args,
			logger:        logger,
			session:       newSession(newFakeServer(), logger),
			stdio:         [3]uintptr{0, 1, 2},
			dropInherited: true,
			probe:         Probe,
			started:       func(client, guard int) { fmt.Printf("client %d guard %d\n", client, guard) },
		})
		if err != nil {
			return err
		}
		status.Exit()
		return nil
	}
	roles["low"] = func([]string) error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_GENERIC)
		if err == nil && (fd < 192 || fd >= 256) {
			err = fmt.Errorf("socket is %d", fd)
		}
		if err != nil {
			return err
		}
		return expectAnswers(fd, toKernel(fd), 1)
	}
	// signals prints what it gets and ends with SIGTERM.
	roles["signals"] = func([]string) error {
		got := make(chan os.Signal, 16)
		signal.Notify(got, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGHUP, unix.SIGINT)
		fmt.Println("ready")
		for s := range got {
			fmt.Println("got", s)
			if s == unix.SIGTERM {
				break
			}
		}
		signal.Reset(unix.SIGQUIT)
		return nil
	}
	// family starts a child in a session of its own, and another that starts one and ends. Each of
	// the three that stay says its pid and uses a netlink socket over and over.
	roles["family"] = func(args []string) error {
		for _, level := range []string{"child", "parent"} {
			argv := roleCommand("member", level)
			if _, err := syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{
				Env: os.Environ(), Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{Setsid: true},
			}); err != nil {
				return err
			}
		}
		return roles["member"]([]string{"client"})
	}
	roles["member"] = func(args []string) error {
		if args[0] == "parent" {
			argv := roleCommand("member", "orphan", strconv.Itoa(os.Getpid()))
			_, err := syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}})
			return err
		}
		if args[0] == "orphan" {
			for strconv.Itoa(os.Getppid()) == args[1] {
				time.Sleep(time.Millisecond)
			}
		}
		fmt.Println(args[0], os.Getpid())
		fd, err := openNetlink(0, unix.NETLINK_GENERIC)
		if err != nil {
			return err
		}
		for i := uint32(0); ; i++ {
			// Retried for ever without a look at the error, as OpenVPN does.
			if expectAnswers(fd, toKernel(fd), i) == nil {
				time.Sleep(time.Millisecond)
			}
		}
	}
	// daemon leaves a process behind and ends with status 5.
	roles["daemon"] = func([]string) error {
		argv := roleCommand("signals")
		if _, err := syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{
			Env: os.Environ(), Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{Setsid: true},
		}); err != nil {
			return err
		}
		os.Exit(5)
		return nil
	}
}

// supervised is a supervisor in a process of its own.
type supervised struct {
	t                         *testing.T
	cmd                       *osexec.Cmd
	lines                     *bufio.Scanner
	early                     []string // lines to be returned before those that follow
	supervisor, guard, client int
}

// startSupervised runs a role under a supervisor that leads a process group.
func startSupervised(t *testing.T, role string) *supervised {
	t.Helper()
	argv := roleCommand("supervise", roleCommand(role)...)
	cmd := osexec.Command(argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := &supervised{t: t, cmd: cmd, lines: bufio.NewScanner(out), supervisor: cmd.Process.Pid}
	timeout := time.AfterFunc(time.Minute, func() {
		t.Error("supervisor takes too long")
		cmd.Process.Kill()
	})
	t.Cleanup(func() {
		timeout.Stop()
		cmd.Process.Kill()
	})
	// The client may have said something before the supervisor heard that it runs.
	var early []string
	for s.client == 0 {
		line := s.line()
		if n, _ := fmt.Sscanf(line, "client %d guard %d", &s.client, &s.guard); n == 0 {
			early = append(early, line)
		}
	}
	s.early = early
	return s
}

// line returns the next line of output.
func (s *supervised) line() string {
	s.t.Helper()
	if len(s.early) > 0 {
		line := s.early[0]
		s.early = s.early[1:]
		return line
	}
	if !s.lines.Scan() {
		s.t.Fatal("no more output")
	}
	return s.lines.Text()
}

// expectLine fails the test unless the next line is want.
func (s *supervised) expectLine(want string) {
	s.t.Helper()
	if got := s.line(); got != want {
		s.t.Fatalf("line %q, want %q", got, want)
	}
}

// wait returns how the supervisor ended.
func (s *supervised) wait() Status {
	s.t.Helper()
	for s.lines.Scan() {
	}
	s.cmd.Wait()
	return statusOf(unix.WaitStatus(s.cmd.ProcessState.Sys().(syscall.WaitStatus)))
}

func TestSignalsReachTheClientOnce(t *testing.T) {
	s := startSupervised(t, "signals")
	s.expectLine("ready")
	// To the supervisor alone: passed on.
	unix.Kill(s.supervisor, unix.SIGUSR1)
	s.expectLine("got user defined signal 1")
	unix.Kill(s.supervisor, unix.SIGHUP)
	s.expectLine("got hangup")
	unix.Kill(s.supervisor, unix.SIGINT)
	s.expectLine("got interrupt")
	// To the group, as a terminal does: the client has it already.
	unix.Kill(-s.supervisor, unix.SIGUSR2)
	s.expectLine("got user defined signal 2")
	unix.Kill(-s.supervisor, unix.SIGINT)
	s.expectLine("got interrupt")
	unix.Kill(s.supervisor, unix.SIGUSR1)
	s.expectLine("got user defined signal 1")
	unix.Kill(s.supervisor, unix.SIGTERM)
	s.expectLine("got terminated")
	if status := s.wait(); status != (Status{}) {
		t.Errorf("supervisor ended with %v", status)
	}
}

func TestSupervisorEndsByTheClientsSignal(t *testing.T) {
	for _, sig := range []unix.Signal{unix.SIGKILL, unix.SIGQUIT, unix.SIGSEGV, unix.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			argv := roleCommand("supervise", "sh", "-c", fmt.Sprintf("ulimit -c 0; kill -%d $$", sig))
			cmd := osexec.Command(argv[0], argv[1:]...)
			out, err := cmd.CombinedOutput()
			status := unix.WaitStatus(cmd.ProcessState.Sys().(syscall.WaitStatus))
			if !status.Signaled() || status.Signal() != sig || status.CoreDump() {
				t.Errorf("supervisor ended with %v: %v\n%s", status, err, out)
			}
		})
	}
}

func TestDaemonKeepsTheSupervisor(t *testing.T) {
	s := startSupervised(t, "daemon")
	s.expectLine("ready")
	eventually(t, "client ended", func() bool { return !alive(s.client) })
	unix.Kill(s.supervisor, unix.SIGUSR1)
	s.expectLine("got user defined signal 1")
	unix.Kill(s.supervisor, unix.SIGTERM)
	s.expectLine("got terminated")
	if status := s.wait(); status != (Status{Code: 5}) {
		t.Errorf("supervisor ended with %v", status)
	}
}

func TestNothingOutlivesAKilledPart(t *testing.T) {
	tests := []struct {
		name   string
		victim func(*supervised) []int
		want   Status
	}{
		{"supervisor", func(s *supervised) []int { return []int{s.supervisor} }, Status{Code: 137, Signal: unix.SIGKILL}},
		{"guard", func(s *supervised) []int { return []int{s.guard} }, Status{Code: 1}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := startSupervised(t, "family")
			pids := []int{s.guard, s.client, s.supervisor}
			for range 3 {
				var name string
				var pid int
				if _, err := fmt.Sscan(s.line(), &name, &pid); err != nil {
					t.Fatal(err)
				}
				pids = append(pids, pid)
			}
			for _, pid := range test.victim(s) {
				unix.Kill(pid, unix.SIGKILL)
			}
			if status := s.wait(); status != test.want {
				t.Errorf("supervisor ended with %v, want %v", status, test.want)
			}
			for _, pid := range pids {
				eventually(t, fmt.Sprintf("process %d of %v is gone", pid, pids), func() bool { return !alive(pid) })
			}
		})
	}
}

// With both gone at once nobody is left to sweep, but the client itself still ends.
func TestClientFollowsBoth(t *testing.T) {
	s := startSupervised(t, "signals")
	s.expectLine("ready")
	unix.Kill(s.supervisor, unix.SIGSTOP)
	unix.Kill(s.guard, unix.SIGKILL)
	unix.Kill(s.supervisor, unix.SIGKILL)
	eventually(t, "client is gone", func() bool { return !alive(s.client) })
	s.wait()
}

func TestKilledClientLeavesTheRest(t *testing.T) {
	s := startSupervised(t, "family")
	others := map[string]int{}
	for range 3 {
		var name string
		var pid int
		if _, err := fmt.Sscan(s.line(), &name, &pid); err != nil {
			t.Fatal(err)
		}
		others[name] = pid
	}
	unix.Kill(s.client, unix.SIGKILL)
	eventually(t, "client is gone", func() bool { return !alive(s.client) })
	for _, name := range []string{"child", "orphan"} {
		if !alive(others[name]) || !alive(s.supervisor) {
			t.Errorf("%s is gone too", name)
		}
	}
	unix.Kill(s.supervisor, unix.SIGTERM)
	if status := s.wait(); status != (Status{Code: 137, Signal: unix.SIGKILL}) {
		t.Errorf("supervisor ended with %v", status)
	}
	for name, pid := range others {
		eventually(t, name+" is gone", func() bool { return !alive(pid) })
	}
}
