package exec

import "golang.org/x/sys/unix"

const registersOfARM64 = 1 // NT_PRSTATUS

// registers returns the thread's registers at the beginning of a system call.
func (t *tracee) registers() (r unix.PtraceRegsArm64, err error) {
	err = t.lost(unix.PtraceGetRegSetArm64(t.tid, registersOfARM64, &r))
	return r, err
}

// replaceCall makes the system call that the thread is about to make a getsockname that fails.
func (t *tracee) replaceCall(r unix.PtraceRegsArm64) error {
	r.Regs[0] = ^uint64(0)
	if err := unix.PtraceSetRegSetArm64(t.tid, registersOfARM64, &r); err != nil {
		return t.lost(err)
	}
	return t.lost(setSystemCall(t.tid, unix.SYS_GETSOCKNAME))
}

// rewind takes the thread from the end of a system call to before the one at whose beginning it had the registers r.
func (t *tracee) rewind(r unix.PtraceRegsArm64) error {
	const instruction = 4 // bytes
	r.Pc -= instruction
	if err := unix.PtraceSetRegSetArm64(t.tid, registersOfARM64, &r); err != nil {
		return t.lost(err)
	}
	return t.lost(setSystemCall(t.tid, -1)) // no system call that is to be restarted
}

// restartInterrupted does nothing: the first argument of a system call that ended with EINTR, as epoll_wait does, is no longer
// known.
func (t *tracee) restartInterrupted() error { return nil }

// pollsDescriptors says whether a system call waits for descriptors that it names in memory.
func pollsDescriptors(nr int) bool {
	return nr == unix.SYS_PPOLL || nr == unix.SYS_PSELECT6
}
