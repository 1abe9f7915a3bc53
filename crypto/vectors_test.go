package crypto_test

import (
	"bytes"
	"encoding/hex"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ovpn-go/crypto"
)

// Key material of the kernel selftests' key file (tools/testing/selftests/net/ovpn/data64.key).
const (
	selftestKeyA = "8d1a8c00237b77bfda150353f12ee392b043f2ec2b8076c6e4e4193f67aee11d"
	selftestKeyB = "58eed7e94b66dfe511efd3a562d7adc21a86888935fdf51dc189af727001fc5b"
	selftestTail = "3d7ef4f5afe75767"
)

var packetVectors = []struct {
	name      string
	cipher    crypto.Cipher
	key       string
	keyID     uint8
	peerID    uint32
	packetID  uint32
	plaintext string
	packet    string
}{
	{
		name:   "AES-256-GCM keepalive",
		cipher: crypto.AESGCM, key: selftestKeyA,
		keyID: 0, peerID: 10, packetID: 1,
		plaintext: hex.EncodeToString(crypto.Keepalive[:]),
		packet: "4800000a 00000001" +
			"47ec9f7be098bbe891f7e41f38cce5e2" +
			"7f3be06c4eae35fd4ca7287b1a9b5439",
	},
	{
		name:   "ChaCha20-Poly1305 keepalive",
		cipher: crypto.ChaCha20Poly1305, key: selftestKeyA,
		keyID: 0, peerID: 10, packetID: 1,
		plaintext: "2a187bf3641eb4cb07ed2d0a981fc748",
		packet: "4800000a 00000001" +
			"a286f489f6ee07ca8f28f0435eee877b" +
			"0aeef82d3a8363f94e133aab8f1d83a6",
	},
	{
		name:   "last but one packet id, other key id",
		cipher: crypto.AESGCM, key: selftestKeyB,
		keyID: 1, peerID: 1, packetID: 0xfffffffe,
		plaintext: "4500001400004000400126dd0505050105050502",
		packet: "49000001 fffffffe" +
			"cbe0941f2551492fe3ee12cda84849f8" +
			"ad6694ce10862fb704d2a9b36c19dbad330c22fa",
	},
	{
		name:   "empty plaintext",
		cipher: crypto.AESGCM, key: selftestKeyA,
		keyID: 0, peerID: 10, packetID: 2,
		plaintext: "",
		packet: "4800000a 00000002" +
			"54cd3a750a52c31184b46c6e2a6309be",
	},
}

func selftestKey(t testing.TB, c crypto.Cipher, key string, id uint8) *crypto.Key {
	t.Helper()
	dir := crypto.Direction{Key: unhex(t, key), NonceTail: [8]byte(unhex(t, selftestTail))}
	return newKey(t, crypto.KeyConfig{ID: id, Cipher: c, Encrypt: dir, Decrypt: dir})
}

func TestPacketVectors(t *testing.T) {
	for _, v := range packetVectors {
		t.Run(v.name, func(t *testing.T) {
			key := selftestKey(t, v.cipher, v.key, v.keyID)
			plaintext, want := unhex(t, v.plaintext), unhex(t, v.packet)

			got := make([]byte, len(want), len(want)+crypto.TagSize)
			key.Seal(got, plaintext, crypto.Op(v.keyID, v.peerID), v.packetID)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("sealed (-want +got):\n%s", diff)
			}

			if crypto.Opcode(want[0]) != crypto.OpcodeDataV2 || crypto.KeyID(want[0]) != v.keyID ||
				crypto.PeerID(want) != v.peerID || crypto.PacketID(want) != v.packetID {
				t.Errorf("header reads as opcode %d, key id %d, peer id %d, packet id %#x",
					crypto.Opcode(want[0]), crypto.KeyID(want[0]), crypto.PeerID(want), crypto.PacketID(want))
			}
			opened := make([]byte, len(plaintext))
			packet := append(make([]byte, 0, len(want)+crypto.TagSize), want...)
			if err := key.Open(opened, packet); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(plaintext, opened); diff != "" {
				t.Errorf("opened (-want +got):\n%s", diff)
			}
		})
	}
}

func TestOpKeepsToItsFields(t *testing.T) {
	for _, c := range []struct {
		keyID  uint8
		peerID uint32
		want   uint32
	}{
		{0, 0, 0x48000000},
		{7, crypto.MaxPeerID, 0x4fffffff},
		{3, 0x123456, 0x4b123456},
		{0xff, 0xff000001, 0x4f000001},
	} {
		if got := crypto.Op(c.keyID, c.peerID); got != c.want {
			t.Errorf("Op(%d, %#x) = %#x, want %#x", c.keyID, c.peerID, got, c.want)
		}
	}
}

