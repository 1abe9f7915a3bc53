package test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"ovpn-go/bench/benchtest"
	"ovpn-go/netlinksrv/daemon/wire"
)

// patientVariable makes the test binary take something away from itself and then become the command that its arguments are.
// Its value is a handicap in JSON.
const patientVariable = "OVPN_GO_TEST_PATIENT"

// A handicap is what a process does not have.
type handicap struct {
	// Drop are capabilities.
	Drop []int
	// Deny are system calls.
	Deny []denial
	// HideTun puts an empty folder in place of /dev/net.
	HideTun bool
	// Descriptors is the hard limit of them, if not 0.
	Descriptors uint64
	// Personality is a value for personality(2), if not 0.
	Personality uint64
	// User is the user to become, if not 0.
	User int
}

// variable is the handicap as an environment variable of the test binary.
func (h handicap) variable(t *testing.T) string {
	t.Helper()
	text, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	return patientVariable + "=" + string(text)
}

// A denial makes a system call fail. Of the arguments the low 32 bits are compared, where a mask is not 0.
type denial struct {
	Call   uint32
	Errno  uint32
	Masks  [6]uint32
	Values [6]uint32
}

func deny(call uint32, errno unix.Errno) denial { return denial{Call: call, Errno: uint32(errno)} }

// where limits a denial to calls with an argument of that value.
func (d denial) where(argument int, value uint32) denial {
	d.Masks[argument], d.Values[argument] = ^uint32(0), value
	return d
}

// withBits limits a denial to calls with an argument that has all those bits.
func (d denial) withBits(argument int, bits uint32) denial {
	d.Masks[argument], d.Values[argument] = bits, bits
	return d
}

// program assembles the filter of one denial.
func (d denial) program() []bpf.Instruction {
	const callOffset, argumentsOffset = 0, 16
	var checks []bpf.Instruction
	for i, mask := range d.Masks {
		if mask == 0 {
			continue
		}
		checks = append(checks,
			bpf.LoadAbsolute{Off: uint32(argumentsOffset + 8*i), Size: 4},
			bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: mask},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: d.Values[i], SkipTrue: 1},
			bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW})
	}
	head := []bpf.Instruction{
		bpf.LoadAbsolute{Off: callOffset, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: d.Call, SkipTrue: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW},
	}
	return append(append(head, checks...), bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | d.Errno})
}

