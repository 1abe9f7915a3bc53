package tuntest

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// WithoutOffloads runs fn on a thread to which TUNSETOFFLOAD answers EINVAL when it is asked for any of the given TUN_F_
// flags, as a kernel does that does not know them. The thread ends with fn, as the filter that answers can't be taken off
// again. It needs CAP_SYS_ADMIN.
func WithoutOffloads(flags uint32, fn func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := errors.New("the test ended without offloads") // by t.FailNow in fn
		defer func() { result <- err }()
		if refused := refuseOffloads(flags); refused != nil {
			err = refused
			return
		}
		err = fn()
	}()
	return <-result
}

// refuseOffloads puts the calling thread under the filter.
func refuseOffloads(flags uint32) error {
	const call, request, argument = 0, 16 + 8, 16 + 2*8 // offsets in struct seccomp_data of what ioctl gets
	raw, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: call, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.SYS_IOCTL, SkipTrue: 5},
		bpf.LoadAbsolute{Off: request, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.TUNSETOFFLOAD, SkipTrue: 3},
		bpf.LoadAbsolute{Off: argument, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpBitsNotSet, Val: flags, SkipTrue: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.EINVAL)},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW},
	})
	if err != nil {
		return err
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, in := range raw {
		filter[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return fmt.Errorf("install seccomp filter: %w", errno)
	}
	return nil
}
