package crypto_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/bits"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ovpn-go/crypto"
)

const maxTestPlaintext = 1500

// plainSeal is Seal without any cleverness: the three inputs of the AEAD are built apart and the
// packet is put together from the result.
func plainSeal(t testing.TB, c crypto.Cipher, dir crypto.Direction, plaintext []byte, op, packetID uint32) []byte {
	t.Helper()
	aead, err := crypto.NewAEAD(c, dir.Key)
	if err != nil {
		t.Fatal(err)
	}
	header := binary.BigEndian.AppendUint32(nil, op)
	header = binary.BigEndian.AppendUint32(header, packetID)
	nonce := append(binary.BigEndian.AppendUint32(nil, packetID), dir.NonceTail[:]...)
	sealed := aead.Seal(nil, nonce, plaintext, header)
	ciphertext, tag := sealed[:len(plaintext)], sealed[len(plaintext):]
	return append(append(header, tag...), ciphertext...)
}

// arena is memory around a packet, filled with a pattern so that stray writes show.
type arena struct {
	mem    []byte
	packet []byte // with capacity to the end of mem
}

const margin = 64

func newArena(n int) arena {
	mem := bytes.Repeat([]byte{0x5a}, margin+n+margin)
	return arena{mem, mem[margin : margin+n]}
}

// arenaOf returns an arena whose packet is a copy of content.
func arenaOf(content []byte) arena {
	a := newArena(len(content))
	copy(a.packet, content)
	return a
}

// strayWrites counts changed bytes outside of the packet and of the given number of bytes behind it.
func (a arena) strayWrites(behind int) int {
	outside := append(bytes.Clone(a.mem[:margin]), a.mem[margin+len(a.packet)+behind:]...)
	return len(outside) - bytes.Count(outside, []byte{0x5a})
}

func TestEveryLengthRoundTrips(t *testing.T) {
	for _, s := range suites {
		t.Run(s.String(), func(t *testing.T) {
			rng := newRand(t)
			config := loopbackConfig(s, 5)
			key := newKey(t, config)
			for n := range maxTestPlaintext + 1 {
				plaintext := randomBytes(rng, n)
				op, packetID := crypto.Op(5, rng.Uint32()), rng.Uint32()
				want := plainSeal(t, s.cipher, config.Encrypt, plaintext, op, packetID)

				apart := newArena(len(want))
				source := bytes.Clone(plaintext)
				key.Seal(apart.packet, source, op, packetID)
				if !bytes.Equal(apart.packet, want) {
					t.Fatalf("length %d: sealed apart differs from the plain way", n)
				}
				if !bytes.Equal(source, plaintext) || apart.strayWrites(crypto.TagSize) != 0 {
					t.Fatalf("length %d: sealing apart wrote outside of its buffer", n)
				}

				inPlace := newArena(len(want))
				copy(inPlace.packet[crypto.Overhead:], plaintext)
				key.Seal(inPlace.packet, inPlace.packet[crypto.Overhead:], op, packetID)
				if !bytes.Equal(inPlace.packet, want) {
					t.Fatalf("length %d: sealed in place differs from the plain way", n)
				}
				if inPlace.strayWrites(crypto.TagSize) != 0 {
					t.Fatalf("length %d: sealing in place wrote outside of its buffer", n)
				}

				apart = arenaOf(want)
				opened := newArena(n)
				if err := key.Open(opened.packet, apart.packet); err != nil {
					t.Fatalf("length %d: open apart: %v", n, err)
				}
				if !bytes.Equal(opened.packet, plaintext) {
					t.Fatalf("length %d: opened apart differs", n)
				}
				if !bytes.Equal(apart.packet[crypto.Overhead:], want[crypto.Overhead:]) {
					t.Fatalf("length %d: opening apart changed the ciphertext", n)
				}
				if apart.strayWrites(0) != 0 || opened.strayWrites(0) != 0 {
					t.Fatalf("length %d: opening apart changed its neighbours", n)
				}

				inPlace = arenaOf(want)
				if err := key.Open(inPlace.packet[crypto.Overhead:], inPlace.packet); err != nil {
					t.Fatalf("length %d: open in place: %v", n, err)
				}
				if !bytes.Equal(inPlace.packet[crypto.Overhead:], plaintext) {
					t.Fatalf("length %d: opened in place differs", n)
				}
				if !bytes.Equal(inPlace.packet[:crypto.HeaderSize], want[:crypto.HeaderSize]) {
					t.Fatalf("length %d: opening changed the header", n)
				}
				if inPlace.strayWrites(0) != 0 {
					t.Fatalf("length %d: opening in place changed its neighbours", n)
				}
			}
		})
	}
}

