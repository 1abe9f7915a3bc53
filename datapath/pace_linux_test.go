package datapath

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestPace plays turns of some packets each, with waits between them, and asks whether the worker would look for more after
// the last turn.
func TestPace(t *testing.T) {
	const (
		short = 20 * time.Microsecond
		long  = 300 * time.Microsecond
	)
	type step struct {
		packets int
		wait    time.Duration // before the turn; 0: the turn before left work
	}
	repeat := func(n int, steps ...step) (all []step) {
		for range n {
			all = append(all, steps...)
		}
		return all
	}
	for _, row := range []struct {
		rule  string
		steps []step
		want  bool
	}{
		{"a worker that has had nothing to do sleeps", nil, false},
		{"packets that come and go one at a time are looked for", repeat(10, step{1, short}), true},
		{"a packet and its answer in one turn are", repeat(10, step{2, short}), true},
		{"a few short waits may be chance", repeat(3, step{1, short}), false},
		{"rare packets are not looked for", repeat(10, step{1, long}), false},
		{"nor is what follows a pause", append(repeat(10, step{1, short}), step{1, long}), false},
		{"nor the next request of a client that thinks", repeat(10, step{1, short}, step{1, short}, step{1, long}), false},
		{"bulk is left to gather", repeat(10, step{45, short}), false},
		{"work in hand is no short wait", repeat(10, step{1, 0}), false},
		{"turns without packets are no reason", append(repeat(10, step{1, short}), step{0, short}), false},
	} {
		t.Run(row.rule, func(t *testing.T) {
			var p pace
			now, carried := int64(time.Hour), uint64(0)
			for _, s := range row.steps {
				if s.wait > 0 {
					p.wait(now)
				}
				now += int64(s.wait)
				p.begin(now)
				carried += uint64(s.packets)
				p.end(carried)
			}
			if got := p.wait(now); got != row.want {
				t.Errorf("look = %v, want %v", got, row.want)
			}
		})
	}
	t.Run("whoever else needs the processor has it for a while", func(t *testing.T) {
		p := pace{short: lingerAfter, lone: true}
		now := int64(time.Hour)
		p.looked(now, now+int64(3*time.Millisecond))
		now += int64(3 * time.Millisecond)
		if p.wait(now) {
			t.Error("looks again at once")
		}
		if !p.wait(now + wantedFor) {
			t.Error("does not look again later")
		}
	})
}

// A worker that looks for more finds it, allocates nothing and, when nothing comes, leaves it at that.
func TestLinger(t *testing.T) {
	if !severalProcessors {
		t.Log("one processor: a worker never looks")
		return
	}
	s := newStage(t)
	events := make([]unix.EpollEvent, 4)
	s.turn(events[:s.look(events)])
	promising := pace{short: lingerAfter, lone: true}
	s.pace = promising
	if n := s.linger(events); n != 0 {
		t.Errorf("%d events where nothing is ready", n)
	}
	s.awake()
	if n := testing.AllocsPerRun(100, func() {
		s.pace = promising
		if n := s.linger(events); n != 1 || int(events[0].Fd) != s.wake {
			t.Errorf("%d events, want the one of the worker's eventfd", n)
		}
	}); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}
