package bench_test

import (
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/bench"
)

// The work of a process's children is its own, and so is that of theirs; the machine was at least as busy.
func TestProcessTreeCPU(t *testing.T) {
	// Two shells, one the other's child, and the inner one turns until it is killed.
	cmd := exec.Command("sh", "-c", `sh -c 'while :; do :; done'; :`)
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	machine, err := bench.ReadCPU()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		cmd.Wait()
	})
	const enough = 100 * time.Millisecond
	deadline := time.Now().Add(20 * time.Second)
	for {
		used, err := bench.ProcessTreeCPU(cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		if used >= enough {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v after a loop of 20 s", used)
		}
		time.Sleep(10 * time.Millisecond)
	}
	now, err := bench.ReadCPU()
	if err != nil {
		t.Fatal(err)
	}
	// Two clocks that tick a hundred times a second.
	if busy := now.Sub(machine).Busy; busy < enough/2 {
		t.Errorf("the machine was busy for %v", busy)
	}
	if none, err := bench.ProcessTreeCPU(); err != nil || none != 0 {
		t.Errorf("of no process: %v, %v", none, err)
	}
}