func TestDamagedPacketsDoNotOpen(t *testing.T) {
	for _, s := range suites {
		t.Run(s.String(), func(t *testing.T) {
			key := loopbackKey(t, s)
			good := newArena(crypto.Overhead + 40)
			key.Seal(good.packet, make([]byte, 40), crypto.Op(3, 9), 77)

			mustFail := func(what string, packet []byte) {
				t.Helper()
				for _, inPlace := range []bool{false, true} {
					a := arenaOf(packet)
					dst := newArena(max(0, len(packet)-crypto.Overhead))
					if inPlace && len(packet) >= crypto.Overhead {
						dst = arena{dst.mem, a.packet[crypto.Overhead:]}
					}
					err := key.Open(dst.packet, a.packet)
					if err != crypto.ErrAuthentication {
						t.Errorf("%s (in place: %v): got %v, want ErrAuthentication", what, inPlace, err)
					}
					if a.strayWrites(0) != 0 || dst.strayWrites(0) != 0 {
						t.Errorf("%s (in place: %v): neighbours changed", what, inPlace)
					}
				}
			}
			for i := range good.packet {
				bad := bytes.Clone(good.packet)
				bad[i] ^= 0x10
				where := "ciphertext"
				switch {
				case i < crypto.HeaderSize:
					where = "associated data"
				case i < crypto.Overhead:
					where = "tag"
				}
				mustFail(where, bad)
			}
			for n := range good.packet {
				mustFail("truncated", good.packet[:n])
			}
			mustFail("extended", append(bytes.Clone(good.packet), 0))

			otherTail := loopbackConfig(s, 3)
			otherTail.Encrypt.NonceTail[7]++
			bad := newArena(len(good.packet))
			newKey(t, otherTail).Seal(bad.packet, make([]byte, 40), crypto.Op(3, 9), 77)
			mustFail("other nonce tail", bad.packet)
		})
	}
}

func TestDirectionsAreApart(t *testing.T) {
	for _, s := range suites {
		t.Run(s.String(), func(t *testing.T) {
			here := loopbackConfig(s, 1)
			here.Encrypt.Key = bytes.Repeat([]byte{1}, s.keyLen)
			here.Encrypt.NonceTail = [8]byte{1}
			there := here
			there.Encrypt, there.Decrypt = here.Decrypt, here.Encrypt
			a, b := newKey(t, here), newKey(t, there)

			for _, way := range []struct{ from, to *crypto.Key }{{a, b}, {b, a}} {
				packet := newArena(crypto.Overhead + 4).packet
				way.from.Seal(packet, []byte("ping"), crypto.Op(1, 2), 1)
				if err := way.from.Open(make([]byte, 4), arenaOf(packet).packet); err == nil {
					t.Error("a key opened its own packet")
				}
				got := make([]byte, 4)
				if err := way.to.Open(got, packet); err != nil || string(got) != "ping" {
					t.Errorf("other end opened %q, %v", got, err)
				}
			}
		})
	}
}