func (d denial) install() error {
	raw, err := bpf.Assemble(d.program())
	if err != nil {
		return err
	}
	filters := make([]unix.SockFilter, len(raw))
	for i, in := range raw {
		filters[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	program := unix.SockFprog{Len: uint16(len(filters)), Filter: &filters[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return fmt.Errorf("install filter: %w", errno)
	}
	return nil
}

func init() {
	text := os.Getenv(patientVariable)
	if text == "" {
		return
	}
	runtime.LockOSThread()
	var h handicap
	err := json.Unmarshal([]byte(text), &h)
	if err == nil {
		err = h.become(os.Args[1:])
	}
	fmt.Fprintln(os.Stderr, "become a patient:", err)
	os.Exit(99)
}

// become replaces the process by a command. It only returns with an error.
func (h handicap) become(command []string) error {
	if h.HideTun {
		if err := unix.Mount("tmpfs", "/dev/net", "tmpfs", 0, ""); err != nil {
			return fmt.Errorf("hide /dev/net: %w", err)
		}
	}
	if h.Personality != 0 {
		if _, _, errno := unix.Syscall(unix.SYS_PERSONALITY, uintptr(h.Personality), 0, 0); errno != 0 {
			return fmt.Errorf("personality: %w", errno)
		}
	}
	for _, capability := range h.Drop {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(capability), 0, 0, 0); err != nil {
			return fmt.Errorf("drop capability %d: %w", capability, err)
		}
	}
	for _, d := range h.Deny {
		if err := d.install(); err != nil {
			return err
		}
	}
	if h.Descriptors != 0 {
		limit := syscall.Rlimit{Cur: h.Descriptors, Max: h.Descriptors}
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
			return fmt.Errorf("limit descriptors: %w", err)
		}
	}
	if h.User != 0 {
		if err := unix.Setuid(h.User); err != nil {
			return fmt.Errorf("become user %d: %w", h.User, err)
		}
	}
	if err := os.Unsetenv(patientVariable); err != nil {
		return err
	}
	return unix.Exec(command[0], command, os.Environ())
}

type finding struct{ Check, Severity, Detail, Effect, Advice string }

// TestDoctor takes away, one after the other, what the program needs, and expects it to be missed.
func TestDoctor(t *testing.T) {
	t.Parallel()
	benchtest.Root(t)
	program, err := plainBinary()
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	star := benchtest.Star(t, 1)
	examine := func(t *testing.T, h handicap, loopback bool, env ...string) (findings map[string]finding, status int) {
		t.Helper()
		cmd := exec.Command(self, program, "doctor", "--json")
		cmd.Env = append(env, "PATH=/usr/sbin:/usr/bin:/sbin:/bin", h.variable(t))
		flags := uintptr(unix.CLONE_NEWNS)
		if !loopback {
			flags |= unix.CLONE_NEWNET
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: flags}
		var out []byte
		err = star.Clients[0].Do(func() (err error) { out, err = cmd.Output(); return err })
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			status = exit.ExitCode()
		} else if err != nil {
			t.Fatal(err)
		}
		var list []finding
		if err := json.Unmarshal(out, &list); err != nil {
			t.Fatalf("exit status %d: %v\n%s", status, err, out)
		}
		findings = map[string]finding{}
		for _, f := range list {
			findings[f.Check] = f
		}
		return findings, status
	}

	t.Run("a machine that has everything", func(t *testing.T) {
		findings, status := examine(t, handicap{}, true)
		for _, f := range findings {
			if f.Severity != "ok" || f.Effect != "" || f.Advice != "" {
				t.Errorf("%+v", f)
			}
		}
		if status != 0 || len(findings) < 15 {
			t.Errorf("exit status %d with %d findings", status, len(findings))
		}
	})

	const (
		degraded, failed = "degraded", "failed"
		uname26          = 0x0020000 // UNAME26: Linux calls itself 2.6
	)
	setsockopt := func(level, name uint32, errno unix.Errno) []denial {
		return []denial{deny(unix.SYS_SETSOCKOPT, errno).where(1, level).where(2, name)}
	}
	tests := []struct {
		name            string
		handicap        handicap
		noLoopback      bool
		env             []string
		check, severity string
		detail          string
	}{
		{name: "an old kernel", handicap: handicap{Personality: uname26},
			check: "kernel", severity: failed, detail: "Linux 2.6"},
		{name: "no CAP_NET_ADMIN", handicap: handicap{Drop: []int{unix.CAP_NET_ADMIN}},
			check: "capabilities", severity: failed, detail: "CAP_NET_ADMIN"},
		{name: "no CAP_NET_ADMIN: interfaces", handicap: handicap{Drop: []int{unix.CAP_NET_ADMIN}},
			check: "tun device", severity: failed, detail: "operation not permitted"},
		{name: "no TUN device", handicap: handicap{HideTun: true},
			check: "tun device", severity: failed, detail: "there is no /dev/net/tun"},
		{name: "no TUN driver", handicap: handicap{Deny: []denial{deny(unix.SYS_OPENAT, unix.ENODEV).withBits(2, unix.O_RDWR)}},
			check: "tun device", severity: failed, detail: "no such device"},
		{name: "a TUN device for root only", handicap: handicap{User: 65534},
			check: "tun device", severity: failed, detail: "permission denied"},
		{name: "a TUN device without offloads",
			handicap: handicap{Deny: []denial{deny(unix.SYS_IOCTL, unix.EINVAL).where(1, unix.TUNSETOFFLOAD)}},
			check:    "tun offloads", severity: degraded, detail: "neither of TCP nor of UDP"},
		{name: "a TUN device without UDP offloads",
			handicap: handicap{Deny: []denial{deny(unix.SYS_IOCTL, unix.EINVAL).where(1, unix.TUNSETOFFLOAD).withBits(2, 0x20)}},
			check:    "tun offloads", severity: degraded, detail: "no UDP ones"},
		{name: "few descriptors", handicap: handicap{Descriptors: 40},
			check: "descriptor limit", severity: failed, detail: "40 descriptors"},
		{name: "no seccomp", handicap: handicap{Deny: []denial{deny(unix.SYS_SECCOMP, unix.EPERM)}},
			check: "seccomp notification", severity: failed, detail: "operation not permitted"},
		{name: "no seccomp notification", handicap: handicap{Deny: []denial{deny(unix.SYS_SECCOMP, unix.EOPNOTSUPP).where(0, unix.SECCOMP_GET_ACTION_AVAIL)}},
			check: "seccomp notification", severity: failed, detail: "no user notification"},
		{name: "seccomp notification that signals disturb",
			handicap: handicap{Deny: []denial{deny(unix.SYS_SECCOMP, unix.EINVAL).withBits(1, unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV)}},
			check:    "seccomp notification", severity: degraded, detail: "interrupted by signals"},
		{name: "no pidfd_getfd", handicap: handicap{Deny: []denial{deny(unix.SYS_PIDFD_GETFD, unix.EPERM)}},
			check: "client's descriptors", severity: degraded, detail: "makes them itself and keeps a duplicate: pidfd_getfd"},
		{name: "no pidfd_open", handicap: handicap{Deny: []denial{deny(unix.SYS_PIDFD_OPEN, unix.EPERM)}},
			check: "client's descriptors", severity: degraded, detail: "makes them itself and keeps a duplicate: pidfd_open"},
		{name: "no process_vm_readv", handicap: handicap{Deny: []denial{deny(unix.SYS_PROCESS_VM_READV, unix.EPERM)}},
			check: "client's memory", severity: degraded, detail: "as a file, /proc/PID/mem: process_vm_readv"},
		{name: "no reading of memory", handicap: handicap{Deny: []denial{deny(unix.SYS_PROCESS_VM_READV, unix.EPERM), deny(unix.SYS_PREAD64, unix.EPERM)}},
			check: "client's memory", severity: failed, detail: "operation not permitted; read memory as a file"},
		{name: "no seccomp: a client", handicap: handicap{Deny: []denial{deny(unix.SYS_SECCOMP, unix.EPERM)}},
			check: "client", severity: failed, detail: "exit status"},
		{name: "no namespaces", handicap: handicap{Drop: []int{unix.CAP_SYS_ADMIN}},
			check: "namespaces", severity: degraded, detail: "operation not permitted"},
		{name: "no shared ports", handicap: handicap{Deny: setsockopt(unix.SOL_SOCKET, unix.SO_REUSEPORT, unix.EPERM)},
			check: "port sharing", severity: failed, detail: "SO_REUSEPORT"},
		{name: "no program for shared ports", handicap: handicap{Deny: setsockopt(unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF, unix.EPERM)},
			check: "port sharing", severity: failed, detail: "SO_ATTACH_REUSEPORT_CBPF"},
		{name: "no UDP segmentation", handicap: handicap{Deny: setsockopt(unix.IPPROTO_UDP, unix.UDP_SEGMENT, unix.ENOPROTOOPT)},
			check: "udp segmentation", severity: degraded, detail: "UDP_SEGMENT"},
		{name: "no UDP coalescing", handicap: handicap{Deny: setsockopt(unix.IPPROTO_UDP, unix.UDP_GRO, unix.ENOPROTOOPT)},
			check: "udp coalescing", severity: degraded, detail: "UDP_GRO"},
		{name: "a loopback interface that is down", noLoopback: true,
			check: "udp coalescing", severity: degraded, detail: "loopback interface is down"},
		{name: "no raw sockets", handicap: handicap{Drop: []int{unix.CAP_NET_RAW}},
			check: "control packets", severity: degraded, detail: "operation not permitted"},
		{name: "small socket buffers", handicap: handicap{Deny: append(
			setsockopt(unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, unix.EPERM), setsockopt(unix.SOL_SOCKET, unix.SO_RCVBUF, unix.EPERM)...)},
			check: "socket buffers", severity: degraded, detail: "receive buffer"},
		{name: "no socket diagnostics", handicap: handicap{Deny: []denial{
			deny(unix.SYS_SOCKET, unix.EPROTONOSUPPORT).where(0, unix.AF_NETLINK).where(2, unix.NETLINK_SOCK_DIAG)}},
			check: "socket watch", severity: degraded, detail: "protocol not supported"},
		{name: "no daemon where one is to be", env: []string{wire.Variable + "=/nonexistent/socket"},
			check: "daemon", severity: failed, detail: "/nonexistent/socket"},
		{name: "no netlink", handicap: handicap{Deny: []denial{
			deny(unix.SYS_SOCKET, unix.EPERM).where(0, unix.AF_NETLINK).where(2, unix.NETLINK_GENERIC)}},
			check: "kernel module", severity: degraded, detail: "operation not permitted"},
	}
	seen := map[string]bool{"kernel module": true}
	for _, test := range tests {
		seen[test.check] = true
		t.Run(test.name, func(t *testing.T) {
			findings, status := examine(t, test.handicap, !test.noLoopback, test.env...)
			got := findings[test.check]
			if got.Severity != test.severity || !strings.Contains(got.Detail, test.detail) || got.Effect == "" || got.Advice == "" {
				t.Errorf("%s: %+v, want %s with %q, what it means and what to do", test.check, got, test.severity, test.detail)
			}
			worst := map[string]int{degraded: 1, failed: 2}[test.severity]
			if status < worst || status > 2 {
				t.Errorf("exit status %d, want %d at least", status, worst)
			}
		})
	}
	t.Run("every check can fail", func(t *testing.T) {
		findings, _ := examine(t, handicap{}, true)
		for check := range findings {
			if !seen[check] {
				t.Errorf("nothing provokes a finding of %q", check)
			}
		}
	})
}
