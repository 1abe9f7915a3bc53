package crypto_test

import (
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"ovpn-go/crypto"
)

// unhex decodes hex digits, which may be grouped with spaces.
func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// newRand returns a generator whose seed is printed when the test fails.
func newRand(t testing.TB) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %#x", seed)
	return rand.New(rand.NewPCG(seed, seed))
}

func randomBytes(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

type suite struct {
	cipher crypto.Cipher
	keyLen int
}

func (s suite) String() string { return fmt.Sprintf("%v-%d", s.cipher, s.keyLen*8) }

var suites = []suite{
	{crypto.AESGCM, 16},
	{crypto.AESGCM, 24},
	{crypto.AESGCM, 32},
	{crypto.ChaCha20Poly1305, 32},
}

// loopbackConfig describes a key that opens what it sealed.
func loopbackConfig(s suite, id uint8) crypto.KeyConfig {
	var dir crypto.Direction
	dir.Key = make([]byte, s.keyLen)
	for i := range dir.Key {
		dir.Key[i] = byte(0xa0 + i)
	}
	copy(dir.NonceTail[:], "nonceTAI")
	return crypto.KeyConfig{ID: id, Cipher: s.cipher, Encrypt: dir, Decrypt: dir}
}

func newKey(t testing.TB, config crypto.KeyConfig) *crypto.Key {
	t.Helper()
	key, err := crypto.NewKey(config)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func loopbackKey(t testing.TB, s suite) *crypto.Key {
	t.Helper()
	return newKey(t, loopbackConfig(s, 3))
}
