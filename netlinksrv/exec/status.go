package exec

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Status is how the client ended. The zero Status is success.
type Status struct {
	Code   int         // its exit status, 0..255; for a signal 128 plus its number, as a shell says it
	Signal unix.Signal // the signal that killed it, or 0
}

// statusOf translates what wait says.
func statusOf(w unix.WaitStatus) Status {
	if w.Signaled() {
		return Status{Code: 128 + int(w.Signal()), Signal: w.Signal()}
	}
	return Status{Code: w.ExitStatus()}
}

// String describes the status as a shell would.
func (s Status) String() string {
	if s.Signal != 0 {
		return fmt.Sprintf("killed by %v", s.Signal)
	}
	return fmt.Sprintf("exit status %d", s.Code)
}

// Exit ends the calling process as the client ended: with its exit status, or by the same signal,
// without a second core dump. It does not return.
func (s Status) Exit() {
	if s.Signal != 0 {
		raise(s.Signal)
	}
	os.Exit(s.Code)
}

// raise dies by a signal. It returns if that is not possible: the first process of a pid namespace
// is immune to its own signals.
func raise(s unix.Signal) {
	runtime.LockOSThread()
	unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	defaultSignal(s)
	var set unix.Sigset_t
	const bits = 64 // of one element, on the architectures we build for
	set.Val[(int(s)-1)/bits] |= 1 << ((int(s) - 1) % bits)
	unix.PthreadSigmask(unix.SIG_UNBLOCK, &set, nil)
	// Sent to this very thread, it has arrived when the call returns.
	unix.Tgkill(os.Getpid(), unix.Gettid(), s)
}
