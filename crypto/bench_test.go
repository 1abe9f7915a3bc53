package crypto_test

import (
	"fmt"
	"testing"

	"ovpn-go/crypto"
)

var benchLengths = []int{64, 512, 1350, 1420, 8900}

func BenchmarkSeal(b *testing.B) {
	for _, s := range suites {
		for _, n := range benchLengths {
			b.Run(fmt.Sprintf("%v/%d", s, n), func(b *testing.B) {
				key := loopbackKey(b, s)
				plaintext := make([]byte, n)
				packet := newArena(crypto.Overhead + n).packet
				b.SetBytes(int64(n))
				b.ReportAllocs()
				for id := uint32(0); b.Loop(); id++ {
					key.Seal(packet, plaintext, crypto.Op(1, 1), id)
				}
			})
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	for _, s := range suites {
		for _, n := range benchLengths {
			b.Run(fmt.Sprintf("%v/%d", s, n), func(b *testing.B) {
				key := loopbackKey(b, s)
				sealed, plaintext := newArena(crypto.Overhead+n).packet, make([]byte, n)
				key.Seal(sealed, plaintext, crypto.Op(1, 1), 1)
				tag := [crypto.TagSize]byte(sealed[crypto.HeaderSize:])
				b.SetBytes(int64(n))
				b.ReportAllocs()
				for b.Loop() {
					copy(sealed[crypto.HeaderSize:], tag[:])
					if err := key.Open(plaintext, sealed); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkAccept(b *testing.B) {
	key := loopbackKey(b, suites[0])
	b.ReportAllocs()
	for id := uint32(1); b.Loop(); id++ {
		key.Accept(id, 1)
	}
}

// BenchmarkNewKey reports what a key costs in memory while it lives.
func BenchmarkNewKey(b *testing.B) {
	for _, s := range suites {
		b.Run(s.String(), func(b *testing.B) {
			config := loopbackConfig(s, 1)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := crypto.NewKey(config); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
