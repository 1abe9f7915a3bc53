package doctor

import (
	"fmt"
	osexec "os/exec"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv/exec"
)

// What `exec` needs to stand between a client and the kernel.

// execEffect is what a client under exec loses when something here is missing.
const execEffect = "`ovpn-go exec` can't run clients"

// containerAdvice is what gives a container with a default seccomp profile the rights to look into its own processes.
const containerAdvice = "in a container, add the capability SYS_PTRACE, which opens this in the default seccomp profiles " +
	"of Docker, Podman and Kubernetes"

func (Doctor) descriptorLimit() Finding {
	// The highest quarter is for clients' netlink sockets; the rest must do for everything else.
	const least = 64
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return failed(fmt.Sprintf("getrlimit: %v", err), execEffect, "")
	}
	if limit.Max < least {
		return failed(fmt.Sprintf("a process may have %d descriptors", limit.Max),
			execEffect+": there are too few numbers for their netlink sockets", "raise the hard limit: ulimit -Hn 1024, LimitNOFILE= in a unit")
	}
	return ok("a process may have %d descriptors", limit.Max)
}

func (Doctor) seccomp() Finding {
	action := uint32(unix.SECCOMP_RET_USER_NOTIF)
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(&action)))
	switch errno {
	case 0:
	case unix.EPERM, unix.ENOSYS:
		return failed(fmt.Sprintf("seccomp: %v", errno), execEffect, "allow the system call seccomp in the container's seccomp profile")
	default:
		return failed(fmt.Sprintf("the kernel has no user notification: %v", errno), execEffect,
			"use a kernel with CONFIG_SECCOMP_FILTER, Linux 5.9 or later")
	}
	// With a null program a flag that is known gives EFAULT, another EINVAL.
	const flags = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
	_, _, errno = unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, 0)
	if errno != unix.EFAULT {
		return degraded("notified calls can be interrupted by signals (SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV is missing)",
			"a client whose threads get many signals, as Go programs do, may see a request carried out twice", "use Linux 5.19 or later")
	}
	return ok("user notification, not disturbed by signals")
}

func (d Doctor) clientDescriptors() Finding {
	finding, err := d.withChild(func(pid int) Finding {
		if err := exec.Probe(pid).NoDescriptors; err != nil {
			return degraded(fmt.Sprintf("sockets can't be taken from a client, so `exec` makes them itself and keeps a duplicate: %v", err),
				"each socket, accept and close takes a client longer, and sockets from before `exec` or from an accept that had to wait can't be a device's",
				containerAdvice+ptraceAdvice())
		}
		return ok("sockets of a client can be taken over (pidfd_getfd)")
	})
	if err != nil {
		return failed(fmt.Sprintf("start a process: %v", err), execEffect, "")
	}
	return finding
}

func (d Doctor) clientMemory() Finding {
	finding, err := d.withChild(func(pid int) Finding {
		switch reach := exec.Probe(pid); {
		case reach.NoMemoryFile != nil:
			return failed(fmt.Sprintf("%v; %v", reach.NoMemory, reach.NoMemoryFile), execEffect+": their requests can't be read",
				containerAdvice+ptraceAdvice())
		case reach.NoMemory != nil:
			return degraded(fmt.Sprintf("a client's memory is read as a file, /proc/PID/mem: %v", reach.NoMemory),
				"each request of a client takes a few microseconds longer", containerAdvice+ptraceAdvice())
		}
		return ok("requests of a client can be read (process_vm_readv)")
	})
	if err != nil {
		return failed(fmt.Sprintf("start a process: %v", err), execEffect, "")
	}
	return finding
}

// ptraceAdvice is what Yama adds.
func ptraceAdvice() string {
	switch scope := readTrimmed("/proc/sys/kernel/yama/ptrace_scope"); scope {
	case "2":
		return "; kernel.yama.ptrace_scope is 2, which takes CAP_SYS_PTRACE"
	case "3":
		return "; kernel.yama.ptrace_scope is 3, which forbids it to everybody until the next boot"
	}
	return ""
}

// client runs the program under itself: what all the single checks are about.
func (d Doctor) client() Finding {
	cmd := osexec.Command(d.Program, "exec", "--datapath", "userspace", "--log-level", "error", "--", d.Program, "link", "show")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return failed(fmt.Sprintf("a client under `exec`: %v: %s", err, strings.TrimSpace(string(out))), execEffect,
			"see the other findings; under a debugger, strace or another program that uses seccomp notification it can't work")
	}
	return ok("a client runs under `exec`")
}

// onOwnThread runs fn on a thread that ends with it, as what fn changes is the thread's.
func onOwnThread(fn func() Finding) Finding {
	done := make(chan Finding)
	go func() {
		runtime.LockOSThread() // never unlocked: the runtime ends the thread with the goroutine
		done <- fn()
	}()
	return <-done
}
