package confine_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ovpn-go/confine"
)

// What is confined can't be let go again, so it is done to a process of its own: this one again, told by a variable what
// to do. It writes what it found as JSON.
const confinedVariable = "OVPN_GO_CONFINED"

func TestMain(m *testing.M) {
	act, ok := confined[os.Getenv(confinedVariable)]
	if !ok {
		os.Exit(m.Run())
	}
	if err := json.NewEncoder(os.Stdout).Encode(act()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

var confined = map[string]func() any{
	"free":         func() any { return attempts() },
	"refused":      func() any { return refuse(attempts) },
	"refused list": func() any { return refuse(refusedList) },
	"status":       status,
	"capabilities": capabilities,
}

// run has a confined process do something and decodes what it found.
func run(t *testing.T, what string, into any) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), confinedVariable+"="+what, "ATTEMPTS="+t.TempDir(), "GORACE=atexit_sleep_ms=0") // a race build otherwise takes a second to end
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(out, into); err != nil {
		t.Fatal(err)
	}
}

// onOldThread returns a function that runs others on a thread that there is already.
func onOldThread() func(func()) {
	work, done := make(chan func()), make(chan struct{})
	go func() {
		runtime.LockOSThread()
		for fn := range work {
			fn()
			done <- struct{}{}
		}
	}()
	return func(fn func()) {
		work <- fn
		<-done
	}
}

// refuse calls RefuseCalls and then, on a thread that was there before, what is to find out about it.
func refuse[T any](find func() T) (found T) {
	old := onOldThread()
	if err := confine.RefuseCalls(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	old(func() { found = find() })
	return found
}

func call(nr uintptr, args ...uintptr) unix.Errno {
	var a [6]uintptr
	copy(a[:], args)
	_, _, errno := unix.RawSyscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
	return errno
}

// outcome is how an attempt ended: refused, or not.
func outcome(err error) string {
	if errors.Is(err, unix.EPERM) {
		return "refused"
	}
	return "not refused"
}

// tried is the outcome of what somebody would do who has taken the process over, and of what it must be able to do itself.
type tried struct{ Forbidden, Needed map[string]string }

func attempts() tried {
	dir := os.Getenv("ATTEMPTS")
	old := filepath.Join(dir, "free")
	socket := func(family, kind int) error {
		fd, err := unix.Socket(family, kind, 0)
		unix.Close(fd)
		return err
	}
	mapCode := func() error {
		b, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err == nil {
			unix.Munmap(b)
		}
		return err
	}
	makeCode := func() error {
		b, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			return fmt.Errorf("no memory: %v", err)
		}
		defer unix.Munmap(b)
		return unix.Mprotect(b, unix.PROT_READ|unix.PROT_EXEC)
	}
	listen := func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			return fmt.Errorf("no socket: %v", err)
		}
		defer unix.Close(fd)
		return unix.Listen(fd, 1)
	}
	onThread := func(fn func() error) error {
		done := make(chan error)
		go func() {
			runtime.LockOSThread() // and the thread ends with the goroutine
			done <- fn()
		}()
		return <-done
	}
	enter := func(kind string, flag int) error {
		return onThread(func() error {
			ns, err := os.Open("/proc/thread-self/ns/" + kind)
			if err != nil {
				return fmt.Errorf("no namespace: %v", err)
			}
			defer ns.Close()
			return unix.Setns(int(ns.Fd()), flag)
		})
	}
	return tried{
		Forbidden: map[string]string{
			"execute a program":          outcome(exec.Command("/bin/true").Run()),
			"execute a program in place": outcome(syscall.Exec("/nonexistent", nil, nil)),
			"map code":                   outcome(mapCode()),
			"make memory code":           outcome(makeCode()),
			"listen":                     outcome(listen()),
			"create a file":              outcome(os.WriteFile(old, nil, 0o600)),
			"empty a file":               outcome(openFile("/nonexistent", os.O_RDWR|os.O_TRUNC)),
			"rename a file":              outcome(os.Rename(old, old+"2")),
			"change a file's mode":       outcome(os.Chmod(dir, 0o700)),
			"become another user":        outcome(onThread(func() error { return errnoOf(call(unix.SYS_SETUID, 0)) })),
			"mount":                      outcome(unix.Mount("none", dir, "no such file system", 0, "")),
			"leave the mount namespace":  outcome(onThread(func() error { return unix.Unshare(unix.CLONE_NEWNS) })),
			"enter a mount namespace":    outcome(enter("mnt", 0)),
			"talk to the VM's host":      outcome(socket(unix.AF_VSOCK, unix.SOCK_STREAM)),
			"listen to the wire":         outcome(socket(unix.AF_PACKET, unix.SOCK_DGRAM)),
			"have the kernel encrypt":    outcome(socket(unix.AF_ALG, unix.SOCK_SEQPACKET)),
		},
		Needed: map[string]string{
			"enter a network namespace": outcome(enter("net", unix.CLONE_NEWNET)),
			"a UDP socket":              outcome(socket(unix.AF_INET6, unix.SOCK_DGRAM)),
			"a netlink socket":          outcome(socket(unix.AF_NETLINK, unix.SOCK_RAW)),
			"a table of descriptors":    outcome(onThread(func() error { return unix.Unshare(unix.CLONE_FILES) })),
			"open a device":             outcome(openFile("/dev/null", os.O_RDWR)),
			"memory":                    outcome(readOnly()),
			"look into another process": outcome(errnoOf(call(unix.SYS_PROCESS_VM_READV, uintptr(os.Getpid())))),
		},
	}
}

