package crypto_test

import (
	"sync"
	"sync/atomic"
	"testing"

	"ovpn-go/crypto"
)

// keyWithID returns a fresh key; each has its own identity.
func keyWithID(t testing.TB, id uint8) *crypto.Key {
	t.Helper()
	return newKey(t, loopbackConfig(suites[0], id))
}

func TestKeySlots(t *testing.T) {
	a, b, c := keyWithID(t, 1), keyWithID(t, 2), keyWithID(t, 2)

	for _, test := range []struct {
		name               string
		do                 func(*crypto.KeySlots)
		primary, secondary *crypto.Key
		byID               map[uint8]*crypto.Key
	}{
		{"empty", func(*crypto.KeySlots) {}, nil, nil, map[uint8]*crypto.Key{0: nil, 1: nil}},
		{"each in its slot", func(s *crypto.KeySlots) {
			s.Install(crypto.Primary, a)
			s.Install(crypto.Secondary, b)
		}, a, b, map[uint8]*crypto.Key{1: a, 2: b, 3: nil}},
		{"installing replaces", func(s *crypto.KeySlots) {
			s.Install(crypto.Primary, a)
			s.Install(crypto.Primary, b)
		}, b, nil, map[uint8]*crypto.Key{1: nil, 2: b}},
		{"same id in both: the primary one", func(s *crypto.KeySlots) {
			s.Install(crypto.Primary, b)
			s.Install(crypto.Secondary, c)
		}, b, c, map[uint8]*crypto.Key{2: b}},
		{"same id in both, swapped", func(s *crypto.KeySlots) {
			s.Install(crypto.Primary, b)
			s.Install(crypto.Secondary, c)
			s.Swap()
		}, c, b, map[uint8]*crypto.Key{2: c}},
		{"swap", func(s *crypto.KeySlots) {
			s.Install(crypto.Primary, a)
			s.Install(crypto.Secondary, b)
			s.Swap()
		}, b, a, map[uint8]*crypto.Key{1: a, 2: b}},
		{"swap with nothing at all, then install", func(s *crypto.KeySlots) {
			s.Swap()
			s.Install(crypto.Primary, a)
		}, a, nil, map[uint8]*crypto.Key{1: a}},
		{"swap with an empty secondary: nothing to seal with", func(s *crypto.KeySlots) {
			s.Install(crypto.Primary, a)
			s.Swap()
		}, nil, a, map[uint8]*crypto.Key{1: a}},
		{"swap twice", func(s *crypto.KeySlots) {
			s.Install(crypto.Primary, a)
			s.Swap()
			s.Swap()
		}, a, nil, map[uint8]*crypto.Key{1: a}},
		{"install after swap goes by role, not by place", func(s *crypto.KeySlots) {
			s.Install(crypto.Primary, a)
			s.Swap()
			s.Install(crypto.Primary, b)
		}, b, a, map[uint8]*crypto.Key{1: a, 2: b}},
		{"deleting the primary does not promote", func(s *crypto.KeySlots) {
			s.Install(crypto.Primary, a)
			s.Install(crypto.Secondary, b)
			s.Delete(crypto.Primary)
		}, nil, b, map[uint8]*crypto.Key{1: nil, 2: b}},
		{"deleting the secondary", func(s *crypto.KeySlots) {
			s.Install(crypto.Primary, a)
			s.Install(crypto.Secondary, b)
			s.Delete(crypto.Secondary)
		}, a, nil, map[uint8]*crypto.Key{1: a, 2: nil}},
		{"deleting what is empty", func(s *crypto.KeySlots) {
			s.Delete(crypto.Primary)
			s.Delete(crypto.Secondary)
		}, nil, nil, nil},
		{"a deleted key is replaced by a swap", func(s *crypto.KeySlots) {
			s.Install(crypto.Primary, a)
			s.Install(crypto.Secondary, b)
			s.Delete(crypto.Primary)
			s.Swap()
		}, b, nil, map[uint8]*crypto.Key{2: b}},
		{"removing takes exactly that key, whatever its slot", func(s *crypto.KeySlots) {
			s.Install(crypto.Primary, b)
			s.Install(crypto.Secondary, c)
			s.Swap()
			if !s.Remove(b) || s.Remove(b) {
				t.Error("Remove must be true once")
			}
		}, c, nil, map[uint8]*crypto.Key{2: c}},
		{"removing what is not there", func(s *crypto.KeySlots) {
			s.Install(crypto.Primary, b)
			if s.Remove(c) || s.Remove(nil) {
				t.Error("Remove of an absent key must be false")
			}
		}, b, nil, map[uint8]*crypto.Key{2: b}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var s crypto.KeySlots
			test.do(&s)
			if s.Primary() != test.primary || s.At(crypto.Primary) != test.primary || s.At(crypto.Secondary) != test.secondary {
				t.Errorf("primary %p, at %p and %p; want %p and %p",
					s.Primary(), s.At(crypto.Primary), s.At(crypto.Secondary), test.primary, test.secondary)
			}
			for id, want := range test.byID {
				if got := s.ByID(id); got != want {
					t.Errorf("ByID(%d) = %p, want %p", id, got, want)
				}
			}
		})
	}
}

// TestReadersSeeSlotsSwapped has readers look while a writer swaps and installs. A key that is
// installed as secondary and dropped again must never be offered for sealing, and a key that stays
// must always be found.
func TestReadersSeeSlotsSwapped(t *testing.T) {
	stays := keyWithID(t, 1)
	var fresh [64]*crypto.Key
	for i := range fresh {
		fresh[i] = keyWithID(t, 2)
	}
	var s crypto.KeySlots
	s.Install(crypto.Primary, stays)

	var done atomic.Bool
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for !done.Load() {
				if key := s.Primary(); key != nil && key.ID() == 2 {
					t.Error("a key that was only ever secondary was offered for sealing")
					return
				}
				if s.ByID(1) != stays {
					t.Error("a key that stayed was not found")
					return
				}
			}
		})
	}
	for i := range 20_000 {
		s.Swap()
		s.Swap()
		s.Install(crypto.Secondary, fresh[i%len(fresh)])
		s.Remove(fresh[i%len(fresh)])
	}
	done.Store(true)
	wg.Wait()
}

func TestRemoveIsTrueOnceAmongMany(t *testing.T) {
	for range 200 {
		var s crypto.KeySlots
		key := keyWithID(t, 1)
		s.Install(crypto.Secondary, key)
		var removed atomic.Int32
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if s.Remove(key) {
					removed.Add(1)
				}
			})
		}
		s.Swap()
		wg.Wait()
		if n := removed.Load(); n != 1 {
			t.Fatalf("removed %d times", n)
		}
	}
}

func BenchmarkKeySlots(b *testing.B) {
	var s crypto.KeySlots
	s.Install(crypto.Primary, keyWithID(b, 1))
	s.Install(crypto.Secondary, keyWithID(b, 2))
	b.Run("Primary", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s.Primary()
		}
	})
	b.Run("ByID secondary", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s.ByID(2)
		}
	})
}
