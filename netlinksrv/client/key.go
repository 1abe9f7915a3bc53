package client

import (
	"fmt"

	"github.com/mdlayher/netlink"

	"ovpn-go/crypto"
	"ovpn-go/netlinksrv/uapi"
)

// Slot is one of a peer's two places for keys. What is sent is sealed with the primary one's; what arrives may be
// of either.
type Slot = crypto.Slot

// The slots.
const (
	Primary   = crypto.Primary
	Secondary = crypto.Secondary
)

// Cipher is an algorithm that seals packets.
type Cipher = crypto.Cipher

// The ciphers. AES-GCM's key has 16, 24 or 32 bytes, ChaCha20-Poly1305's has 32.
const (
	AESGCM           = crypto.AESGCM
	ChaCha20Poly1305 = crypto.ChaCha20Poly1305
)

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
// id. It is secret, and prints redacted.
type Direction = crypto.Direction

func encodeDirection(d Direction) func(*netlink.AttributeEncoder) error {
	return func(a *netlink.AttributeEncoder) error {
		a.Bytes(uapi.DirCipherKey, d.Key)
		a.Bytes(uapi.DirNonceTail, d.NonceTail[:])
		return nil
	}
}

// NewKey puts a key into a peer's slot, in place of what is there. The error is ENOENT if there is no such peer, EINVAL
// if the key's length is not the cipher's.
func (c *Conn) NewKey(ifindex int, peer uint32, k KeyConfig) error {
	_, err := c.request(uapi.CmdKeyNew, netlink.Acknowledge, ifindex, func(a *netlink.AttributeEncoder) {
		a.Nested(uapi.AttrKeyconf, func(a *netlink.AttributeEncoder) error {
			a.Uint32(uapi.KeyPeerID, peer)
			a.Uint32(uapi.KeySlot, uint32(k.Slot))
			a.Uint32(uapi.KeyKeyID, uint32(k.ID))
			a.Uint32(uapi.KeyCipher, uint32(k.Cipher))
			a.Nested(uapi.KeyEncryptDir, encodeDirection(k.Encrypt))
			a.Nested(uapi.KeyDecryptDir, encodeDirection(k.Decrypt))
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
	replies, err := c.request(uapi.CmdKeyGet, 0, ifindex, keyOf(peer, slot))
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
			if ad.Type() == uapi.AttrKeyconf {
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
	_, err := c.request(uapi.CmdKeySwap, netlink.Acknowledge, ifindex, func(a *netlink.AttributeEncoder) {
		a.Nested(uapi.AttrKeyconf, func(a *netlink.AttributeEncoder) error {
			a.Uint32(uapi.KeyPeerID, peer)
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
	_, err := c.request(uapi.CmdKeyDel, netlink.Acknowledge, ifindex, keyOf(peer, slot))
	if err != nil {
		return fmt.Errorf("delete %v key of peer %d: %w", slot, peer, err)
	}
	return nil
}

func keyOf(peer uint32, slot Slot) func(*netlink.AttributeEncoder) {
	return func(a *netlink.AttributeEncoder) {
		a.Nested(uapi.AttrKeyconf, func(a *netlink.AttributeEncoder) error {
			a.Uint32(uapi.KeyPeerID, peer)
			a.Uint32(uapi.KeySlot, uint32(slot))
			return nil
		})
	}
}

func (k *Key) decode(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		switch ad.Type() {
		case uapi.KeySlot:
			k.Slot = Slot(ad.Uint32())
		case uapi.KeyKeyID:
			k.ID = uint8(ad.Uint32())
		case uapi.KeyCipher:
			k.Cipher = Cipher(ad.Uint32())
		}
	}
	return nil
}