func TestNames(t *testing.T) {
	got := []string{
		crypto.CipherNone.String(), crypto.AESGCM.String(), crypto.ChaCha20Poly1305.String(), crypto.Cipher(3).String(),
		crypto.Primary.String(), crypto.Secondary.String(), crypto.Slot(2).String(),
	}
	want := []string{"none", "aes-gcm", "chacha20-poly1305", "cipher(3)", "primary", "secondary", "slot(2)"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// The inputs shared by the longer AES-GCM cases below.
const (
	gcmKey       = "feffe9928665731c6d6a8f9467308308"
	gcmNonce     = "cafebabefacedbaddecaf888"
	gcmAD        = "feedfacedeadbeeffeedfacedeadbeefabaddad2"
	gcmPlaintext = "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72" +
		"1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
)

// aeadVectors are test cases 1, 2, 4, 10, 13, 14 and 16 of the GCM specification that NIST SP
// 800-38D builds on (McGrew and Viega), and RFC 8439, section 2.8.2.
var aeadVectors = []struct {
	name                      string
	cipher                    crypto.Cipher
	key, nonce, ad, plaintext string
	ciphertext, tag           string
}{
	{
		"GCM 1", crypto.AESGCM,
		"00000000000000000000000000000000", "000000000000000000000000", "", "",
		"", "58e2fccefa7e3061367f1d57a4e7455a",
	},
	{
		"GCM 2", crypto.AESGCM,
		"00000000000000000000000000000000", "000000000000000000000000", "", "00000000000000000000000000000000",
		"0388dace60b6a392f328c2b971b2fe78", "ab6e47d42cec13bdf53a67b21257bddf",
	},
	{
		"GCM 4", crypto.AESGCM,
		gcmKey, gcmNonce, gcmAD, gcmPlaintext,
		"42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e" +
			"21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e091",
		"5bc94fbc3221a5db94fae95ae7121a47",
	},
	{
		"GCM 10", crypto.AESGCM,
		gcmKey + "feffe9928665731c", gcmNonce, gcmAD, gcmPlaintext,
		"3980ca0b3c00e841eb06fac4872a2757859e1ceaa6efd984628593b40ca1e19c" +
			"7d773d00c144c525ac619d18c84a3f4718e2448b2fe324d9ccda2710",
		"2519498e80f1478f37ba55bd6d27618c",
	},
	{
		"GCM 13", crypto.AESGCM,
		"0000000000000000000000000000000000000000000000000000000000000000", "000000000000000000000000", "", "",
		"", "530f8afbc74536b9a963b4f1c4cb738b",
	},
	{
		"GCM 14", crypto.AESGCM,
		"0000000000000000000000000000000000000000000000000000000000000000", "000000000000000000000000", "",
		"00000000000000000000000000000000",
		"cea7403d4d606b6e074ec5d3baf39d18", "d0d1c8a799996bf0265b98b5d48ab919",
	},
	{
		"GCM 16", crypto.AESGCM,
		gcmKey + gcmKey, gcmNonce, gcmAD, gcmPlaintext,
		"522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa" +
			"8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662",
		"76fc6ece0f4e1768cddf8853bb2d551b",
	},
	{
		"RFC 8439 2.8.2", crypto.ChaCha20Poly1305,
		"808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f",
		"070000004041424344454647",
		"50515253c0c1c2c3c4c5c6c7",
		"4c616469657320616e642047656e746c656d656e206f662074686520636c617373206f66202739393a20496620492063" +
			"6f756c64206f6666657220796f75206f6e6c79206f6e652074697020666f7220746865206675747572652c2073756e73" +
			"637265656e20776f756c642062652069742e",
		"d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d63dbea45e8ca9671282fafb69da92728b" +
			"1a71de0a9e060b2905d6a5b67ecd3b3692ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc" +
			"3ff4def08e4b7a9de576d26586cec64b6116",
		"1ae10b594f09e26a7e902ecbd0600691",
	},
}

func TestAEADVectors(t *testing.T) {
	for _, v := range aeadVectors {
		t.Run(v.name, func(t *testing.T) {
			aead, err := crypto.NewAEAD(v.cipher, unhex(t, v.key))
			if err != nil {
				t.Fatal(err)
			}
			nonce, ad, plaintext := unhex(t, v.nonce), unhex(t, v.ad), unhex(t, v.plaintext)
			want := unhex(t, v.ciphertext+v.tag)
			if diff := cmp.Diff(want, aead.Seal(nil, nonce, plaintext, ad)); diff != "" {
				t.Errorf("sealed (-want +got):\n%s", diff)
			}
			got, err := aead.Open(nil, nonce, want, ad)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, plaintext) {
				t.Errorf("opened %x, want %x", got, plaintext)
			}
		})
	}
}
