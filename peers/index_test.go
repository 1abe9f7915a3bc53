package peers

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
)

// TestIndexLikeMap does random things to an index and to a map. Keys are few enough to come back
// as tombstones are about, and the number of entries rises and falls.
func TestIndexLikeMap(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %#x", seed)
	rng := rand.New(rand.NewPCG(seed, seed))

	var x index[[4]byte]
	model := map[[4]byte]*Peer{}
	const steps = 200_000
	for step := range steps {
		key := [4]byte{byte(rng.Uint32()), byte(rng.Uint32N(4))}
		growing := step/20_000%2 == 0
		if rng.IntN(100) < 30 == growing || step%20_000 > 19_000 && !growing {
			x.del(key)
			delete(model, key)
		} else {
			p := &Peer{id: uint32(step)}
			x.put(key, p)
			model[key] = p
		}
		probe := [4]byte{byte(rng.Uint32()), byte(rng.Uint32N(4))}
		if got := x.get(probe); got != model[probe] {
			t.Fatalf("step %d: get(%v) = %p, want %p", step, probe, got, model[probe])
		}
		if x.live != len(model) {
			t.Fatalf("step %d: %d entries, want %d", step, x.live, len(model))
		}
		if array := x.array.Load(); array != nil {
			if free := len(array.slots) - x.used; free*4 < len(array.slots) {
				t.Fatalf("step %d: only %d of %d slots are free", step, free, len(array.slots))
			}
		}
	}
	for key := range model {
		x.del(key)
	}
	if x.array.Load() != nil || x.used != 0 {
		t.Error("an empty index keeps its array")
	}
}

// TestIndexChurnDoesNotGrow moves one entry among many keys.
func TestIndexChurnDoesNotGrow(t *testing.T) {
	var x index[[4]byte]
	x.put([4]byte{255}, new(Peer))
	for i := range 100_000 {
		key := [4]byte{0, byte(i >> 16), byte(i >> 8), byte(i)}
		x.put(key, new(Peer))
		x.del(key)
	}
	if n := len(x.array.Load().slots); n > minSlots {
		t.Errorf("%d slots for one entry", n)
	}
}

// TestIndexReadersAgainstWriter reads keys that stay while the array is rebuilt over and over.
func TestIndexReadersAgainstWriter(t *testing.T) {
	var x index[[4]byte]
	stays := make([]*Peer, 32)
	for i := range stays {
		stays[i] = &Peer{id: uint32(i)}
		x.put([4]byte{byte(i)}, stays[i])
	}
	var done atomic.Bool
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for !done.Load() {
				for i, p := range stays {
					if got := x.get([4]byte{byte(i)}); got != p {
						t.Errorf("key %d: got %p, want %p", i, got, p)
						return
					}
				}
				if p := x.get([4]byte{0, 1, 7}); p != nil && p.id != 7 {
					t.Errorf("a key leads to peer %d", p.id)
					return
				}
			}
		})
	}
	for range 200 {
		for i := range 100 {
			x.put([4]byte{0, 1, byte(i)}, &Peer{id: uint32(i)})
		}
		for i := range 100 {
			x.del([4]byte{0, 1, byte(i)})
		}
	}
	done.Store(true)
	wg.Wait()
}

func TestIDsFreeEmptyLeaves(t *testing.T) {
	ids := new(ids)
	a, b := new(Peer), new(Peer)
	ids.put(0x123400, a)
	ids.put(0x1234ff, b)
	ids.del(0x123400)
	if ids.get(0x123400) != nil || ids.get(0x1234ff) != b {
		t.Error("a removal took the wrong peer")
	}
	ids.del(0x1234ff)
	if ids.get(0x1234ff) != nil || ids[0x1234].Load() != nil {
		t.Error("an empty leaf stays allocated")
	}
}
