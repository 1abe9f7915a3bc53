package crypto_test

import (
	"bytes"
	"crypto/aes"
	"crypto/subtle"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ovpn-go/crypto"
)

// Once nobody has a key, nothing is left of it in the memory where its ciphers were.
func TestKeyIsWipedWhenNobodyHasIt(t *testing.T) {
	for _, s := range suites {
		t.Run(s.String(), func(t *testing.T) {
			key := loopbackKey(t, s)
			secrets := crypto.Secrets(key)
			used := key.Reserve // a key that somebody may still seal with
			runtime.GC()
			for i, memory := range secrets {
				if len(memory) < s.keyLen || !contains(memory) {
					t.Fatalf("cipher %d: no secrets in its %d bytes while the key is in use", i, len(memory))
				}
			}
			used(1)
			key, used = nil, nil
			for deadline := time.Now().Add(20 * time.Second); contains(secrets[0]) || contains(secrets[1]); {
				if time.Now().After(deadline) {
					t.Fatal("secrets are left 20 s after the key was dropped")
				}
				runtime.GC()
				time.Sleep(time.Millisecond)
			}
		})
	}
}

// A cipher's memory is that of one flat value. Overwriting only a part, or what is shared with others, would be worse than
// leaving it to the garbage collector.
func TestMemoryOf(t *testing.T) {
	type flat struct {
		_ [3]uint64
		_ struct{ ready bool }
	}
	for _, row := range []struct {
		name   string
		cipher any
		want   int // bytes
	}{
		{"nothing", nil, 0},
		{"a flat value", &flat{}, 32},
		{"a value that is not pointed to", flat{}, 0},
		{"a value that refers to more", &struct {
			key    [32]byte
			shared []byte
		}{shared: []byte("shared")}, 0},
		{"a value that refers to more in an array", &[2]*flat{}, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			if got := len(crypto.MemoryOf(row.cipher)); got != row.want {
				t.Errorf("%d bytes, want %d", got, row.want)
			}
		})
	}
}

// GCM copies AES, so that the original is a second place where the key would stay.
func TestGCMWipesTheBlockItCopied(t *testing.T) {
	block, err := aes.NewCipher(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	if !contains(crypto.MemoryOf(block)) {
		t.Fatal("no secrets in the block cipher's memory")
	}
	if _, err := crypto.NewGCM(block); err != nil {
		t.Fatal(err)
	}
	if contains(crypto.MemoryOf(block)) {
		t.Error("secrets are left in the block cipher")
	}
}

// xor is a block cipher of another kind, to which GCM only refers.
type xor [16]byte

func (*xor) BlockSize() int            { return len(xor{}) }
func (x *xor) Encrypt(dst, src []byte) { subtle.XORBytes(dst, src, x[:]) }
func (x *xor) Decrypt(dst, src []byte) { subtle.XORBytes(dst, src, x[:]) }

func TestGCMKeepsTheBlockItRefersTo(t *testing.T) {
	block := &xor{1, 2, 3}
	if _, err := crypto.NewGCM(block); err != nil {
		t.Fatal(err)
	}
	if *block != (xor{1, 2, 3}) {
		t.Error("the block cipher was wiped while GCM uses it")
	}
}

func contains(memory []byte) bool { return len(bytes.Trim(memory, "\x00")) > 0 }

// A packet that is under way when its key is dropped is sealed with the key and not with what is left of it. The ciphers'
// assembly can't be interrupted by a collection, which would hide it; so this runs on their plain Go.
func TestKeyIsNotWipedUnderAPacket(t *testing.T) {
	const plain = "cpu.all=off"
	if os.Getenv("GODEBUG") != plain {
		child := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
		child.Env = append(os.Environ(), "GODEBUG="+plain)
		if out, err := child.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	var done atomic.Bool
	var collector sync.WaitGroup
	defer collector.Wait()
	defer done.Store(true)
	collector.Go(func() {
		for !done.Load() {
			runtime.GC()
		}
	})
	twin := loopbackKey(t, suites[2])
	datagram := make([]byte, crypto.Overhead+2<<20+crypto.TagSize) // which takes longer than a collection
	packet := datagram[:len(datagram)-crypto.TagSize]
	payload := packet[crypto.Overhead:]
	loopbackKey(t, suites[2]).Seal(packet, payload, crypto.Op(3, 1), 1)
	if err := twin.Open(payload, packet); err != nil {
		t.Fatalf("sealed with something else than the key: %v", err)
	}
	twin.Seal(packet, payload, crypto.Op(3, 1), 1)
	if err := loopbackKey(t, suites[2]).Open(payload, packet); err != nil {
		t.Fatalf("opened with something else than the key: %v", err)
	}
}