func TestNewKeyRefuses(t *testing.T) {
	key := func(n int) crypto.Direction { return crypto.Direction{Key: make([]byte, n)} }
	for _, c := range []struct {
		name   string
		config crypto.KeyConfig
		want   error
	}{
		{"no cipher", crypto.KeyConfig{Cipher: crypto.CipherNone, Encrypt: key(32), Decrypt: key(32)}, crypto.ErrUnsupportedCipher},
		{"unknown cipher", crypto.KeyConfig{Cipher: 3, Encrypt: key(32), Decrypt: key(32)}, crypto.ErrUnsupportedCipher},
		{"AES, empty", crypto.KeyConfig{Cipher: crypto.AESGCM}, crypto.ErrKeyLength},
		{"AES, odd length to encrypt", crypto.KeyConfig{Cipher: crypto.AESGCM, Encrypt: key(31), Decrypt: key(32)}, crypto.ErrKeyLength},
		{"AES, odd length to decrypt", crypto.KeyConfig{Cipher: crypto.AESGCM, Encrypt: key(32), Decrypt: key(33)}, crypto.ErrKeyLength},
		{"AES, two sizes", crypto.KeyConfig{Cipher: crypto.AESGCM, Encrypt: key(16), Decrypt: key(24)}, nil},
		{"ChaCha20, 16", crypto.KeyConfig{Cipher: crypto.ChaCha20Poly1305, Encrypt: key(16), Decrypt: key(32)}, crypto.ErrKeyLength},
		{"ChaCha20, 256", crypto.KeyConfig{Cipher: crypto.ChaCha20Poly1305, Encrypt: key(32), Decrypt: key(256)}, crypto.ErrKeyLength},
		{"ChaCha20, 32", crypto.KeyConfig{Cipher: crypto.ChaCha20Poly1305, Encrypt: key(32), Decrypt: key(32)}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := crypto.NewKey(c.config)
			if !errors.Is(err, c.want) || (got == nil) != (c.want != nil) {
				t.Errorf("got %v, %v; want error %v", got, err, c.want)
			}
		})
	}
	if _, err := crypto.NewKey(crypto.KeyConfig{ID: 8, Cipher: crypto.AESGCM, Encrypt: key(32), Decrypt: key(32)}); err == nil {
		t.Error("key id 8 was taken")
	}
	if _, err := crypto.NewKey(crypto.KeyConfig{ID: 7, Cipher: crypto.AESGCM, Encrypt: key(32), Decrypt: key(32)}); err != nil {
		t.Errorf("key id 7: %v", err)
	}
}

func TestKeyOutlivesItsConfig(t *testing.T) {
	for _, s := range suites {
		config := loopbackConfig(s, 0)
		key := newKey(t, config)
		want := plainSeal(t, s.cipher, config.Encrypt, []byte("plaintext"), crypto.Op(0, 1), 1)
		clear(config.Encrypt.Key)
		clear(config.Decrypt.Key)
		got := newArena(len(want)).packet
		key.Seal(got, []byte("plaintext"), crypto.Op(0, 1), 1)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%v: sealing changed when the caller wiped its copy (-want +got):\n%s", s, diff)
		}
	}
}

func TestHotPathDoesNotAllocate(t *testing.T) {
	for _, s := range suites {
		t.Run(s.String(), func(t *testing.T) {
			key := loopbackKey(t, s)
			var slots crypto.KeySlots
			slots.Install(crypto.Primary, key)
			buffer := newArena(crypto.Overhead + 1420).packet
			got := testing.AllocsPerRun(200, func() {
				sealer := slots.Primary()
				id, _ := sealer.Reserve(1)
				sealer.Seal(buffer, buffer[crypto.Overhead:], crypto.Op(3, 1), id)
				opener := slots.ByID(crypto.KeyID(buffer[0]))
				if err := opener.Open(buffer[crypto.Overhead:], buffer); err != nil {
					t.Fatal(err)
				}
				if !opener.Accept(id, 1) {
					t.Fatal("fresh packet refused")
				}
			})
			if got != 0 {
				t.Errorf("%v allocations per packet", got)
			}
		})
	}
}

func TestBuffersThatDoNotFitPanic(t *testing.T) {
	key := loopbackKey(t, suites[0])
	for name, call := range map[string]func(){
		"seal into short buffer": func() { key.Seal(make([]byte, 30, 60), make([]byte, 7), 0, 1) },
		"seal without room":      func() { key.Seal(make([]byte, 30, 45), make([]byte, 6), 0, 1) },
		"seal overlapping":       func() { b := make([]byte, 80); key.Seal(b[:34], b[20:30], 0, 1) },
		"open into short buffer": func() { key.Open(make([]byte, 5), make([]byte, 30, 60)) },
		"open without room":      func() { key.Open(make([]byte, 6), make([]byte, 30, 45)) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			call()
		})
	}
}

func TestDirectionsShareNoCacheLine(t *testing.T) {
	if bits.UintSize != 64 {
		t.Skip("the layout is made for 64-bit machines")
	}
	key := reflect.TypeFor[crypto.Key]()
	opening, _ := key.FieldByName("opening")
	if opening.Offset != 64 {
		t.Errorf("what receiving writes begins at %d", opening.Offset)
	}
	// The allocator has a size class of 384 bytes, which keeps to cache lines.
	if size := key.Size(); size <= 352 || size > 384 {
		t.Errorf("a key takes %d bytes beside its ciphers", size)
	}
}
