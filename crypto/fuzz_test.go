package crypto_test

import (
	"bytes"
	"testing"

	"ovpn-go/crypto"
)

// FuzzOpen opens arbitrary bytes, from a sender who has no key. Nothing may authenticate, nothing
// may panic and the neighbouring bytes must stay.
func FuzzOpen(f *testing.F) {
	for _, v := range packetVectors {
		f.Add(unhex(f, v.packet), false)
		f.Add(unhex(f, v.packet), true)
	}
	var keys []*crypto.Key
	for _, s := range suites {
		config := loopbackConfig(s, 0)
		config.Decrypt.Key = bytes.Repeat([]byte{0x17}, s.keyLen)
		keys = append(keys, newKey(f, config))
	}
	f.Fuzz(func(t *testing.T, packet []byte, inPlace bool) {
		if len(packet) >= 4 {
			op := crypto.Op(crypto.KeyID(packet[0]), crypto.PeerID(packet))
			if crypto.Opcode(packet[0]) == crypto.OpcodeDataV2 && op>>24 != uint32(packet[0]) {
				t.Errorf("op %#x was read from %#x", op, packet[:4])
			}
		}
		for _, key := range keys {
			a := arenaOf(packet)
			dst := make([]byte, max(0, len(packet)-crypto.Overhead))
			if inPlace && len(packet) >= crypto.Overhead {
				dst = a.packet[crypto.Overhead:]
			}
			if err := key.Open(dst, a.packet); err != crypto.ErrAuthentication {
				t.Errorf("got %v", err)
			}
			if a.strayWrites(0) != 0 {
				t.Error("neighbours changed")
			}
		}
	})
}
