package client

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
)

// StaticKey is the secret that both ends of a tunnel without OpenVPN are given by hand, in the format of
// "openvpn --genkey secret": two keys of 128 bytes, one for each direction.
type StaticKey struct{ secret [2 * staticKeySize]byte }

// staticKeySize is a key's size in the file: 64 bytes for a cipher, 64 for an HMAC, of which an AEAD uses the first 8
// as the nonce tail (as OpenVPN does).
const (
	staticKeySize = 128
	staticHMAC    = 64
)

const (
	staticKeyBegin = "-----BEGIN OpenVPN Static key V1-----"
	staticKeyEnd   = "-----END OpenVPN Static key V1-----"
)

// ErrStaticKey says that a file holds no static key.
var ErrStaticKey = errors.New("not an OpenVPN static key")

// GenerateStaticKey returns a new random key.
func GenerateStaticKey() *StaticKey {
	var k StaticKey
	// Never fails: crypto/rand ends the program if the system has no randomness.
	_, _ = rand.Read(k.secret[:])
	return &k
}

// ParseStaticKey reads a key from the text that "openvpn --genkey secret" and MarshalText write. Lines before the key
// that begin with # or ; are comments.
func ParseStaticKey(text []byte) (*StaticKey, error) {
	_, rest, found := bytes.Cut(text, []byte(staticKeyBegin))
	body, _, ended := bytes.Cut(rest, []byte(staticKeyEnd))
	if !found || !ended {
		return nil, fmt.Errorf("%w: there is no %q with its end", ErrStaticKey, staticKeyBegin)
	}
	digits := bytes.Join(bytes.Fields(body), nil)
	defer clear(digits)
	var k StaticKey
	if len(digits) != hex.EncodedLen(len(k.secret)) {
		return nil, fmt.Errorf("%w: %d hexadecimal digits, not %d", ErrStaticKey, len(digits), hex.EncodedLen(len(k.secret)))
	}
	if _, err := hex.Decode(k.secret[:], digits); err != nil {
		// What is wrong with a digit would be a piece of the secret.
		return nil, fmt.Errorf("%w: there is something other than hexadecimal digits", ErrStaticKey)
	}
	return &k, nil
}

// MarshalText returns the file's text. It is secret.
func (k *StaticKey) MarshalText() ([]byte, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "#\n# 2048 bit OpenVPN static key\n#\n%s\n", staticKeyBegin)
	for i := 0; i < len(k.secret); i += 16 {
		fmt.Fprintf(&b, "%x\n", k.secret[i:i+16])
	}
	fmt.Fprintf(&b, "%s\n", staticKeyEnd)
	return b.Bytes(), nil
}

// String keeps the secret.
func (*StaticKey) String() string { return "[redacted]" }

// Directions returns the keys for a cipher key of size bytes, 16, 24 or 32. One end of the tunnel takes them as direction 0
// and the other as direction 1.
func (k *StaticKey) Directions(direction, size int) (encrypt, decrypt Direction) {
	of := func(i int) (d Direction) {
		key := k.secret[i*staticKeySize:]
		d.Key = bytes.Clone(key[:size])
		copy(d.NonceTail[:], key[staticHMAC:])
		return d
	}
	return of(direction), of(1 - direction)
}

// Wipe overwrites the key.
func (k *StaticKey) Wipe() { clear(k.secret[:]) }
