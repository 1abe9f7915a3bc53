package client

import (
	"fmt"

	"github.com/mdlayher/netlink"
)

// Slot is one of a peer's two places for keys. What is sent is sealed with the primary one's; what arrives may be
// of either.
type Slot uint32

// The slots, with the kernel's numbers.
const (
	Primary   Slot = 0
	Secondary Slot = 1
)

// String returns the name that the kernel's specification gives the slot.
func (s Slot) String() string {
	switch s {
	case Primary:
		return "primary"
	case Secondary:
		return "secondary"
	}
	return fmt.Sprintf("slot %d", uint32(s))
}

// Cipher is an algorithm that seals packets.
type Cipher uint32

// The ciphers, with the kernel's numbers. AES-GCM's key has 16, 24 or 32 bytes, ChaCha20-Poly1305's has 32.
const (
	AESGCM           Cipher = 1
	ChaCha20Poly1305 Cipher = 2
)

// String returns the name that the kernel's specification gives the cipher.
func (c Cipher) String() string {
	switch c {
	case AESGCM:
		return "aes-gcm"
	case ChaCha20Poly1305:
		return "chacha20-poly1305"
	}
	return fmt.Sprintf("cipher %d", uint32(c))
}

// Key is what can be known of an installed key.
type Key struct {
	Slot   Slot
	ID     uint8 // 0 to 7, in each packet
	Cipher Cipher
}

// KeyConfig is a new key. Packet ids start from 1 with each: whoever installs the same bytes a second time repeats nonces,
// and with that gives the packets away.
type KeyConfig struct {
	Slot   Slot
	ID     uint8
	Cipher Cipher
	// Encrypt is for packets to the peer, Decrypt for those from it. The two must differ.
	Encrypt, Decrypt Direction
}

// Direction is the key of one direction: the cipher's, and the last 8 bytes of each nonce, which begins with the packet
// id. It is secret, and not printed.
type Direction struct {
	Key       []byte
	NonceTail [8]byte
}

// String keeps the secret.
func (Direction) String() string { return "[redacted]" }

// GoString keeps the secret.
func (Direction) GoString() string { return "[redacted]" }

func (d Direction) encode(a *netlink.AttributeEncoder) error {
	a.Bytes(dirCipherKey, d.Key)
	a.Bytes(dirNonceTail, d.NonceTail[:])
	return nil
}

// NewKey puts a key into a peer's slot, in place of what is there. The error is ENOENT if there is no such peer, EINVAL
// if the key's length is not the cipher's.
func (c *Conn) NewKey(ifindex int, peer uint32, k KeyConfig) error {
	_, err := c.request(cmdKeyNew, netlink.Acknowledge, ifindex, func(a *netlink.AttributeEncoder) {
		a.Nested(attrKeyconf, func(a *netlink.AttributeEncoder) error {
			a.Uint32(keyPeerID, peer)
			a.Uint32(keySlot, uint32(k.Slot))
			a.Uint32(keyKeyID, uint32(k.ID))
			a.Uint32(keyCipher, uint32(k.Cipher))
			a.Nested(keyEncryptDir, k.Encrypt.encode)
			a.Nested(keyDecryptDir, k.Decrypt.encode)
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("new key %d of peer %d: %w", k.ID, peer, err)
	}
	return nil
}

// Key returns what is in a peer's slot. The error is ENOENT if there is no such peer or the slot is empty.
func (c *Conn) Key(ifindex int, peer uint32, slot Slot) (Key, error) {
	replies, err := c.request(cmdKeyGet, 0, ifindex, keyOf(peer, slot))
	if err != nil {
		return Key{}, fmt.Errorf("get %v key of peer %d: %w", slot, peer, err)
	}
	var k Key
	for _, m := range replies {
		ad, err := netlink.NewAttributeDecoder(m.Data)
		if err != nil {
			return Key{}, fmt.Errorf("decode %v key of peer %d: %w", slot, peer, err)
		}
		for ad.Next() {
			if ad.Type() == attrKeyconf {
				ad.Nested(k.decode)
			}
		}
		if err := ad.Err(); err != nil {
			return Key{}, fmt.Errorf("decode %v key of peer %d: %w", slot, peer, err)
		}
	}
	return k, nil
}

// SwapKeys exchanges a peer's slots, either of which may be empty.
func (c *Conn) SwapKeys(ifindex int, peer uint32) error {
	_, err := c.request(cmdKeySwap, netlink.Acknowledge, ifindex, func(a *netlink.AttributeEncoder) {
		a.Nested(attrKeyconf, func(a *netlink.AttributeEncoder) error {
			a.Uint32(keyPeerID, peer)
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("swap keys of peer %d: %w", peer, err)
	}
	return nil
}

// DeleteKey empties a peer's slot. It succeeds if the slot is empty already.
func (c *Conn) DeleteKey(ifindex int, peer uint32, slot Slot) error {
	_, err := c.request(cmdKeyDel, netlink.Acknowledge, ifindex, keyOf(peer, slot))
	if err != nil {
		return fmt.Errorf("delete %v key of peer %d: %w", slot, peer, err)
	}
	return nil
}

func keyOf(peer uint32, slot Slot) func(*netlink.AttributeEncoder) {
	return func(a *netlink.AttributeEncoder) {
		a.Nested(attrKeyconf, func(a *netlink.AttributeEncoder) error {
			a.Uint32(keyPeerID, peer)
			a.Uint32(keySlot, uint32(slot))
			return nil
		})
	}
}

func (k *Key) decode(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		switch ad.Type() {
		case keySlot:
			k.Slot = Slot(ad.Uint32())
		case keyKeyID:
			k.ID = uint8(ad.Uint32())
		case keyCipher:
			k.Cipher = Cipher(ad.Uint32())
		}
	}
	return nil
}
