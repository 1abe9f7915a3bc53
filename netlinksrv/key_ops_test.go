package netlinksrv

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ovpn-go/crypto"
	"ovpn-go/datapath"
	"ovpn-go/peers"
)

// keyFields is a complete keyconf for peer 0.
func keyFields(cipher crypto.Cipher, key []byte) field {
	return fnest(attrKeyconf, f32(keyPeerID, 0), f32(keySlot, 1), f32(keyKeyID, 3), f32(keyCipher, uint32(cipher)),
		direction(keyEncryptDir, key), direction(keyDecryptDir, key))
}

func direction(number uint16, key []byte) field {
	return fnest(number, fraw(dirCipherKey, key...), fraw(dirNonceTail, 1, 2, 3, 4, 5, 6, 7, 8))
}

// keyDevice has peer 5 with one key in the primary slot.
func keyDevice(t *testing.T) (*fakeDevice, *client) {
	t.Helper()
	s := testServer(t)
	d := addDevice(t, s, testIfindex, peers.P2P)
	d.peers = []*fakePeer{{
		info: datapath.PeerInfo{ID: 5},
		keys: [2]crypto.KeyConfig{{ID: 2, Cipher: crypto.ChaCha20Poly1305}},
	}}
	return d, newExplainedClient(t, s)
}

