package exec

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A descriptor can be put into another process only while one of its threads waits in a notified system call. A thread
// that does something else is made to make such a call: it is interrupted with ptrace, and the system call that it makes
// next, or again, as what it was blocked in is restarted, is another one the first time.
//
//	seize, interrupt   the thread leaves what it is blocked in, as for a signal that nobody handles
//	go on              ... to where it enters its next system call, most often the same again
//	replace            the call becomes a getsockname that fails, and whose notification is the occasion
//	rewind             back to before the system call's instruction, with the registers as they were
//	detach             the thread makes its call
//
// So the thread has made every call that it meant to, once. Time that a call has waited already counts where the kernel
// remembers it (nanosleep, poll, futex); what starts anew is the time limit of those that it would otherwise end with
// EINTR (restartInterrupted).
//
// All of it is done by one OS thread, at whose end the kernel lets go of what it traces.

// Reasons why a thread is left alone.
var (
	errTraced    = errors.New("the thread is traced by another program, or may not be traced")
	errOtherArch = errors.New("the thread makes system calls of another architecture")
	errOwnFilter = errors.New("the process has a seccomp filter of its own")
	errBusy      = errors.New("the thread made no system call in time")
	errEnded     = errors.New("the thread has ended")
	errUnnoticed = errors.New("the thread's system call was not notified")
	errCovered   = errors.New("a thread of the process waits for an answer of ours")
)

// patience is how long a thread may take, once it is interrupted, to come to its next system call.
const patience = time.Second

// tracee is a thread that the calling OS thread traces.
type tracee struct {
	tid      int
	stopped  bool      // it has been seen to stop since it was last let run
	deadline time.Time // when patience ends
}

// inject has a thread make a notified system call, runs fn with the notification's id and lets the thread go on. It gives
// up with errCovered when covered says so: a thread that waits for an answer of ours can't be interrupted.
func (s *session) inject(tid int, covered func() bool, fn func(id uint64) error) error {
	return onOwnThread(func() error {
		t, err := seize(tid)
		if err != nil {
			return err
		}
		if err := s.ownFilter(tid); err != nil {
			return err
		}
		if err := t.interrupt(covered); err != nil {
			return err
		}
		if err := t.toSystemCall(covered); err != nil {
			return err
		}
		ids, forget := s.expectInjected(tid)
		defer forget()
		return t.instead(func() error {
			for wait := poller(); ; wait() {
				select {
				case id := <-ids:
					err := fn(id)
					return errors.Join(err, s.listener.returns(id, 0))
				default:
				}
				if status, err := t.poll(); err != nil || status != running {
					return errors.Join(errUnnoticed, err)
				}
			}
		})
	})
}

// bounce interrupts a thread, so that a system call that it is blocked in starts again.
func bounce(tid int, covered func() bool) error {
	return onOwnThread(func() error {
		t, err := seize(tid)
		if err != nil {
			return err
		}
		if err := t.interrupt(covered); err != nil {
			return err
		}
		return os.NewSyscallError("ptrace PTRACE_DETACH", unix.PtraceDetach(t.tid))
	})
}

// seize begins to trace a thread, which goes on running. From here on its id is not used again.
func seize(tid int) (*tracee, error) {
	switch err := unix.PtraceSeize(tid); err {
	case nil:
	case unix.EPERM:
		return nil, errTraced
	case unix.ESRCH:
		return nil, errEnded
	default:
		return nil, os.NewSyscallError("ptrace PTRACE_SEIZE", err)
	}
	return &tracee{tid: tid, deadline: time.Now().Add(patience)}, nil
}

// interrupt stops the thread.
func (t *tracee) interrupt(covered func() bool) error {
	if err := unix.PtraceInterrupt(t.tid); err != nil {
		return t.lost(err)
	}
	status, err := t.wait(covered)
	if err != nil {
		return err
	}
	if err := unix.PtraceSetOptions(t.tid, unix.PTRACE_O_TRACESYSGOOD); err != nil {
		return t.lost(err)
	}
	for !isTrap(status) { // signals that came first
		if err := t.resume(status); err != nil {
			return err
		}
		if status, err = t.wait(covered); err != nil {
			return err
		}
	}
	return t.restartInterrupted()
}

// isTrap says whether a stop is the one that we asked for, or a group stop, and not the delivery of a signal.
func isTrap(status unix.WaitStatus) bool { return uint32(status)>>16 == unix.PTRACE_EVENT_STOP }

// isSystemCall says whether a stop is at the beginning or the end of a system call.
func isSystemCall(status unix.WaitStatus) bool {
	return status.Stopped() && status.StopSignal() == unix.SIGTRAP|0x80
}