func readOnly() error {
	b, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err == nil {
		unix.Munmap(b)
	}
	return err
}

func openFile(path string, flags int) error {
	file, err := os.OpenFile(path, flags, 0)
	if err == nil {
		file.Close()
	}
	return err
}

func errnoOf(errno unix.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}

// TestRefuseCalls tries the same with and without the filter.
func TestRefuseCalls(t *testing.T) {
	needRoot(t)
	var free, refused tried
	run(t, "free", &free)
	run(t, "refused", &refused)
	all := func(of map[string]string, outcome string) map[string]string {
		same := map[string]string{}
		for what := range of {
			same[what] = outcome
		}
		return same
	}
	const yes, no = "refused", "not refused"
	if diff := cmp.Diff(tried{all(refused.Forbidden, no), all(refused.Needed, no)}, free); diff != "" {
		t.Errorf("without the filter (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(tried{all(free.Forbidden, yes), all(free.Needed, no)}, refused); diff != "" {
		t.Errorf("with the filter (-want +got):\n%s", diff)
	}
}

// refusedList makes every system call that is refused, with arguments that none of them takes.
func refusedList() map[uint32]unix.Errno {
	const bad = ^uintptr(0)
	errnos := map[uint32]unix.Errno{}
	for _, nr := range confine.RefusedCalls() {
		errnos[nr] = call(uintptr(nr), bad, bad, bad, bad, bad, bad)
	}
	errnos[unix.SYS_CLONE3] = call(unix.SYS_CLONE3, bad, bad)
	return errnos
}

func TestEveryRefusedCall(t *testing.T) {
	want := map[uint32]unix.Errno{unix.SYS_CLONE3: unix.ENOSYS}
	for _, nr := range confine.RefusedCalls() {
		want[nr] = unix.EPERM
	}
	var got map[uint32]unix.Errno
	run(t, "refused list", &got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("errors by system call (-want +got):\n%s", diff)
	}
}

// threads returns a line of the status of every thread.
func threads(line string) (values []string) {
	files, _ := filepath.Glob("/proc/self/task/*/status")
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for l := range strings.Lines(string(text)) {
			if value, ok := strings.CutPrefix(l, line+":"); ok {
				values = append(values, strings.TrimSpace(value))
			}
		}
	}
	return values
}

func status() any {
	old := onOldThread()
	found := refuse(func() map[string][]string {
		return map[string][]string{"Seccomp": threads("Seccomp"), "NoNewPrivs": threads("NoNewPrivs")}
	})
	old(func() {})
	return found
}

// TestAllThreadsAreRefused: those that are there already as well.
func TestAllThreadsAreRefused(t *testing.T) {
	var got map[string][]string
	run(t, "status", &got)
	for line, want := range map[string]string{"Seccomp": "2", "NoNewPrivs": "1"} {
		if len(got[line]) < 3 || slices.ContainsFunc(got[line], func(value string) bool { return value != want }) {
			t.Errorf("%s of the threads: %v, want all %s, and a few", line, got[line], want)
		}
	}
}

func capabilities() any {
	old := onOldThread()
	err := confine.KeepCapabilities(unix.CAP_NET_ADMIN, unix.CAP_SYS_PTRACE)
	found := map[string][]string{"CapEff": threads("CapEff"), "CapPrm": threads("CapPrm"), "CapInh": threads("CapInh")}
	old(func() {})
	if err != nil {
		found["error"] = []string{strconv.FormatBool(errors.Is(err, unix.ENOTSUP))}
	}
	return found
}

func TestKeepCapabilities(t *testing.T) {
	needRoot(t)
	var got map[string][]string
	run(t, "capabilities", &got)
	if unsupported := got["error"]; unsupported != nil {
		// With cgo, which the race detector needs.
		if diff := cmp.Diff([]string{"true"}, unsupported); diff != "" {
			t.Fatalf("it failed for another reason than that it is not supported:\n%s", diff)
		}
		return
	}
	kept := fmt.Sprintf("%016x", 1<<unix.CAP_NET_ADMIN|1<<unix.CAP_SYS_PTRACE)
	for line, want := range map[string]string{"CapEff": kept, "CapPrm": kept, "CapInh": "0000000000000000"} {
		if len(got[line]) < 3 || slices.ContainsFunc(got[line], func(value string) bool { return value != want }) {
			t.Errorf("%s of the threads: %v, want all %s, and a few", line, got[line], want)
		}
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("OVPN_GO_REQUIRE") != "" {
		t.Fatal("needs root")
	}
	t.Skip("needs root")
}
