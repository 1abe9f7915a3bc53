package peers

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
)

// TestIndexLikeMap does random things to an index and to a map. Keys come back while their
// tombstones are about, new ones keep coming, and the number of entries rises and falls.
func TestIndexLikeMap(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %#x", seed)
	rng := rand.New(rand.NewPCG(seed, seed))

	var x index[[4]byte]
	model := map[[4]byte]*Peer{}
	var known [][4]byte // the keys of model, in an order that depends on the seed alone
	const steps, phase = 100_000, 10_000
	for step := range steps {
		key := [4]byte{byte(step / 2000), byte(rng.Uint32()), byte(rng.Uint32N(2))}
		growing := step/phase%2 == 0
		if growing == (rng.IntN(4) > 0) {
			if model[key] == nil {
				known = append(known, key)
			}
			p := &Peer{id: uint32(step)}
			x.put(key, p)
			model[key] = p
		} else if len(known) > 0 {
			i := rng.IntN(len(known))
			key = known[i]
			known[i] = known[len(known)-1]
			known = known[:len(known)-1]
			x.del(key)
			delete(model, key)
		}
		if probe := model[key]; x.get(key) != probe {
			t.Fatalf("step %d: get(%v) = %p, want %p", step, key, x.get(key), probe)
		}
		if step%500 == 0 {
			checkIndex(t, &x, model)
		}
	}
	for key := range model {
		x.del(key)
	}
	if x.array.Load() != nil || x.used != 0 {
		t.Error("an empty index keeps its array")
	}
}

// checkIndex compares everything there is, and what the index knows about its slots.
func checkIndex(t *testing.T, x *index[[4]byte], model map[[4]byte]*Peer) {
	t.Helper()
	for key, want := range model {
		if got := x.get(key); got != want {
			t.Fatalf("get(%v) = %p, want %p", key, got, want)
		}
	}
	live, used, size := 0, 0, 0
	if array := x.array.Load(); array != nil {
		size = len(array.slots)
		for i := range array.slots {
			if p := array.slots[i].peer.Load(); p != nil {
				used++
				if p != gone {
					live++
				}
			}
		}
	}
	if live != len(model) || live != x.live || used != x.used {
		t.Fatalf("%d live and %d used slots, counted %d and %d; want %d live", live, used, x.live, x.used, len(model))
	}
	if used*4 > size*3 {
		t.Fatalf("%d of %d slots are used", used, size)
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

// TestIndexIsRebuiltSeldom: adding many keys, one after the other, moves each a few times at most.
func TestIndexIsRebuiltSeldom(t *testing.T) {
	var x index[[4]byte]
	rebuilt := 0
	for i := range 1 << 12 {
		before := x.array.Load()
		x.put([4]byte{1, byte(i >> 8), byte(i)}, new(Peer))
		if x.array.Load() != before {
			rebuilt++
		}
	}
	if rebuilt > 16 {
		t.Errorf("%d keys took %d arrays", 1<<12, rebuilt)
	}
	if n := len(x.array.Load().slots); n > 1<<14 {
		t.Errorf("%d slots for %d entries", n, 1<<12)
	}
}

// TestIndexDeletesWhatIsNotThere: neither a key that never was nor one that is gone changes anything.
func TestIndexDeletesWhatIsNotThere(t *testing.T) {
	var x index[[4]byte]
	x.del([4]byte{1})
	kept, gone := new(Peer), new(Peer)
	x.put([4]byte{1}, kept)
	x.put([4]byte{2}, gone)
	x.del([4]byte{3})
	x.del([4]byte{2})
	x.del([4]byte{2})
	checkIndex(t, &x, map[[4]byte]*Peer{{1}: kept})
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
