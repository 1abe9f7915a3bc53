package crypto

import (
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
)

// Direction is the key material of one direction. It prints redacted.
type Direction struct {
	// Key is 16, 24 or 32 bytes for AESGCM and 32 bytes for ChaCha20Poly1305.
	Key []byte
	// NonceTail is the last 8 bytes of every nonce.
	NonceTail [NonceTailSize]byte
}

// KeyConfig describes a key. It prints redacted. The two directions of an AESGCM key may differ in
// length.
type KeyConfig struct {
	ID      uint8 // 0 to MaxKeyID
	Cipher  Cipher
	Encrypt Direction
	Decrypt Direction
	// Born is whatever the caller wants to be told by Key.Born, such as a time.
	Born int64
}

// ErrAuthentication is the error of every packet that does not open, whatever is wrong with it.
var ErrAuthentication = errors.New("packet authentication failed")

// Key seals packets of one direction and opens those of the other. Its methods may be called
// concurrently. It prints without any key material.
//
// What sending writes lies in the first cache line and what receiving writes behind it, since a
// peer's two directions may be served by different processors.
type Key struct {
	id      uint8
	cipher  Cipher
	sealing sealing
	born    int64
	_       [8]byte
	opening opening
}

type sealing struct {
	aead      cipher.AEAD
	nonceTail [NonceTailSize]byte
	taken     atomic.Uint64 // packet ids handed out, see Reserve
	reported  atomic.Bool
}

type opening struct {
	aead      cipher.AEAD
	nonceTail [NonceTailSize]byte
	mu        sync.Mutex
	window    ReplayWindow // guarded by mu
}

// NewKey builds a key with all packet ids unspent and an empty replay window. The error is
// ErrUnsupportedCipher, or ErrKeyLength with the encrypting direction looked at first.
//
// The key holds expanded copies only, so the caller should clear both Direction.Key slices and the
// nonce tails as soon as NewKey returns. The expanded copies are wiped when the garbage collector
// finds that nobody has the key any more.
func NewKey(config KeyConfig) (*Key, error) {
	if config.ID > MaxKeyID {
		return nil, fmt.Errorf("key id %d is above %d", config.ID, MaxKeyID)
	}
	seal, err := newAEAD(config.Cipher, config.Encrypt.Key)
	if err != nil {
		return nil, fmt.Errorf("encrypting key for %v: %w", config.Cipher, err)
	}
	open, err := newAEAD(config.Cipher, config.Decrypt.Key)
	if err != nil {
		return nil, fmt.Errorf("decrypting key for %v: %w", config.Cipher, err)
	}
	k := &Key{
		id:      config.ID,
		cipher:  config.Cipher,
		born:    config.Born,
		sealing: sealing{aead: seal, nonceTail: config.Encrypt.NonceTail},
		opening: opening{aead: open, nonceTail: config.Decrypt.NonceTail},
	}
	wipeBehind(k)
	return k, nil
}

// ID returns the key id, 0 to MaxKeyID, that packets of this key carry.
func (k *Key) ID() uint8 { return k.id }

// Cipher returns the cipher of both directions.
func (k *Key) Cipher() Cipher { return k.cipher }

// Born returns KeyConfig.Born.
func (k *Key) Born() int64 { return k.born }

// Seal writes the packet for plaintext into dst, with op (see Op) as its first word and a packet id
// that came from Reserve and is used only once.
//
// dst is Overhead longer than plaintext and has capacity for TagSize bytes more, which are
// overwritten. plaintext is either exactly dst[Overhead:] or shares no byte with dst and those
// bytes behind it. Seal panics if the buffers are not like that.
func (k *Key) Seal(dst, plaintext []byte, op, packetID uint32) {
	if len(dst) != Overhead+len(plaintext) {
		panic("crypto: buffer does not fit the plaintext")
	}
	// The library wants nonce and additional data as slices and leaves the tag behind the
	// ciphertext. All three are made inside dst, because a local array would escape to the heap.
	// The nonce covers the place of the tag, so the tag moves there last.
	end := len(dst)
	packet := dst[:end+TagSize]
	binary.BigEndian.PutUint32(packet, op)
	binary.BigEndian.PutUint32(packet[packetIDOffset:], packetID)
	*(*[NonceTailSize]byte)(packet[tagOffset:]) = k.sealing.nonceTail

	k.sealing.aead.Seal(packet[Overhead:Overhead], packet[packetIDOffset:nonceEnd], plaintext, packet[:HeaderSize])
	runtime.KeepAlive(k) // see wipeBehind

	*(*[TagSize]byte)(packet[tagOffset:]) = [TagSize]byte(packet[end:])
}

// Open checks packet, a whole DATA_V2 packet, and writes its plaintext into dst. Packets shorter
// than Overhead do not open. The caller has looked at the opcode and chosen k by the key id; a
// packet that was sealed under another key id does not open either.
//
// dst is Overhead shorter than packet and is either exactly packet[Overhead:] or shares no byte
// with packet and the TagSize bytes behind it. Those bytes must be in packet's capacity. They are
// used and restored, so a datagram that lies there survives, but nobody else may look at them
// meanwhile. The packet's first 4 bytes and its packet id are kept, its tag is not. Open panics if
// the buffers are not like that.
//
// After ErrAuthentication, which is the only error, the content of dst is undefined. Otherwise the
// packet is genuine, but perhaps not new: ask Accept.
func (k *Key) Open(dst, packet []byte) error {
	if len(packet) < Overhead {
		return ErrAuthentication
	}
	if len(dst) != len(packet)-Overhead {
		panic("crypto: buffer does not fit the packet")
	}
	// As in Seal, the library wants the tag behind the ciphertext and everything else as slices.
	end := len(packet)
	packet = packet[:end+TagSize]
	behind := (*[TagSize]byte)(packet[end:])
	saved := *behind
	*behind = [TagSize]byte(packet[tagOffset:])
	*(*[NonceTailSize]byte)(packet[tagOffset:]) = k.opening.nonceTail

	_, err := k.opening.aead.Open(dst[:0], packet[packetIDOffset:nonceEnd], packet[Overhead:], packet[:HeaderSize])
	runtime.KeepAlive(k) // see wipeBehind

	*behind = saved
	if err != nil {
		return ErrAuthentication
	}
	return nil
}

// Accept reports whether a packet id is new and marks it as seen. It must be called only after
// Open succeeded, with now in nanoseconds of a monotonic clock; see ReplayWindow.
//
// A peer's packets normally arrive at one receiver, so the mutex is uncontended and costs two
// atomic operations. It is there because packets that follow a float, or come over two sockets,
// may meet.
func (k *Key) Accept(packetID uint32, now int64) bool {
	o := &k.opening
	o.mu.Lock()
	fresh := o.window.Accept(packetID, now)
	o.mu.Unlock()
	return fresh
}
