package crypto

import "encoding/binary"

// Layout of a DATA_V2 packet. All integers are big-endian.
//
//	0   4 bytes  opcode (5 bits), key id (3 bits), peer id (24 bits)
//	4   4 bytes  packet id
//	8  16 bytes  tag
//	24           ciphertext, as long as the plaintext
//
// The first HeaderSize bytes are the associated data. The AEAD nonce is the packet id followed by
// the key's nonce tail.
const (
	HeaderSize    = 8
	TagSize       = 16
	Overhead      = HeaderSize + TagSize // what a packet is longer than its plaintext
	NonceTailSize = 8

	packetIDOffset = 4
	tagOffset      = HeaderSize
	nonceSize      = 12
	nonceEnd       = packetIDOffset + nonceSize
)

// Opcodes in the top five bits of a packet's first byte. Everything else belongs to the control
// channel.
const (
	OpcodeDataV1 = 6
	OpcodeDataV2 = 9
)

const (
	// MaxPeerID is the largest peer id that fits a packet.
	MaxPeerID = 0xffffff
	// PeerIDUndefined in a received packet says that the sender is to be found by its address.
	PeerIDUndefined = 0xffffff
	// MaxKeyID is the largest key id that fits a packet.
	MaxKeyID = 7
)

// Keepalive is the plaintext of a keepalive packet. It is not an IP packet and never reaches the
// interface. It must not be changed.
var Keepalive = [16]byte{
	0x2a, 0x18, 0x7b, 0xf3, 0x64, 0x1e, 0xb4, 0xcb,
	0x07, 0xed, 0x2d, 0x0a, 0x98, 0x1f, 0xc7, 0x48,
}

// Opcode returns the opcode in a packet's first byte.
func Opcode(first byte) uint8 { return first >> 3 }

// KeyID returns the key id, 0 to 7, in a packet's first byte.
func KeyID(first byte) uint8 { return first & MaxKeyID }

// PeerID returns the 24-bit peer id of a packet, which must hold at least 4 bytes.
func PeerID(packet []byte) uint32 { return binary.BigEndian.Uint32(packet) & MaxPeerID }

// PacketID returns the packet id of a packet, which must hold at least HeaderSize bytes.
func PacketID(packet []byte) uint32 { return binary.BigEndian.Uint32(packet[packetIDOffset:]) }

// Op returns the first 32-bit word of a DATA_V2 packet. Bits that do not fit are cut off.
func Op(keyID uint8, peerID uint32) uint32 {
	return OpcodeDataV2<<27 | uint32(keyID&MaxKeyID)<<24 | peerID&MaxPeerID
}