// toSystemCall lets the thread run until it is about to make a system call.
func (t *tracee) toSystemCall(covered func() bool) error {
	for {
		if err := t.resume(0); err != nil {
			return err
		}
		for {
			status, err := t.wait(covered)
			if err != nil {
				return err
			}
			if isSystemCall(status) {
				break
			}
			if err := t.resume(status); err != nil {
				return err
			}
		}
		begins, err := t.beginsSystemCall()
		if err != nil || begins {
			return err
		}
	}
}

// resume lets the thread run to the next system call, and delivers the signal that it has stopped for, if it has.
func (t *tracee) resume(status unix.WaitStatus) error {
	signal := unix.Signal(0)
	if status.Stopped() && !isTrap(status) && !isSystemCall(status) {
		signal = status.StopSignal()
	}
	t.stopped = false
	return t.lost(unix.PtraceSyscall(t.tid, int(signal)))
}

// instead has the thread, which is about to make a system call, make getsockname first. during is run while it does, and
// must see to its end.
func (t *tracee) instead(during func() error) error {
	saved, err := t.registers()
	if err != nil {
		return err
	}
	mask, err := signalMask(t.tid)
	if err != nil {
		return t.lost(err)
	}
	// No signal's handler may run with registers that are not the thread's own.
	if err := setSignalMask(t.tid, ^uint64(0)); err != nil {
		return t.lost(err)
	}
	if err := t.replaceCall(saved); err != nil {
		return errors.Join(err, t.lost(setSignalMask(t.tid, mask)))
	}
	if err := t.resume(0); err != nil {
		return err
	}
	err = during()
	if errors.Is(err, errEnded) {
		return err
	}
	// Whatever went wrong, the thread's registers must come right again.
	for wait := poller(); !t.stopped; wait() {
		if _, gone := t.poll(); gone != nil {
			return errors.Join(err, gone)
		}
	}
	return errors.Join(err, t.rewind(saved), t.lost(setSignalMask(t.tid, mask)), t.lost(unix.PtraceDetach(t.tid)))
}

// wait waits for the thread to stop.
func (t *tracee) wait(covered func() bool) (unix.WaitStatus, error) {
	for wait := poller(); ; wait() {
		status, err := t.poll()
		switch {
		case err != nil || status != running:
			return status, err
		case covered():
			return running, errCovered
		case time.Now().After(t.deadline):
			return running, errBusy
		}
	}
}

// poller returns a function that pauses: briefly at first, as most stops are a matter of microseconds.
func poller() func() {
	pause := 5 * time.Microsecond
	return func() {
		time.Sleep(pause)
		pause = min(2*pause, time.Millisecond)
	}
}

// running is no status that a thread stops with.
const running unix.WaitStatus = 0

// poll returns how the thread has stopped, running if it has not.
func (t *tracee) poll() (status unix.WaitStatus, err error) {
	got, err := ignoringEINTR(func() (int, error) {
		return unix.Wait4(t.tid, &status, unix.WALL|unix.WNOHANG, nil)
	})
	switch {
	case err != nil:
		return running, errEnded // ECHILD: it has become another thread by execve
	case got == 0:
		return running, nil
	case !status.Stopped():
		return running, errEnded
	}
	t.stopped = true
	return status, nil
}

// lost is what an error of a ptrace request means: a thread that was stopped and is not there has been killed.
func (t *tracee) lost(err error) error {
	switch err {
	case nil:
		return nil
	case unix.ESRCH:
		return errEnded
	}
	return fmt.Errorf("ptrace thread %d: %w", t.tid, err)
}

// blockedOn says whether a thread is blocked in a system call that reads, writes or waits for one of the descriptors, or may
// be.
func blockedOn(tid int, numbers map[int]bool) bool {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(tid) + "/syscall")
	if err != nil {
		return false
	}
	fields := strings.Fields(string(text)) // "running", or the call's number and its arguments
	if len(fields) < 2 {
		return len(fields) == 1 // it may be about to block
	}
	nr, err := strconv.Atoi(fields[0])
	if err != nil {
		return false
	}
	switch nr {
	case unix.SYS_READ, unix.SYS_READV, unix.SYS_RECVFROM, unix.SYS_RECVMSG, unix.SYS_RECVMMSG,
		unix.SYS_WRITE, unix.SYS_WRITEV, unix.SYS_SENDTO, unix.SYS_SENDMSG, unix.SYS_SENDMMSG:
		fd, err := strconv.ParseUint(fields[1], 0, 64)
		return err == nil && numbers[int(int32(fd))]
	}
	return pollsDescriptors(nr)
}
