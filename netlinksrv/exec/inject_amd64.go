package exec

import "golang.org/x/sys/unix"

// registers returns the thread's registers at the beginning of a system call.
func (t *tracee) registers() (r unix.PtraceRegs, err error) {
	err = t.lost(unix.PtraceGetRegs(t.tid, &r))
	return r, err
}

// replaceCall makes the system call that the thread is about to make a getsockname that fails.
func (t *tracee) replaceCall(r unix.PtraceRegs) error {
	r.Orig_rax = unix.SYS_GETSOCKNAME
	r.Rdi = ^uint64(0)
	return t.lost(unix.PtraceSetRegs(t.tid, &r))
}

// rewind takes the thread from the end of a system call to before the one at whose beginning it had the registers r.
func (t *tracee) rewind(r unix.PtraceRegs) error {
	const instruction = 2 // bytes
	r.Rip -= instruction
	r.Rax = r.Orig_rax
	r.Orig_rax = ^uint64(0) // no system call that is to be restarted
	return t.lost(unix.PtraceSetRegs(t.tid, &r))
}

// restartInterrupted lets the system call that the thread was blocked in start again where the kernel would have it fail with
// EINTR although no signal is handled. Should there be a handler to run as well, the call still fails.
func (t *tracee) restartInterrupted() error {
	r, err := t.registers()
	if err != nil {
		return err
	}
	const restartWithoutHandler = 514 // ERESTARTNOHAND
	if int64(r.Rax) != -int64(unix.EINTR) || !startsAgain(int64(r.Orig_rax)) {
		return nil
	}
	r.Rax = ^uint64(restartWithoutHandler) + 1
	return t.lost(unix.PtraceSetRegs(t.tid, &r))
}

// startsAgain says whether a system call that ended with EINTR has done nothing, so that it may be made again.
func startsAgain(nr int64) bool {
	switch nr {
	case unix.SYS_EPOLL_WAIT, unix.SYS_EPOLL_PWAIT, unix.SYS_EPOLL_PWAIT2, unix.SYS_RT_SIGTIMEDWAIT,
		unix.SYS_READ, unix.SYS_READV, unix.SYS_RECVFROM, unix.SYS_RECVMSG, unix.SYS_RECVMMSG,
		unix.SYS_WRITE, unix.SYS_WRITEV, unix.SYS_SENDTO, unix.SYS_SENDMSG, unix.SYS_SENDMMSG,
		unix.SYS_ACCEPT, unix.SYS_ACCEPT4, unix.SYS_SEMOP, unix.SYS_SEMTIMEDOP, unix.SYS_MSGSND, unix.SYS_MSGRCV,
		unix.SYS_IO_GETEVENTS:
		return true
	}
	return false
}

// pollsDescriptors says whether a system call waits for descriptors that it names in memory.
func pollsDescriptors(nr int) bool {
	switch nr {
	case unix.SYS_POLL, unix.SYS_PPOLL, unix.SYS_SELECT, unix.SYS_PSELECT6:
		return true
	}
	return false
}
