package crypto

import (
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"

	"golang.org/x/crypto/chacha20poly1305"
)

// Cipher names an AEAD. Its values are those of enum ovpn_cipher_alg in the kernel's uapi.
type Cipher uint32

// CipherNone is not a cipher that a key may have.
const (
	CipherNone       Cipher = 0
	AESGCM           Cipher = 1 // AES-128, AES-192 or AES-256, by the length of the key
	ChaCha20Poly1305 Cipher = 2 // RFC 8439
)

var (
	// ErrUnsupportedCipher is returned for CipherNone and for ciphers this package does not have.
	ErrUnsupportedCipher = errors.New("unsupported cipher")
	// ErrKeyLength is returned for a key whose length the cipher does not take.
	ErrKeyLength = errors.New("wrong key length for cipher")
)

// String returns the kernel's name of the cipher.
func (c Cipher) String() string {
	switch c {
	case CipherNone:
		return "none"
	case AESGCM:
		return "aes-gcm"
	case ChaCha20Poly1305:
		return "chacha20-poly1305"
	}
	return fmt.Sprintf("cipher(%d)", uint32(c))
}

// newAEAD expands a key. The result keeps no reference to it.
func newAEAD(c Cipher, key []byte) (cipher.AEAD, error) {
	switch c {
	case AESGCM:
		switch len(key) {
		case 16, 24, 32:
		default:
			return nil, ErrKeyLength
		}
		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, err
		}
		return newGCM(block)
	case ChaCha20Poly1305:
		if len(key) != chacha20poly1305.KeySize {
			return nil, ErrKeyLength
		}
		return chacha20poly1305.New(key)
	}
	return nil, ErrUnsupportedCipher
}
