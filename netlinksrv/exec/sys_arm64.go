package exec

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// setSystemCall sets the number of the system call that a stopped thread is about to make.
func setSystemCall(tid int, nr int32) error {
	const systemCallOfARM64 = 0x404 // NT_ARM_SYSTEM_CALL
	iov := unix.Iovec{Base: (*byte)(unsafe.Pointer(&nr)), Len: uint64(unsafe.Sizeof(nr))}
	return ptrace(unix.PTRACE_SETREGSET, tid, systemCallOfARM64, unsafe.Pointer(&iov))
}
