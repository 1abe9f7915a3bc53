package exec

import (
	"os"
	"os/signal"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// passedSignals are the signals whose arrival at the supervisor concerns the client. Left out are
// job control (the whole group stops and continues together), faults, SIGCHLD, SIGPIPE and the
// Go runtime's SIGURG. A signal that was ignored when we were started stays ignored, here and in
// the client, which inherits that.
func passedSignals() []os.Signal {
	var signals []os.Signal
	for _, s := range []unix.Signal{
		unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2,
		unix.SIGALRM, unix.SIGVTALRM, unix.SIGIO, unix.SIGPWR, unix.SIGWINCH,
	} {
		if !signal.Ignored(s) {
			signals = append(signals, s)
		}
	}
	const firstRealtime, lastRealtime = 35, 64 // below lie those of libc's and the runtime's own use
	for s := firstRealtime; s <= lastRealtime; s++ {
		signals = append(signals, unix.Signal(s))
	}
	return signals
}

const (
	// witnessDelay is how long the guard waits for a signal of its own after it heard of the
	// supervisor's. The kernel signals a process group in one go, a service manager a control
	// group process by process.
	witnessDelay = 40 * time.Millisecond
	// witnessMemory is how long a signal that only the guard got so far may count.
	witnessMemory = time.Second
)

// forwarder decides which of the supervisor's signals the client has not got by itself.
//
// A Ctrl-C, a shell's "kill %1" and a service manager's stop reach the whole process or control
// group: supervisor, guard and client alike. The guard is therefore the witness: what both got,
// the client got too. Passing such a signal on would deliver it twice, and a second SIGTERM makes
// OpenVPN skip its orderly exit. The guard decides, as it can't hear of the supervisor's signal
// while its own is held up.
//
// It is not safe for concurrent use.
type forwarder struct {
	pending   []arrival // received by the supervisor, not yet by the guard
	witnessed []arrival // received by the guard, not yet by the supervisor
}

type arrival struct {
	signal unix.Signal
	at     time.Time
}

// received notes that the supervisor got a signal.
func (f *forwarder) received(s unix.Signal, now time.Time) {
	f.witnessed = slices.DeleteFunc(f.witnessed, func(a arrival) bool { return now.Sub(a.at) > witnessMemory })
	if !take(&f.witnessed, s) {
		f.pending = append(f.pending, arrival{s, now})
	}
}

// witness notes that the guard got a signal.
func (f *forwarder) witness(s unix.Signal, now time.Time) {
	if !take(&f.pending, s) {
		f.witnessed = append(f.witnessed, arrival{s, now})
	}
}

// due returns, in order of arrival, the signals that the guard did not get in time, and forgets
// them.
func (f *forwarder) due(now time.Time) []unix.Signal {
	var signals []unix.Signal
	for len(f.pending) > 0 && now.Sub(f.pending[0].at) >= witnessDelay {
		signals = append(signals, f.pending[0].signal)
		f.pending = f.pending[1:]
	}
	return signals
}

// next returns when due has something to return, false if nothing is pending.
func (f *forwarder) next() (time.Time, bool) {
	if len(f.pending) == 0 {
		return time.Time{}, false
	}
	return f.pending[0].at.Add(witnessDelay), true
}

// take removes the oldest arrival of a signal.
func take(list *[]arrival, s unix.Signal) bool {
	i := slices.IndexFunc(*list, func(a arrival) bool { return a.signal == s })
	if i < 0 {
		return false
	}
	*list = slices.Delete(*list, i, i+1)
	return true
}
