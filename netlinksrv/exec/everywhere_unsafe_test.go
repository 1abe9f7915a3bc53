package exec

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// rawPoll is one poll, or what stands for it, without a time limit; EINTR is an error like any other.
func rawPoll(fds []unix.PollFd) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&fds[0])), uintptr(len(fds)), 0, 0, 0, 0)
	return int(n), ok(errno)
}

const pollCall = unix.SYS_PPOLL

// address is a variable's, for a raw system call.
func address[T any](v *T) uintptr { return uintptr(unsafe.Pointer(v)) }
