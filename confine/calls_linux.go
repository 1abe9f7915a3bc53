package confine

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// refusedCalls are system calls that a daemon which is set up has no use for, and that would be of use to somebody who has
// taken it over. arch.go's legacyCalls are older forms that not every architecture has.
var refusedCalls = []uint32{
	// other programs
	unix.SYS_EXECVE, unix.SYS_EXECVEAT,
	// who waits for connections has done so before
	unix.SYS_LISTEN,
	// other users
	unix.SYS_SETUID, unix.SYS_SETREUID, unix.SYS_SETRESUID, unix.SYS_SETFSUID,
	unix.SYS_SETGID, unix.SYS_SETREGID, unix.SYS_SETRESGID, unix.SYS_SETFSGID, unix.SYS_SETGROUPS,
	// the tree of files, and what is mounted there
	unix.SYS_RENAMEAT2, unix.SYS_LINKAT, unix.SYS_SYMLINKAT, unix.SYS_MKNODAT, unix.SYS_MKDIRAT,
	unix.SYS_FCHMODAT, unix.SYS_FCHMODAT2, unix.SYS_FCHMOD, unix.SYS_FCHOWNAT, unix.SYS_TRUNCATE,
	unix.SYS_SETXATTR, unix.SYS_LSETXATTR, unix.SYS_FSETXATTR, unix.SYS_OPENAT2,
	unix.SYS_NAME_TO_HANDLE_AT, unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_FANOTIFY_INIT,
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_MOUNT_SETATTR,
	unix.SYS_OPEN_TREE, unix.SYS_MOVE_MOUNT, unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK,
	unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_QUOTACTL, unix.SYS_QUOTACTL_FD, unix.SYS_ACCT,
	// the kernel
	unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE,
	unix.SYS_KEXEC_LOAD, unix.SYS_REBOOT, unix.SYS_SYSLOG,
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD,
	unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER,
	unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL,
	unix.SYS_SETHOSTNAME, unix.SYS_SETDOMAINNAME, unix.SYS_PERSONALITY, unix.SYS_VHANGUP,
	unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_CLOCK_ADJTIME, unix.SYS_ADJTIMEX,
}

// A condition refuses a system call by one of its arguments, whose upper half does not count.
type condition struct {
	call     uint32
	argument uint32
	refuse   bpf.JumpTest // of the argument and value
	value    uint32
}

// refusedArguments are the uses that are refused of calls that are needed otherwise.
var refusedArguments = []condition{
	// new processes, as opposed to threads
	{unix.SYS_CLONE, 0, bpf.JumpBitsNotSet, unix.CLONE_THREAD},
	// namespaces and whatever else: a thread of our own needs a table of descriptors of its own at times
	{unix.SYS_UNSHARE, 0, bpf.JumpNotEqual, unix.CLONE_FILES},
	{unix.SYS_SETNS, 1, bpf.JumpNotEqual, unix.CLONE_NEWNET},
	// new code
	{unix.SYS_MMAP, 2, bpf.JumpBitsSet, unix.PROT_EXEC},
	{unix.SYS_MPROTECT, 2, bpf.JumpBitsSet, unix.PROT_EXEC},
	{unix.SYS_PKEY_MPROTECT, 2, bpf.JumpBitsSet, unix.PROT_EXEC},
	// new files, and emptied ones
	{unix.SYS_OPENAT, 2, bpf.JumpBitsSet, unix.O_CREAT | unix.O_TRUNC},
}

// families are those of the sockets that may be made. The systemd unit has the same.
var families = []uint32{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK}

// RefuseCalls has the kernel refuse, with EPERM, what a daemon that is set up does not do: execute programs or start processes, map
// code, listen, become another user, create, rename or change the mode of files, mount, and what concerns the kernel
// itself. It holds for all threads, and for good. No privileges can be gained by executing a program any more.
//
// It does not say which files may be opened and removed. Nor can Landlock, where processes are to be looked into: it keeps
// who is under it from looking into any that is not.
func RefuseCalls() error {
	program, err := callFilter()
	if err != nil {
		return fmt.Errorf("assemble seccomp filter: %w", err)
	}
	filters := make([]unix.SockFilter, len(program))
	for i, in := range program {
		filters[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	runtime.LockOSThread() // both calls are about the calling thread; the second one takes the others along
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl PR_SET_NO_NEW_PRIVS", err)
	}
	prog := unix.SockFprog{Len: uint16(len(filters)), Filter: &filters[0]}
	other, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	switch {
	case errno != 0:
		return os.NewSyscallError("seccomp", errno)
	case other != 0:
		return fmt.Errorf("thread %d has a seccomp filter of its own", other)
	}
	return nil
}

// callFilter assembles the filter. The kernel remembers which system calls it allows whatever their arguments are, and does not
// run it for those, which are all that move packets.
func callFilter() ([]bpf.RawInstruction, error) {
	// Offsets into struct seccomp_data, of little-endian machines.
	const number, arch, arguments = 0, 4, 16
	const otherABI = 0x40000000 // __X32_SYSCALL_BIT
	var (
		allow   = bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW}
		refuse  = bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)}
		unknown = bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)}
	)
	argument := func(n uint32) bpf.Instruction { return bpf.LoadAbsolute{Off: arguments + 8*n, Size: 4} }
	program := []bpf.Instruction{
		bpf.LoadAbsolute{Off: arch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: auditArch, SkipTrue: 1},
		refuse,
		bpf.LoadAbsolute{Off: number, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpLessThan, Val: otherABI, SkipTrue: 1},
		refuse,
		// Its flags are out of a filter's sight; who is told that there is none uses clone.
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.SYS_CLONE3, SkipTrue: 1},
		unknown,
	}
	for _, calls := range [][]uint32{refusedCalls, legacyCalls} {
		for _, call := range calls {
			program = append(program, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: call, SkipTrue: 1}, refuse)
		}
	}
	for _, c := range refusedArguments {
		program = append(program,
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: c.call, SkipTrue: 4},
			argument(c.argument),
			bpf.JumpIf{Cond: c.refuse, Val: c.value, SkipFalse: 1},
			refuse,
			allow)
	}
	program = append(program,
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.SYS_SOCKET, SkipTrue: uint8(2 + len(families))},
		argument(0))
	for i, family := range families {
		program = append(program, bpf.JumpIf{Cond: bpf.JumpEqual, Val: family, SkipTrue: uint8(len(families) - i)})
	}
	return bpf.Assemble(append(program, refuse, allow))
}
