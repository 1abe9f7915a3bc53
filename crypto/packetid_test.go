package crypto_test

import (
	"math"
	"sync"
	"sync/atomic"
	"testing"

	"ovpn-go/crypto"
)

func TestReserve(t *testing.T) {
	key := loopbackKey(t, suites[0])
	for _, step := range []struct {
		name    string
		taken   int64 // set before, unless negative
		n       int
		first   uint32
		granted int
	}{
		{"first id is 1", -1, 1, 1, 1},
		{"blocks follow each other", -1, 64, 2, 64},
		{"none asked, none taken", -1, 0, 0, 0},
		{"less than none", -1, -5, 0, 0},
		{"next block", -1, 2, 66, 2},
		{"block that ends at the last id", math.MaxUint32 - 10, 10, math.MaxUint32 - 9, 10},
		{"nothing behind the last id", -1, 1, 0, 0},
		{"block that would pass the last id", math.MaxUint32 - 3, 64, math.MaxUint32 - 2, 3},
		{"nothing behind a cut block", -1, 1, 0, 0},
		{"nothing for a large block", -1, math.MaxInt, 0, 0},
		{"the last id alone", math.MaxUint32 - 1, 1, math.MaxUint32, 1},
		{"all that is left", math.MaxUint32 - 7, math.MaxInt, math.MaxUint32 - 6, 7},
		{"a very large block", 0, 1 << 30, 1, 1 << 30},
	} {
		if step.taken >= 0 {
			crypto.SetTaken(key, uint32(step.taken))
		}
		first, granted := key.Reserve(step.n)
		if granted != step.granted || first != step.first {
			t.Errorf("%s: Reserve(%d) = %#x, %d; want %#x, %d", step.name, step.n, first, granted, step.first, step.granted)
		}
	}
}

func TestEveryPacketIDOnce(t *testing.T) {
	rng := newRand(t)
	key := loopbackKey(t, suites[0])
	next := uint64(1)
	for {
		first, granted := key.Reserve(1 + rng.IntN(1<<16))
		if granted == 0 {
			break
		}
		if uint64(first) != next {
			t.Fatalf("block starts at %#x, want %#x", first, next)
		}
		next += uint64(granted)
	}
	if next != math.MaxUint32+1 {
		t.Errorf("ended before %#x, want %#x", next, uint64(math.MaxUint32)+1)
	}
}

func TestConcurrentReserveNearExhaustion(t *testing.T) {
	const left, workers = 20_000, 8
	key := loopbackKey(t, suites[0])
	crypto.SetTaken(key, math.MaxUint32-left)

	var used [left]atomic.Int32
	var reports atomic.Int32
	var wg sync.WaitGroup
	for worker := range workers {
		wg.Go(func() {
			for n := worker; ; n++ {
				ask := 1 + n%23
				first, granted := key.Reserve(ask)
				for i := range granted {
					used[first+uint32(i)-(math.MaxUint32-left+1)].Add(1)
				}
				if granted < ask && key.ReportExhaustion() {
					reports.Add(1)
				}
				if granted == 0 {
					return
				}
			}
		})
	}
	wg.Wait()
	for i := range used {
		if n := used[i].Load(); n != 1 {
			t.Fatalf("id %#x was used %d times", uint32(i)+math.MaxUint32-left+1, n)
		}
	}
	if n := reports.Load(); n != 1 {
		t.Errorf("exhaustion was reported %d times", n)
	}
	if first, granted := key.Reserve(1); granted != 0 {
		t.Errorf("id %#x after exhaustion", first)
	}
}

func TestReserveDoesNotAllocate(t *testing.T) {
	key := loopbackKey(t, suites[0])
	if n := testing.AllocsPerRun(100, func() { key.Reserve(64); key.ReportExhaustion() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkReserve(b *testing.B) {
	b.ReportAllocs()
	key := loopbackKey(b, suites[0])
	for b.Loop() {
		key.Reserve(1)
	}
}
