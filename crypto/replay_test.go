package crypto_test

import (
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ovpn-go/crypto"
)

// plainWindow is the replay window as the kernel's rules are written down: every rule a line, and
// what was seen a map that never forgets.
type plainWindow struct {
	highest, extent, floor uint32
	expire                 int64
	seen                   map[uint32]bool
}

func (w *plainWindow) accept(id uint32, now int64) bool {
	if id == 0 {
		return false
	}
	if now >= w.expire {
		w.floor = w.highest
	}
	if id > w.highest {
		w.extent = uint32(min(2048, uint64(w.extent)+uint64(id-w.highest)))
		w.highest = id
	} else {
		delta := w.highest - id
		if delta >= w.extent || id <= w.floor || w.seen[id] {
			return false
		}
	}
	w.seen[id] = true
	w.expire = now + 30*int64(time.Second)
	return true
}

func TestReplayWindowRules(t *testing.T) {
	const s = int64(time.Second)
	type step struct {
		id   uint32
		now  int64
		want bool
	}
	for _, c := range []struct {
		name  string
		steps []step
	}{
		{"id 0 is refused", []step{{0, 0, false}, {1, 0, true}, {0, 0, false}}},
		{"in order", []step{{1, 0, true}, {2, 0, true}, {3, 0, true}}},
		{"each id once", []step{{1, 0, true}, {1, 0, false}, {2, 0, true}, {2, 0, false}, {1, 0, false}}},
		{"first packet may have any id and those below come once", []step{
			{100, 0, true}, {1, 0, true}, {1, 0, false}, {99, 0, true}, {99, 0, false}, {100, 0, false},
		}},
		{"2047 back is in, 2048 back is out", []step{
			{5000, 0, true}, {5000 - 2047, 0, true}, {5000 - 2048, 0, false}, {5000 - 2047, 0, false},
		}},
		{"step of 2047 keeps the oldest", []step{{10, 0, true}, {2057, 0, true}, {10, 0, false}, {11, 0, true}}},
		{"step of 2048 forgets all", []step{{10, 0, true}, {2058, 0, true}, {10, 0, false}, {11, 0, true}}},
		{"skipped ids in reused places are unseen", []step{
			{1, 0, true}, {2, 0, true}, {3, 0, true}, {2048, 0, true}, {2051, 0, true}, {2049, 0, true}, {2050, 0, true},
		}},
		{"largest id", []step{
			{math.MaxUint32, 0, true}, {math.MaxUint32, 0, false}, {math.MaxUint32 - 2047, 0, true},
			{math.MaxUint32 - 2048, 0, false}, {1, 0, false},
		}},
		{"silence of 30 s raises the floor", []step{
			{10, 0, true}, {9, 30*s - 1, true}, {8, 60*s - 1, false}, {7, 60*s - 1, false}, {11, 60*s - 1, true}, {8, 60*s - 1, false},
		}},
		{"a refused packet raises the floor too", []step{
			{10, 0, true}, {10, 30 * s, false}, {9, 30 * s, false}, {12, 30 * s, true}, {11, 30 * s, true}, {9, 30 * s, false},
		}},
		{"a refused packet does not end the silence", []step{
			{10, 0, true}, {10, 20 * s, false}, {9, 30*s - 1, true}, {8, 60 * s, false},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var fast crypto.ReplayWindow
			slow := plainWindow{seen: map[uint32]bool{}}
			for i, step := range c.steps {
				if got := slow.accept(step.id, step.now); got != step.want {
					t.Errorf("step %d %+v: the plain window says %v", i, step, got)
				}
				if got := fast.Accept(step.id, step.now); got != step.want {
					t.Errorf("step %d %+v: got %v", i, step, got)
				}
			}
		})
	}
}

// TestReplayWindowLikePlain runs both windows on ids that wander, jump, come late, come again and
// pause, from several starting points up to the last id.
func TestReplayWindowLikePlain(t *testing.T) {
	rng := newRand(t)
	for round := range 60 {
		var fast crypto.ReplayWindow
		slow := plainWindow{seen: map[uint32]bool{}}
		start := []uint32{0, 1, 2000, 1 << 20, math.MaxUint32 - 6000}[round%5]
		last, now := uint64(start), int64(rng.IntN(2))*int64(time.Hour)
		for i := range 6000 {
			id := nextID(rng, &last)
			switch rng.IntN(400) {
			case 0:
				now += 30*int64(time.Second) - int64(rng.IntN(3))
			case 1:
				now += int64(rng.IntN(60)) * int64(time.Second)
			default:
				now += int64(rng.IntN(int(time.Millisecond)))
			}
			want, got := slow.accept(id, now), fast.Accept(id, now)
			if got != want {
				t.Fatalf("round %d, packet %d: id %d at %d: got %v, want %v (highest %d, floor %d)",
					round, i, id, now, got, want, slow.highest, slow.floor)
			}
		}
	}
}

// TestConcurrentAccept offers the same ids from several sides.
func TestConcurrentAccept(t *testing.T) {
	const ids, sides = 2000, 4
	key := loopbackKey(t, suites[0])
	var accepted [ids]atomic.Int32
	var wg sync.WaitGroup
	for range sides {
		wg.Go(func() {
			for id := range accepted {
				if key.Accept(uint32(id)+1, 0) {
					accepted[id].Add(1)
				}
			}
		})
	}
	wg.Wait()
	for id := range accepted {
		if n := accepted[id].Load(); n != 1 {
			t.Errorf("id %d was accepted %d times", id+1, n)
		}
	}
}

// nextID picks a packet id around the last new one.
func nextID(rng *rand.Rand, last *uint64) uint32 {
	ahead := func(n int) uint32 {
		*last = min(*last+1+uint64(rng.IntN(n)), math.MaxUint32)
		return uint32(*last)
	}
	back := func(n int) uint32 { return uint32(max(0, int64(*last)-int64(rng.IntN(n)))) }
	switch p := rng.IntN(1000); {
	case p < 600:
		return ahead(1)
	case p < 700:
		return ahead(5)
	case p < 720:
		return ahead(200)
	case p < 724:
		return ahead(3000)
	case p < 728:
		*last = min(*last+2045+uint64(rng.IntN(6)), math.MaxUint32)
		return uint32(*last)
	case p < 900:
		return back(10)
	case p < 980:
		return back(2100)
	case p < 999:
		return uint32(max(0, int64(*last)-2045-int64(rng.IntN(6))))
	default:
		return 0
	}
}

func BenchmarkReplayWindow(b *testing.B) {
	b.Run("in order", func(b *testing.B) {
		b.ReportAllocs()
		var w crypto.ReplayWindow
		id := uint32(0)
		for b.Loop() {
			id++
			w.Accept(id, 1)
		}
	})
	b.Run("pairs swapped", func(b *testing.B) {
		b.ReportAllocs()
		var w crypto.ReplayWindow
		id := uint32(1)
		for b.Loop() {
			id++
			w.Accept(id^1, 1)
		}
	})
	b.Run("every second lost", func(b *testing.B) {
		b.ReportAllocs()
		var w crypto.ReplayWindow
		id := uint32(0)
		for b.Loop() {
			id += 2
			w.Accept(id, 1)
		}
	})
}
