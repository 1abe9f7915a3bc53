package tun

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
)

// slowSum adds one 16-bit word at a time, as RFC 1071 section 4.1 shows it.
func slowSum(b []byte) uint32 {
	var s uint32
	for ; len(b) >= 2; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
		s = s>>16 + s&0xffff
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
		s = s>>16 + s&0xffff
	}
	return s
}

func TestSumEqualsWordByWord(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	fill := map[string]func() byte{
		"random":    func() byte { return byte(random.Uint32()) },
		"all ones":  func() byte { return 0xff }, // every addition carries
		"all zeros": func() byte { return 0 },
	}
	for name, next := range fill {
		t.Run(name, func(t *testing.T) {
			buf := make([]byte, 1500+8)
			for i := range buf {
				buf[i] = next()
			}
			for n := range 1501 {
				// An unaligned start must not matter.
				b := buf[n&7 : n&7+n]
				if got, want := sum(b), slowSum(b); got != want {
					t.Fatalf("%d bytes: sum %#x, want %#x", n, got, want)
				}
			}
			big := make([]byte, maxPacket)
			for i := range big {
				big[i] = next()
			}
			if got, want := sum(big), slowSum(big); got != want {
				t.Fatalf("%d bytes: sum %#x, want %#x", len(big), got, want)
			}
		})
	}
}

func TestSumsOfEvenPiecesAdd(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	b := make([]byte, 999)
	for i := range b {
		b[i] = byte(random.Uint32())
	}
	for cut := 0; cut < len(b); cut += 2 {
		if got, want := fold(sum(b[:cut])+sum(b[cut:])), fold(sum(b)); got != want {
			t.Fatalf("cut at %d: sum %#x, want %#x", cut, got, want)
		}
	}
}

func BenchmarkSum(b *testing.B) {
	for _, n := range []int{20, 64, 576, 1400, 1500} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			p := make([]byte, n)
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				sum(p)
			}
		})
	}
}

func TestSumDoesNotAllocate(t *testing.T) {
	p := make([]byte, 1500)
	if n := testing.AllocsPerRun(100, func() { sum(p) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