// TestKeyOps has one case and more for each check of the key operations.
func TestKeyOps(t *testing.T) {
	const nestAt = firstAttribute + 8
	key16, key17, key32 := make([]byte, 16), make([]byte, 17), make([]byte, 32)
	tail := fraw(dirNonceTail, 1, 2, 3, 4, 5, 6, 7, 8)
	head := []field{f32(keyPeerID, 5), f32(keySlot, 1), f32(keyKeyID, 3), f32(keyCipher, 1)}
	keyconf := func(fields ...field) field { return fnest(attrKeyconf, fields...) }
	whole := func(id, cipher uint32, encrypt, decrypt []byte) field {
		return keyconf(f32(keyPeerID, id), f32(keySlot, 1), f32(keyKeyID, 3), f32(keyCipher, cipher),
			direction(keyEncryptDir, encrypt), direction(keyDecryptDir, decrypt))
	}
	// Where the directions lie in a keyconf that begins with head.
	const encryptAt = nestAt + attributeHeader + 4*8
	missing := func(number, nest uint32) refusal {
		return refusal{Errno: unix.EINVAL, MissType: number, MissNest: nest}
	}
	for _, tt := range []struct {
		name  string
		req   []byte
		fails map[string]error
		want  refusal
	}{
		{"K1", ask(cmdKeyNew), nil, missing(attrKeyconf, 0)},
		{"K2 peer-id", ask(cmdKeyNew, keyconf()), nil, missing(keyPeerID, nestAt)},
		{"K2 slot", ask(cmdKeyNew, keyconf(head[:1]...)), nil, missing(keySlot, nestAt)},
		{"K2 key-id", ask(cmdKeyNew, keyconf(head[:2]...)), nil, missing(keyKeyID, nestAt)},
		{"K2 cipher-alg", ask(cmdKeyNew, keyconf(head[:3]...)), nil, missing(keyCipher, nestAt)},
		{"K2 encrypt-dir", ask(cmdKeyNew, keyconf(append(head[:4:4], direction(keyDecryptDir, key16))...)), nil,
			missing(keyEncryptDir, nestAt)},
		{"K2 decrypt-dir", ask(cmdKeyNew, keyconf(append(head[:4:4], direction(keyEncryptDir, key16))...)), nil,
			missing(keyDecryptDir, nestAt)},
		{"K2 before K3", ask(cmdKeyNew, keyconf(f32(keyCipher, 0))), nil, missing(keyPeerID, nestAt)},
		{"K3", ask(cmdKeyNew, whole(5, 0, key16, key16)), nil, refusal{Errno: unix.EINVAL, Text: "ovpn: unsupported cipher"}},
		{"K3 before K4", ask(cmdKeyNew, keyconf(append(head[:3:3], f32(keyCipher, 0), fnest(keyEncryptDir), fnest(keyDecryptDir))...)),
			nil, refusal{Errno: unix.EINVAL, Text: "ovpn: unsupported cipher"}},
		{"K4 encrypt key", ask(cmdKeyNew, keyconf(append(head[:4:4], fnest(keyEncryptDir, tail), fnest(keyDecryptDir))...)), nil,
			missing(dirCipherKey, encryptAt)},
		{"K4 encrypt tail", ask(cmdKeyNew, keyconf(append(head[:4:4], fnest(keyEncryptDir, fraw(dirCipherKey)), fnest(keyDecryptDir))...)),
			nil, missing(dirNonceTail, encryptAt)},
		{"K4 decrypt key", ask(cmdKeyNew, keyconf(append(head[:4:4], direction(keyEncryptDir, key16), fnest(keyDecryptDir))...)), nil,
			missing(dirCipherKey, encryptAt+4+20+12)},
		{"K4 decrypt tail", ask(cmdKeyNew, keyconf(append(head[:4:4], direction(keyEncryptDir, key16),
			fnest(keyDecryptDir, fraw(dirCipherKey, key16...)))...)), nil, missing(dirNonceTail, encryptAt+4+20+12)},
		{"K5", ask(cmdKeyNew, whole(6, 1, key16, key16)), nil, refusal{Errno: unix.ENOENT, Text: "ovpn: no peer with id 6 to set key for"}},
		{"K5 before K6", ask(cmdKeyNew, whole(6, 1, key17, key17)), nil,
			refusal{Errno: unix.ENOENT, Text: "ovpn: no peer with id 6 to set key for"}},
		{"K6 encrypt", ask(cmdKeyNew, whole(5, 1, key17, key16)), nil,
			refusal{Errno: unix.EINVAL, Text: "ovpn: cannot install new key for peer 5"}},
		{"K6 decrypt", ask(cmdKeyNew, whole(5, 1, key16, key17)), nil,
			refusal{Errno: unix.EINVAL, Text: "ovpn: cannot install new key for peer 5"}},
		{"K6 ChaCha20-Poly1305", ask(cmdKeyNew, whole(5, 2, key16, key32)), nil,
			refusal{Errno: unix.EINVAL, Text: "ovpn: cannot install new key for peer 5"}},
		{"K6 no key", ask(cmdKeyNew, whole(5, 1, nil, nil)), nil,
			refusal{Errno: unix.EINVAL, Text: "ovpn: cannot install new key for peer 5"}},
		{"K7", ask(cmdKeyNew, whole(5, 1, key16, key16)), map[string]error{"InstallKey": crypto.ErrUnsupportedCipher},
			refusal{Errno: unix.ENOENT, Text: "ovpn: cannot install new key for peer 5"}},
		{"policy before everything", message(cmdKeyNew, requestFlags, keyconf(f32(keySlot, 2))), nil,
			refusal{unix.ERANGE, "integer out of range", firstAttribute + 4, described(&keyPolicies[keySlot]), 0, 0}},

		{"KEY_GET keyconf", ask(cmdKeyGet), nil, missing(attrKeyconf, 0)},
		{"KEY_GET peer-id", ask(cmdKeyGet, keyconf(f32(keySlot, 0))), nil, missing(keyPeerID, nestAt)},
		{"KEY_GET slot", ask(cmdKeyGet, keyconf(f32(keyPeerID, 5), f32(keyKeyID, 0))), nil, missing(keySlot, nestAt)},
		{"KEY_GET key-id", ask(cmdKeyGet, keyconf(f32(keyPeerID, 5), f32(keySlot, 0), f32(keyCipher, 0), f32(keyKeyID, 0))), nil,
			refusal{Errno: unix.EINVAL, Text: "ovpn: unexpected attribute 3"}},
		{"KEY_GET cipher-alg", ask(cmdKeyGet, keyconf(f32(keyPeerID, 5), f32(keySlot, 0), f32(keyCipher, 0))), nil,
			refusal{Errno: unix.EINVAL, Text: "ovpn: unexpected attribute 4"}},
		{"KEY_GET peer", ask(cmdKeyGet, keyconf(f32(keyPeerID, 6), f32(keySlot, 0))), nil,
			refusal{Errno: unix.ENOENT, Text: "ovpn: cannot find peer with id 6"}},
		{"KEY_GET empty slot", ask(cmdKeyGet, keyconf(f32(keyPeerID, 5), f32(keySlot, 1))), nil,
			refusal{Errno: unix.ENOENT, Text: "ovpn: cannot extract key from slot 1 for peer 5"}},

		{"KEY_SWAP keyconf", ask(cmdKeySwap), nil, missing(attrKeyconf, 0)},
		{"KEY_SWAP peer-id", ask(cmdKeySwap, keyconf()), nil, missing(keyPeerID, nestAt)},
		{"KEY_SWAP peer", ask(cmdKeySwap, keyconf(f32(keyPeerID, 6))), nil,
			refusal{Errno: unix.ENOENT, Text: "ovpn: no peer with id 6 to swap keys for"}},

		{"KEY_DEL keyconf", ask(cmdKeyDel), nil, missing(attrKeyconf, 0)},
		{"KEY_DEL peer-id", ask(cmdKeyDel, keyconf(f32(keySlot, 0))), nil, missing(keyPeerID, nestAt)},
		{"KEY_DEL slot", ask(cmdKeyDel, keyconf(f32(keyPeerID, 5))), nil, missing(keySlot, nestAt)},
		{"KEY_DEL peer", ask(cmdKeyDel, keyconf(f32(keyPeerID, 6), f32(keySlot, 0))), nil,
			refusal{Errno: unix.ENOENT, Text: "ovpn: no peer with id 6 to delete key for"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, c := keyDevice(t)
			if tt.fails != nil {
				d.fails = tt.fails
			}
			before := d.state()
			if diff := cmp.Diff(tt.want, c.outcome(tt.req)); diff != "" {
				t.Errorf("refusal (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(before, d.state()); diff != "" {
				t.Errorf("a refused request changed the device (-before +after):\n%s", diff)
			}
		})
	}
}

// TestKeysChange has what the key operations do when they succeed.
func TestKeysChange(t *testing.T) {
	d, c := keyDevice(t)
	succeed := func(name string, req []byte) {
		t.Helper()
		if diff := cmp.Diff(refusal{}, c.outcome(req)); diff != "" {
			t.Fatalf("%s (-want +got):\n%s", name, diff)
		}
	}
	encrypt, decrypt := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 24)
	succeed("KEY_NEW", ask(cmdKeyNew, fnest(attrKeyconf, f32(keyPeerID, 5), f32(keySlot, 1), f32(keyKeyID, 7), f32(keyCipher, 1),
		fnest(keyEncryptDir, fraw(dirCipherKey, encrypt...), fraw(dirNonceTail, 1, 1, 1, 1, 1, 1, 1, 1)),
		fnest(keyDecryptDir, fraw(dirCipherKey, decrypt...), fraw(dirNonceTail, 2, 2, 2, 2, 2, 2, 2, 2)))))
	want := crypto.KeyConfig{
		ID: 7, Cipher: crypto.AESGCM,
		Encrypt: crypto.Direction{Key: encrypt, NonceTail: [8]byte{1, 1, 1, 1, 1, 1, 1, 1}},
		Decrypt: crypto.Direction{Key: decrypt, NonceTail: [8]byte{2, 2, 2, 2, 2, 2, 2, 2}},
	}
	if diff := cmp.Diff(want, d.peers[0].keys[crypto.Secondary]); diff != "" {
		t.Errorf("installed key (-want +got):\n%s", diff)
	}
	first := d.peers[0].keys[crypto.Primary]
	succeed("KEY_SWAP", ask(cmdKeySwap, fnest(attrKeyconf, f32(keyPeerID, 5))))
	if diff := cmp.Diff([2]crypto.KeyConfig{want, first}, d.peers[0].keys); diff != "" {
		t.Errorf("keys after KEY_SWAP (-want +got):\n%s", diff)
	}
	del := ask(cmdKeyDel, fnest(attrKeyconf, f32(keyPeerID, 5), f32(keySlot, 0)))
	succeed("KEY_DEL", del)
	succeed("KEY_DEL of an empty slot", del)
	if diff := cmp.Diff([2]crypto.KeyConfig{{}, first}, d.peers[0].keys); diff != "" {
		t.Errorf("keys after KEY_DEL (-want +got):\n%s", diff)
	}
}
