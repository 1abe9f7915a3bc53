package exec

import (
	"errors"
	"os"
	osexec "os/exec"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestInstallNotifier(t *testing.T) {
	const (
		listener = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER
		killable = unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
	)
	tests := []struct {
		name    string
		results []error // of one try after the other
		flags   []uint
		err     error
	}{
		{"a new kernel and privilege", []error{nil}, []uint{listener | killable}, nil},
		{"a kernel without killable waits", []error{unix.EINVAL, nil}, []uint{listener | killable, listener}, nil},
		{"a kernel without listeners", []error{unix.EINVAL, unix.EINVAL}, []uint{listener | killable, listener}, unix.EINVAL},
		{"no privilege", []error{unix.EACCES, nil}, []uint{listener | killable, listener | killable}, nil},
		{"forbidden anyway", []error{unix.EACCES, unix.EACCES}, []uint{listener | killable, listener | killable}, unix.EACCES},
		{"another supervisor", []error{unix.EBUSY}, []uint{listener | killable}, unix.EBUSY},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var flags []uint
			done := make(chan error)
			go func() {
				runtime.LockOSThread() // it may get no_new_privs, and ends with this goroutine
				_, err := installNotifier(func(f uint) (int, error) {
					flags = append(flags, f)
					return 9, test.results[len(flags)-1]
				})
				done <- err
			}()
			if err := <-done; !errors.Is(err, test.err) {
				t.Errorf("error %v, want %v", err, test.err)
			}
			if diff := cmp.Diff(test.flags, flags); diff != "" {
				t.Errorf("flags (-want +got):\n%s", diff)
			}
		})
	}
}

// In a container the supervisor is often the first process, which can't die by its own signal.
func TestFirstProcessOfANamespace(t *testing.T) {
	requireRoot(t)
	requireTool(t, "unshare")
	command := append([]string{"unshare", "--pid", "--fork", "--mount-proc"}, roleCommand("supervise", "sh", "-c", "kill -TERM $$")...)
	cmd := osexec.Command(command[0], command[1:]...)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 143 {
		t.Errorf("%v\n%s", err, out)
	}
}

// There is room for one listener only, and the inner run says so.
func TestSupervisorUnderASupervisor(t *testing.T) {
	o := underSupervisor(t, newFakeServer(), nil, roleCommand("supervise", "true")...)
	if o.status.Code == 0 {
		t.Errorf("%v, %v\n%s", o.status, o.err, o.output)
	}
}

func TestParseStat(t *testing.T) {
	tests := []struct {
		line        string
		pid, parent int
		ok          bool
	}{
		{"12 (sh) S 7 12 12 0", 12, 7, true},
		{"12 (a ) b (c) S 7 12 12 0", 12, 7, true},
		{"12 () S 7", 12, 7, true},
		{"12 (sh) S", 0, 0, false},
		{"12 )sh( S 7", 0, 0, false},
		{"x (sh) S 7", 0, 0, false},
		{"", 0, 0, false},
	}
	for _, test := range tests {
		pid, parent, ok := parseStat(test.line)
		if ok != test.ok || ok && (pid != test.pid || parent != test.parent) {
			t.Errorf("%q: %d, %d, %v", test.line, pid, parent, ok)
		}
	}
}

func TestChildrenByStat(t *testing.T) {
	cmd := osexec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	for name, find := range map[string]func() ([]int, error){"children": children, "childrenByStat": func() ([]int, error) { return childrenByStat(os.Getpid()) }} {
		pids, err := find()
		if diff := cmp.Diff([]int{cmd.Process.Pid}, pids); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
	}
}
