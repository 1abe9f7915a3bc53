package exec

import (
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// This file holds the system calls that x/sys/unix does not wrap, and all of the package's unsafe
// code. Structures and numbers are those of include/uapi/linux/seccomp.h and signal.h.

const (
	seccompNotifIDValid = 0x40082102 // SECCOMP_IOCTL_NOTIF_ID_VALID
	seccompNotifAddFD   = 0x40182103 // SECCOMP_IOCTL_NOTIF_ADDFD

	notificationSpace = int(unsafe.Sizeof(notification{}))
	responseSpace     = int(unsafe.Sizeof(response{}))
)

// notification is struct seccomp_notif with the struct seccomp_data inside it.
type notification struct {
	id    uint64
	tid   uint32 // in our pid namespace
	flags uint32
	nr    int32
	arch  uint32
	ip    uint64
	args  [6]uint64
}

// response is struct seccomp_notif_resp.
type response struct {
	id    uint64
	value int64
	errno int32
	flags uint32
}

// addFD is struct seccomp_notif_addfd.
type addFD struct {
	id          uint64
	flags       uint32
	source      uint32
	number      uint32
	numberFlags uint32
}

// notificationSizes is struct seccomp_notif_sizes.
type notificationSizes struct {
	notification, response, data uint16
}

func seccompSizes() (notificationSizes, error) {
	var sizes notificationSizes
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_NOTIF_SIZES, 0, uintptr(unsafe.Pointer(&sizes)))
	return sizes, ok(errno)
}

// installFilter makes the calling thread, and all that it starts from now on, subject to the
// program and returns the listener's descriptor, which is closed on exec.
func installFilter(program []bpf.RawInstruction, flags uint) (int, error) {
	filters := make([]unix.SockFilter, len(program))
	for i, in := range program {
		filters[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	prog := unix.SockFprog{Len: uint16(len(filters)), Filter: &filters[0]}
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(flags), uintptr(unsafe.Pointer(&prog)))
	return int(fd), ok(errno)
}

func receiveNotification(fd int) (notification, error) {
	var n notification // the kernel refuses anything but zeroes
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&n)))
	return n, ok(errno)
}

func sendResponse(fd int, r response) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&r)))
	return ok(errno)
}

func notificationValid(fd int, id uint64) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), seccompNotifIDValid, uintptr(unsafe.Pointer(&id)))
	return ok(errno)
}

func addDescriptor(fd int, add addFD) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), seccompNotifAddFD, uintptr(unsafe.Pointer(&add)))
	return ok(errno)
}

// readProcess copies from the memory of a thread's process and returns how much it could copy.
func readProcess(tid int, dst []byte, address uint64) (int, error) {
	if len(dst) == 0 {
		return 0, nil
	}
	local := []unix.Iovec{{Base: &dst[0]}}
	local[0].SetLen(len(dst))
	return unix.ProcessVMReadv(tid, local, []unix.RemoteIovec{{Base: uintptr(address), Len: len(dst)}}, 0)
}

// writeProcess copies into the memory of a thread's process and returns how much it could copy.
func writeProcess(tid int, src []byte, address uint64) (int, error) {
	if len(src) == 0 {
		return 0, nil
	}
	local := []unix.Iovec{{Base: &src[0]}}
	local[0].SetLen(len(src))
	return unix.ProcessVMWritev(tid, local, []unix.RemoteIovec{{Base: uintptr(address), Len: len(src)}}, 0)
}

// nameOfSocket is getsockname, or getpeername, with the address as it lies in memory.
func nameOfSocket(fd int, peer bool) ([]byte, error) {
	nr := uintptr(unix.SYS_GETSOCKNAME)
	if peer {
		nr = unix.SYS_GETPEERNAME
	}
	var name [128]byte // struct sockaddr_storage
	length := uint32(len(name))
	_, _, errno := unix.Syscall(nr, uintptr(fd), uintptr(unsafe.Pointer(&name[0])), uintptr(unsafe.Pointer(&length)))
	return name[:min(int(length), len(name))], ok(errno)
}

// socketOptionBytes is getsockopt with a buffer of size bytes. What it returns is as long as the
// kernel says, zeroes included where that exceeds the buffer.
func socketOptionBytes(fd, level, name, size int) ([]byte, error) {
	b := make([]byte, size+1)
	length := uint32(size)
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&length)), 0)
	if errno != 0 {
		return nil, errno
	}
	if int(length) > size {
		b = append(b[:size], make([]byte, int(length)-size)...)
	}
	return b[:length], nil
}

// isSubreaper says whether the process is a child subreaper.
func isSubreaper() (bool, error) {
	var value int32
	_, _, errno := unix.RawSyscall6(unix.SYS_PRCTL, unix.PR_GET_CHILD_SUBREAPER, uintptr(unsafe.Pointer(&value)), 0, 0, 0, 0)
	return value != 0, ok(errno)
}

// defaultSignal gives a signal its default action, behind the back of the Go runtime: its own
// default for SIGQUIT and its like is a stack dump.
func defaultSignal(signal unix.Signal) error {
	var action [32]byte // struct sigaction of the kernel: SIG_DFL, no flags, empty mask
	const maskBytes = 8
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(signal), uintptr(unsafe.Pointer(&action)), 0, maskBytes, 0, 0)
	return ok(errno)
}

// ptrace is a request about a thread that the calling OS thread traces and that is stopped.
func ptrace(request, tid int, address uintptr, data unsafe.Pointer) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(request), uintptr(tid), address, uintptr(data), 0, 0)
	return ok(errno)
}

// signalMask returns the signals that a stopped thread blocks.
func signalMask(tid int) (mask uint64, err error) {
	err = ptrace(unix.PTRACE_GETSIGMASK, tid, unsafe.Sizeof(mask), unsafe.Pointer(&mask))
	return mask, err
}

func setSignalMask(tid int, mask uint64) error {
	return ptrace(unix.PTRACE_SETSIGMASK, tid, unsafe.Sizeof(mask), unsafe.Pointer(&mask))
}

// beginsSystemCall says whether the thread, stopped at a system call, is at the beginning of it. It must be one of our own
// architecture, or the error is errOtherArch.
func (t *tracee) beginsSystemCall() (bool, error) {
	const entry = 1   // PTRACE_SYSCALL_INFO_ENTRY
	var info struct { // the beginning of struct ptrace_syscall_info
		op   uint8
		_    [3]uint8
		arch uint32
	}
	if err := ptrace(unix.PTRACE_GET_SYSCALL_INFO, t.tid, unsafe.Sizeof(info), unsafe.Pointer(&info)); err != nil {
		return false, t.lost(err)
	}
	if info.arch != auditArch {
		return false, errOtherArch
	}
	return info.op == entry, nil
}

// sharesDescriptors says whether two threads have one descriptor table. Where the kernel does not tell they are taken to.
func sharesDescriptors(a, b int) bool {
	const files = 2 // KCMP_FILES
	order, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(a), uintptr(b), files, 0, 0, 0)
	return errno != 0 || order == 0
}

func ok(errno unix.Errno) error {
	if errno != 0 {
		return errno
	}
	return nil
}
