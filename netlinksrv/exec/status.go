package exec

import (
	"fmt"
	"os"

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
		unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
		defaultSignal(s.Signal)
		// The signal goes to the process; the thread that it hits may take a moment.
		if unix.Kill(os.Getpid(), s.Signal) == nil && fatal(s.Signal) {
			select {}
		}
	}
	os.Exit(s.Code)
}

// fatal says whether the default action of a signal is to end the process.
func fatal(s unix.Signal) bool {
	switch s {
	case unix.SIGCHLD, unix.SIGCONT, unix.SIGURG, unix.SIGWINCH, unix.SIGSTOP, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU:
		return false
	}
	return true
}
