package datapath

import (
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// When a worker goes on looking for packets for a moment before it sleeps. To wake it takes longer than anything else
// that happens to a lone packet, above all in a virtual machine whose processor has gone to sleep as well.
const (
	// lingerFor is how long it looks, in nanoseconds. A wait that takes longer is not worth it.
	lingerFor = int64(100 * time.Microsecond)
	// lingerAfter is how many short waits in succession make another one likely.
	lingerAfter = 4
	// lonePackets is how many packets a turn may have carried. Where more come at a time, whoever is late has fewer
	// and larger batches, which is worth more.
	lonePackets = 2
	// wantedFor is how long, in nanoseconds, it does not look any more after it had to wait for the processor. To
	// offer it to others again and again costs the turn that a sleeper is given when it wakes.
	wantedFor = int64(100 * time.Millisecond)
)

// severalProcessors: with one, there is nothing to be gained, as whoever is waited for needs it.
var severalProcessors = runtime.NumCPU() > 1

// pace tells from a worker's last turns and waits whether the next packet is worth looking for. Times are those of the
// turns' clock; a worker that has nothing to do, or the odd packet a second, sleeps at once.
type pace struct {
	since   int64  // when the wait began; 0: the turn before left work, there was none
	short   int    // waits in succession that were no longer than lingerFor, up to lingerAfter
	lone    bool   // the last turn carried something, but not more than lonePackets
	carried uint64 // packets of all turns
	wanted  int64  // until when others need the processor more
}

// begin notes that a turn begins.
func (p *pace) begin(now int64) {
	if p.since != 0 && now-p.since <= lingerFor {
		p.short = min(p.short+1, lingerAfter)
	} else {
		p.short = 0
	}
	p.since = 0
}

// end notes that a turn is over, with which all turns have carried so many packets.
func (p *pace) end(carried uint64) {
	n := carried - p.carried
	p.lone = n > 0 && n <= lonePackets
	p.carried = carried
}

// wait notes that the worker has nothing to do, and tells whether it should look for something before it sleeps.
func (p *pace) wait(now int64) (look bool) {
	p.since = now
	return p.lone && p.short == lingerAfter && now >= p.wanted
}

// looked notes that the worker was offering the processor to others between the two times.
func (p *pace) looked(from, to int64) {
	if to-from > lingerFor {
		p.wanted = to + wantedFor
	}
}

// linger looks for a moment for what becomes ready, where that is promising, and returns the number of events. Others
// have the processor meanwhile, not least the program that is about to answer.
func (w *worker) linger(events []unix.EpollEvent) int {
	now := monotonic()
	if !w.pace.wait(now) || !severalProcessors {
		return 0
	}
	for end := now + lingerFor; now < end; {
		_, _, _ = syscall.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
		if n := w.look(events); n > 0 {
			return n
		}
		last := now
		now = monotonic()
		w.pace.looked(last, now)
	}
	return 0
}
