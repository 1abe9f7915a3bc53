package exec

import (
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Offsets into struct seccomp_data. The low half of an argument comes first on the little-endian
// architectures we build for; socket calls take ints, so the high half is noise.
const (
	dataNR   = 0
	dataArch = 4
	dataArgs = 16
)

// window is a range of descriptor numbers, lo included, hi excluded.
type window struct {
	lo, hi uint32
}

// contains says whether a descriptor of that number is notified.
func (w window) contains(fd int) bool {
	return fd >= int(w.lo) && fd < int(w.hi)
}

// anyDescriptorCalls are notified whatever their arguments. bind announces transport sockets to the
// datapath; the others may ask about a descriptor that has replaced a connection, whose number is the
// client's own choice. They are rare, and none of them moves data.
var anyDescriptorCalls = []uint32{
	unix.SYS_BIND,
	unix.SYS_GETSOCKNAME,
	unix.SYS_GETPEERNAME,
	unix.SYS_SETSOCKOPT,
	unix.SYS_GETSOCKOPT,
}

// socketCalls are notified when their first argument lies in the window.
var socketCalls = []uint32{
	unix.SYS_CONNECT,
	unix.SYS_SENDTO,
	unix.SYS_SENDMSG,
	unix.SYS_SENDMMSG,
	unix.SYS_WRITE,
	unix.SYS_WRITEV,
}

// filterProgram assembles the filter:
//
//   - system calls of another architecture pass;
//   - socket is notified for AF_NETLINK with the generic or the route protocol;
//   - anyDescriptorCalls are always notified;
//   - socketCalls are notified within the window;
//   - where descriptors are kept, unless that window is empty, what keptProgram adds;
//   - everything else passes.
func filterProgram(w, kept window) ([]bpf.RawInstruction, error) {
	const (
		allow  = unix.SECCOMP_RET_ALLOW
		notify = unix.SECCOMP_RET_USER_NOTIF
	)
	program := []bpf.Instruction{
		bpf.LoadAbsolute{Off: dataArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: auditArch, SkipTrue: 1},
		bpf.RetConstant{Val: allow},
		bpf.LoadAbsolute{Off: dataNR, Size: 4},
	}
	if kept != (window{}) {
		program = append(program, keptProgram(kept)...)
	}
	for _, nr := range anyDescriptorCalls {
		program = append(program,
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: nr, SkipTrue: 1},
			bpf.RetConstant{Val: notify})
	}
	program = append(program,
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.SYS_SOCKET, SkipTrue: 7},
		bpf.LoadAbsolute{Off: dataArgs, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.AF_NETLINK, SkipTrue: 4},
		bpf.LoadAbsolute{Off: dataArgs + 2*8, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.NETLINK_GENERIC, SkipTrue: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.NETLINK_ROUTE, SkipTrue: 1},
		bpf.RetConstant{Val: notify},
		bpf.RetConstant{Val: allow},
	)
	for i, nr := range socketCalls {
		// A match skips the comparisons that follow and the return behind them.
		program = append(program, bpf.JumpIf{Cond: bpf.JumpEqual, Val: nr, SkipTrue: uint8(len(socketCalls) - i)})
	}
	program = append(program,
		bpf.RetConstant{Val: allow},
		bpf.LoadAbsolute{Off: dataArgs, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpLessThan, Val: w.lo, SkipTrue: 2},
		bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: w.hi, SkipTrue: 1},
		bpf.RetConstant{Val: notify},
		bpf.RetConstant{Val: allow},
	)
	return bpf.Assemble(program)
}

// keptProgram is the part of the filter, which begins and goes on with the call's number, for what is made here and kept:
//
//   - accept, accept4 and those that make epoll sets are always notified;
//   - socket is notified for AF_INET and AF_INET6;
//   - close is notified within the window.
func keptProgram(kept window) []bpf.Instruction {
	const notify = unix.SECCOMP_RET_USER_NOTIF
	var program []bpf.Instruction
	for _, nr := range append([]uint32{unix.SYS_ACCEPT, unix.SYS_ACCEPT4}, epollCreateCalls...) {
		program = append(program,
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: nr, SkipTrue: 1},
			bpf.RetConstant{Val: notify})
	}
	return append(program,
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.SYS_SOCKET, SkipTrue: 5},
		bpf.LoadAbsolute{Off: dataArgs, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.AF_INET, SkipTrue: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.AF_INET6, SkipTrue: 1},
		bpf.RetConstant{Val: notify},
		bpf.LoadAbsolute{Off: dataNR, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.SYS_CLOSE, SkipTrue: 5},
		bpf.LoadAbsolute{Off: dataArgs, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpLessThan, Val: kept.lo, SkipTrue: 2},
		bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: kept.hi, SkipTrue: 1},
		bpf.RetConstant{Val: notify},
		bpf.LoadAbsolute{Off: dataNR, Size: 4},
	)
}
