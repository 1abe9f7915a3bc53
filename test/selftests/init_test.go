package selftests

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// initName is the name under which this binary is started as the first process of its namespaces.
const initName = "ovpn-go-selftest-init"

// reportFD is where the report goes.
const reportFD = 3

// programPath is the program's place in the tree, on a file system that is gone afterwards.
const programPath = "/run/ovpn-go"

// endPatience is how long processes may take to disappear after the program has ended.
const endPatience = 5 * time.Second

// runInit prepares the namespaces, runs the command and reports what it left. Its arguments are the tree,
// the program and the command.
func runInit(args []string) int {
	unix.CloseOnExec(reportFD)
	var r report
	if err := r.fill(args[0], args[1], args[2:]); err != nil {
		r.Failure = err.Error()
	}
	if err := json.NewEncoder(os.NewFile(reportFD, "report")).Encode(r); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func (r *report) fill(tree, program string, command []string) error {
	if err := enter(tree, program); err != nil {
		return err
	}
	before, err := seen()
	if err != nil {
		return err
	}
	cmd := exec.Command(programPath, append([]string{"exec", "--datapath", "userspace", "--"}, command...)...)
	cmd.Dir = testDir
	cmd.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root",
		"LC_ALL=C",
		"OVPN_VERBOSE=1",
	}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		return err
	}
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	r.Status = status.ExitStatus()
	if status.Signaled() {
		r.Status = 128 + int(status.Signal())
	}
	r.Left, err = left(before)
	return err
}

// enter makes the tree the root directory, with what programs expect there. What is written to /run and /tmp is
// gone with the namespace.
func enter(tree, program string) error {
	at := func(path string) string { return filepath.Join(tree, path) }
	for _, m := range []struct {
		source, target, kind string
		flags                uintptr
	}{
		{"", "/", "", unix.MS_REC | unix.MS_PRIVATE},
		// A root directory must be a mount for "ip netns exec" to change its propagation.
		{tree, tree, "", unix.MS_BIND | unix.MS_REC},
		{"/dev", at("/dev"), "", unix.MS_BIND | unix.MS_REC},
		{"proc", at("/proc"), "proc", 0},
		{"sysfs", at("/sys"), "sysfs", 0},
		{"tmpfs", at("/run"), "tmpfs", 0},
		{"tmpfs", at("/tmp"), "tmpfs", 0},
	} {
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	if err := os.WriteFile(at(programPath), nil, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(program, at(programPath), "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s: %w", programPath, err)
	}
	if err := unix.Chroot(tree); err != nil {
		return fmt.Errorf("chroot %s: %w", tree, err)
	}
	return os.Chdir("/")
}

// seen lists what a command may leave in the namespaces, but for processes.
func seen() (all []string, err error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(mounts)) {
		// iproute2 makes its directory a mount for good; what is mounted in it are namespaces.
		if point := strings.Fields(line)[4]; point != "/run/netns" {
			all = append(all, "mount "+point)
		}
	}
	links, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	for _, link := range links {
		all = append(all, "network interface "+link.Name)
	}
	namespaces, err := filepath.Glob("/run/netns/*")
	for _, path := range namespaces {
		all = append(all, "network namespace "+filepath.Base(path))
	}
	return all, err
}

// left lists what is there now and was not before, and every process but this one.
func left(before []string) ([]string, error) {
	all, err := leftProcesses()
	if err != nil {
		return nil, err
	}
	after, err := seen()
	if err != nil {
		return nil, err
	}
	for _, what := range after {
		if !slices.Contains(before, what) {
			all = append(all, what)
		}
	}
	return all, nil
}

// leftProcesses waits until there is no process but this one, and otherwise returns those that stay.
func leftProcesses() ([]string, error) {
	for end := time.Now().Add(endPatience); ; time.Sleep(10 * time.Millisecond) {
		for {
			if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != nil || pid == 0 {
				break
			}
		}
		paths, err := filepath.Glob("/proc/[0-9]*")
		if err != nil {
			return nil, err
		}
		paths = slices.DeleteFunc(paths, func(path string) bool { return path == "/proc/1" })
		if len(paths) == 0 || time.Now().After(end) {
			var all []string
			for _, path := range paths {
				args, _ := os.ReadFile(path + "/cmdline")
				all = append(all, "process "+strings.ReplaceAll(string(args), "\x00", " "))
			}
			return all, nil
		}
	}
}
