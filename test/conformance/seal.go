package conformance

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"

	"golang.org/x/crypto/chacha20poly1305"
)

// The ciphers of a key (enum ovpn_cipher_alg).
const (
	aesGCM   = 1
	chaCha20 = 2
)

const (
	dataV1        = 6        // the opcode of data packets of old, which nobody takes
	dataV2        = 9        // the opcode of a data packet
	undefinedPeer = 0xffffff // the peer id of a packet that names no peer
	packetHead    = 8        // opcode, key id, peer id; packet id
	tagSize       = 16
	overhead      = packetHead + tagSize
)

// keepalive is the plaintext of a packet that only says that there is somebody.
var keepalive = []byte{0x2a, 0x18, 0x7b, 0xf3, 0x64, 0x1e, 0xb4, 0xcb, 0x07, 0xed, 0x2d, 0x0a, 0x98, 0x1f, 0xc7, 0x48}

// pair is the material of a key, of both directions. Different seeds make different keys.
type pair struct {
	cipher uint32
	length int
	seed   byte
}

// half is a key and a nonce tail: what comes in, or what goes out.
func (p pair) half(in bool) (key, tail []byte) {
	seed := p.seed
	if in {
		seed ^= 0x80
	}
	for i := range p.length {
		key = append(key, seed+byte(7*i))
	}
	for i := range 8 {
		tail = append(tail, seed^byte(i+1))
	}
	return key, tail
}

// install is the description of the key for KEY_NEW.
func (p pair) install(peer, slot, id uint32) attr {
	direction := func(kind uint16, in bool) attr {
		key, tail := p.half(in)
		return nest(kind, data(dirKey, key...), data(dirTail, tail...))
	}
	return keyconf(u32(keyPeerID, peer), u32(keySlot, slot), u32(keyID, id), u32(keyCipher, p.cipher),
		direction(keyEncrypt, false), direction(keyDecrypt, true))
}

// seal makes the data packet that the other side sends: op is its first four bytes as a number.
func (p pair) seal(op, packetID uint32, plaintext []byte) []byte {
	key, tail := p.half(true)
	aead, err := newAEAD(p.cipher, key)
	if err != nil {
		panic(err) // a length that no cipher has
	}
	head := binary.BigEndian.AppendUint32(nil, op)
	head = binary.BigEndian.AppendUint32(head, packetID)
	sealed := aead.Seal(nil, append(head[4:8:8], tail...), plaintext, head)
	text, tag := sealed[:len(plaintext)], sealed[len(plaintext):]
	return append(append(head, tag...), text...)
}

func newAEAD(alg uint32, key []byte) (cipher.AEAD, error) {
	if alg == chaCha20 {
		return chacha20poly1305.New(key)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

func op(keyID, peerID uint32) uint32 { return dataV2<<27 | keyID<<24 | peerID }

// ip4 makes an IPv4 packet. Protocol 253 is for experiments: no stack answers it.
func ip4(from, to string, payload int) []byte {
	packet := make([]byte, 20+payload)
	packet[0], packet[8], packet[9] = 0x45, 64, 253
	binary.BigEndian.PutUint16(packet[2:], uint16(len(packet)))
	binary.BigEndian.PutUint16(packet[4:], 0x1234) // an id of 0 would be replaced by the stack
	copy(packet[12:], addr(0, from).value)
	copy(packet[16:], addr(0, to).value)
	for i := range payload {
		packet[20+i] = byte(i)
	}
	return checked(packet)
}

// checked puts the right checksum into an IPv4 header of 20 bytes.
func checked(packet []byte) []byte {
	packet[10], packet[11] = 0, 0
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(packet[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(packet[10:], ^uint16(sum))
	return packet
}

// ip6 makes an IPv6 packet.
func ip6(from, to string, payload int) []byte {
	packet := make([]byte, 40+payload)
	packet[0], packet[6], packet[7] = 0x60, 253, 64
	binary.BigEndian.PutUint16(packet[4:], uint16(payload))
	copy(packet[8:], addr(0, from).value)
	copy(packet[24:], addr(0, to).value)
	for i := range payload {
		packet[40+i] = byte(i)
	}
	return packet
}

// with returns a changed copy of a packet.
func with(packet []byte, change func(p []byte)) []byte {
	packet = append([]byte(nil), packet...)
	change(packet)
	return packet
}
