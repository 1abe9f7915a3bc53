package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/bench"
)

// demoLimit is what the demo promises; it is measured with the program as it is shipped.
const demoLimit = 20 * time.Second

func demoCommand(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	requireOpenVPN(t)
	binary, err := plainBinary()
	if err != nil {
		t.Fatal(err)
	}
	return exec.Command(binary, append([]string{"demo"}, args...)...)
}

func TestDemo(t *testing.T) {
	cmd := demoCommand(t, "--json")
	var out, progress bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &progress
	begin := time.Now()
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, progress.String())
	}
	if took := time.Since(begin); took > demoLimit {
		t.Errorf("took %v, more than %v", took, demoLimit)
	}
	var result bench.DemoResult
	if err := json.Unmarshal(out.Bytes(), &result); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	if len(result.Tunnels) != 3 || !strings.HasPrefix(result.OpenVPN, "OpenVPN 2") || result.Ratio < 1 {
		t.Errorf("got %+v", result)
	}
	for _, tunnel := range result.Tunnels {
		if tunnel.PingsLost != 0 || tunnel.GbitPerSecond <= 0 {
			t.Errorf("got %+v", tunnel)
		}
	}
}

// TestDemoInterrupted: Ctrl-C in the middle ends the demo and all that it started.
func TestDemoInterrupted(t *testing.T) {
	t.Parallel()
	interrupt(t, demoCommand(t, "--duration", "1h"), "--disable-dco", 6)
}

// interrupt sends Ctrl-C to a command that has printed the text and has more processes than the number given, and
// requires that it says so and leaves nothing behind.
func interrupt(t *testing.T, cmd *exec.Cmd, text string, processes int) {
	t.Helper()
	tmp := t.TempDir()
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var seen []byte
	for buf := make([]byte, 4096); !bytes.Contains(seen, []byte(text)); {
		n, err := out.Read(buf)
		seen = append(seen, buf[:n]...)
		if err != nil {
			cmd.Wait()
			t.Fatalf("%v; output:\n%s%s", err, seen, complaints.String())
		}
	}
	eventually(t, 20*time.Second, "the command's processes", func() bool { return len(descendants(cmd.Process.Pid)) > processes })
	pids := descendants(cmd.Process.Pid)
	if err := cmd.Process.Signal(unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	for buf := make([]byte, 4096); err == nil; {
		_, err = out.Read(buf)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("ended with %v", err)
	}
	if !strings.Contains(complaints.String(), "interrupted") {
		t.Errorf("it said %q", complaints.String())
	}
	for _, pid := range pids {
		if alive(pid) {
			t.Errorf("process %d is still there", pid)
		}
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v (%v)", left, err)
	}
}

// TestDemoWithoutRoot: whoever lacks the rights is told so, by a text and an exit status.
func TestDemoWithoutRoot(t *testing.T) {
	t.Parallel()
	cmd := demoCommand(t)
	const nobody = 65534
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 2 {
		t.Errorf("ended with %v", err)
	}
	if !strings.Contains(string(out), "need root") {
		t.Errorf("it said %q", out)
	}
}
