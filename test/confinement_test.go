package test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// TestSupervisorKeepsItsMemoryToItself: the program's process holds the keys. It leaves no core file, no process of its
// user may look into it, and its memory is not swapped out where that can be had. Its command has nothing of this.
func TestSupervisorKeepsItsMemoryToItself(t *testing.T) {
	const nobody = 65534
	program, err := plainBinary()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		user uint32
		lock bool
	}{
		{"root", 0, exec.Command("sh", "-c", "ulimit -l unlimited").Run() == nil},
		{"another user", nobody, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command("sh", "-c", `ulimit -S -c 2000 && ulimit -S -l 64 && ulimit -H -l 64 && exec "$0" exec --datapath userspace -- sleep 1000`, program)
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: tt.user, Gid: tt.user}}
			cmd.Dir = "/"
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer cmd.Wait()
			defer cmd.Process.Signal(unix.SIGTERM)

			supervisor, command := cmd.Process.Pid, 0
			eventually(t, 20*time.Second, "the command to start", func() bool {
				for _, pid := range descendants(supervisor) {
					if name, _ := os.ReadFile(procFile(pid, "comm")); string(name) == "sleep\n" {
						command = pid
					}
				}
				return command != 0
			})

			type state struct{ Core, Locked, MayLock, Environment string }
			look := func(pid int) state {
				s := state{Core: limit(t, pid, "Max core file size"), Locked: "none", MayLock: limit(t, pid, "Max locked memory"), Environment: "shown"}
				if status(t, pid, "VmLck") != "0 kB" {
					s.Locked = "some"
				}
				// What is told only to who may trace the process.
				cat := exec.Command("cat", procFile(pid, "environ"))
				cat.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
				var denied *exec.ExitError
				if err := cat.Run(); errors.As(err, &denied) {
					s.Environment = "denied"
				} else if err != nil {
					t.Fatal(err)
				}
				return s
			}
			want := state{Core: "0 0", Locked: "none", MayLock: "65536 65536", Environment: "denied"}
			if tt.lock {
				want.Locked, want.MayLock = "some", "unlimited unlimited"
			}
			if diff := cmp.Diff(want, look(supervisor)); diff != "" {
				t.Errorf("the program (-want +got):\n%s", diff)
			}
			got := look(command)
			if core, _, _ := strings.Cut(got.Core, " "); core == "0" {
				t.Error("the command may not write core files")
			}
			got.Core = ""
			want = state{Locked: "none", MayLock: "65536 65536", Environment: "shown"}
			if tt.user == 0 {
				want.Environment = "denied"
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("its command (-want +got):\n%s", diff)
			}
		})
	}
}

// TestDaemonIsConfined: a daemon that says that it is ready has given up what it does not need any more, in every thread, and
// keeps the numbers of clients' descriptors free.
func TestDaemonIsConfined(t *testing.T) {
	t.Parallel()
	d := startDaemon(t, plainBinary)
	pid := d.cmd.Process.Pid
	var kept uint64
	for _, capability := range []int{
		unix.CAP_CHOWN, unix.CAP_DAC_READ_SEARCH, unix.CAP_NET_BIND_SERVICE, unix.CAP_NET_ADMIN, unix.CAP_NET_RAW,
		unix.CAP_SYS_PTRACE, unix.CAP_SYS_ADMIN,
	} {
		kept |= 1 << capability
	}
	own, err := strconv.ParseUint(status(t, os.Getpid(), "CapPrm"), 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	capabilities := fmt.Sprintf("%016x", kept&own)
	want := map[string]string{"Seccomp": "2", "NoNewPrivs": "1", "CapEff": capabilities, "CapPrm": capabilities, "CapInh": "0000000000000000"}
	tasks, err := os.ReadDir(procFile(pid, "task"))
	if err != nil || len(tasks) < 2 {
		t.Fatalf("%d threads: %v", len(tasks), err)
	}
	for _, task := range tasks {
		tid, err := strconv.Atoi(task.Name())
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for line := range want {
			got[line] = status(t, tid, line)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("thread %d (-want +got):\n%s", tid, diff)
		}
	}
	if core := limit(t, pid, "Max core file size"); core != "0 0" {
		t.Errorf("limit on core files %s, want 0", core)
	}
	fds, err := os.ReadDir(procFile(pid, "fd"))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		target, err := os.Readlink(filepath.Join(procFile(pid, "fd"), fd.Name()))
		if number, _ := strconv.Atoi(fd.Name()); err == nil && number < 1000 && strings.HasPrefix(target, "anon_inode:[event") {
			t.Errorf("descriptor %d is %s of the Go runtime", number, target)
		}
	}
}

func procFile(pid int, name string) string {
	return filepath.Join("/proc", strconv.Itoa(pid), name)
}

// limit returns the soft and the hard value that /proc shows of a process's limit.
func limit(t *testing.T, pid int, name string) string {
	t.Helper()
	text, err := os.ReadFile(procFile(pid, "limits"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if values, ok := strings.CutPrefix(line, name); ok {
			return strings.Join(strings.Fields(values)[:2], " ")
		}
	}
	t.Fatalf("process %d has no limit %q", pid, name)
	return ""
}

// status returns a line of a process's, or thread's, status.
func status(t *testing.T, pid int, name string) string {
	t.Helper()
	text, err := os.ReadFile(procFile(pid, "status"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("process %d has no status %q", pid, name)
	return ""
}
