package netlinksrv

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ovpn-go/crypto"
	"ovpn-go/datapath"
	"ovpn-go/netlinksrv/uapi"
	"ovpn-go/peers"
)

// keyFields is a complete keyconf for peer 0.
func keyFields(cipher crypto.Cipher, key []byte) field {
	return fnest(uapi.AttrKeyconf, f32(uapi.KeyPeerID, 0), f32(uapi.KeySlot, 1), f32(uapi.KeyKeyID, 3), f32(uapi.KeyCipher, uint32(cipher)),
		direction(uapi.KeyEncryptDir, key), direction(uapi.KeyDecryptDir, key))
}

func direction(number uint16, key []byte) field {
	return fnest(number, fraw(uapi.DirCipherKey, key...), fraw(uapi.DirNonceTail, 1, 2, 3, 4, 5, 6, 7, 8))
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
	tail := fraw(uapi.DirNonceTail, 1, 2, 3, 4, 5, 6, 7, 8)
	head := []field{f32(uapi.KeyPeerID, 5), f32(uapi.KeySlot, 1), f32(uapi.KeyKeyID, 3), f32(uapi.KeyCipher, 1)}
	keyconf := func(fields ...field) field { return fnest(uapi.AttrKeyconf, fields...) }
	whole := func(id, cipher uint32, encrypt, decrypt []byte) field {
		return keyconf(f32(uapi.KeyPeerID, id), f32(uapi.KeySlot, 1), f32(uapi.KeyKeyID, 3), f32(uapi.KeyCipher, cipher),
			direction(uapi.KeyEncryptDir, encrypt), direction(uapi.KeyDecryptDir, decrypt))
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
		{"K1", ask(uapi.CmdKeyNew), nil, missing(uapi.AttrKeyconf, 0)},
		{"K2 peer-id", ask(uapi.CmdKeyNew, keyconf()), nil, missing(uapi.KeyPeerID, nestAt)},
		{"K2 slot", ask(uapi.CmdKeyNew, keyconf(head[:1]...)), nil, missing(uapi.KeySlot, nestAt)},
		{"K2 key-id", ask(uapi.CmdKeyNew, keyconf(head[:2]...)), nil, missing(uapi.KeyKeyID, nestAt)},
		{"K2 cipher-alg", ask(uapi.CmdKeyNew, keyconf(head[:3]...)), nil, missing(uapi.KeyCipher, nestAt)},
		{"K2 encrypt-dir", ask(uapi.CmdKeyNew, keyconf(append(head[:4:4], direction(uapi.KeyDecryptDir, key16))...)), nil,
			missing(uapi.KeyEncryptDir, nestAt)},
		{"K2 decrypt-dir", ask(uapi.CmdKeyNew, keyconf(append(head[:4:4], direction(uapi.KeyEncryptDir, key16))...)), nil,
			missing(uapi.KeyDecryptDir, nestAt)},
		{"K2 before K3", ask(uapi.CmdKeyNew, keyconf(f32(uapi.KeyCipher, 0))), nil, missing(uapi.KeyPeerID, nestAt)},
		{"K3", ask(uapi.CmdKeyNew, whole(5, 0, key16, key16)), nil, refusal{Errno: unix.EINVAL, Text: "ovpn: unsupported cipher"}},
		{"K3 before K4", ask(uapi.CmdKeyNew, keyconf(append(head[:3:3], f32(uapi.KeyCipher, 0), fnest(uapi.KeyEncryptDir), fnest(uapi.KeyDecryptDir))...)),
			nil, refusal{Errno: unix.EINVAL, Text: "ovpn: unsupported cipher"}},
		{"K4 encrypt key", ask(uapi.CmdKeyNew, keyconf(append(head[:4:4], fnest(uapi.KeyEncryptDir, tail), fnest(uapi.KeyDecryptDir))...)), nil,
			missing(uapi.DirCipherKey, encryptAt)},
		{"K4 encrypt tail", ask(uapi.CmdKeyNew, keyconf(append(head[:4:4], fnest(uapi.KeyEncryptDir, fraw(uapi.DirCipherKey)), fnest(uapi.KeyDecryptDir))...)),
			nil, missing(uapi.DirNonceTail, encryptAt)},
		{"K4 decrypt key", ask(uapi.CmdKeyNew, keyconf(append(head[:4:4], direction(uapi.KeyEncryptDir, key16), fnest(uapi.KeyDecryptDir))...)), nil,
			missing(uapi.DirCipherKey, encryptAt+4+20+12)},
		{"K4 decrypt tail", ask(uapi.CmdKeyNew, keyconf(append(head[:4:4], direction(uapi.KeyEncryptDir, key16),
			fnest(uapi.KeyDecryptDir, fraw(uapi.DirCipherKey, key16...)))...)), nil, missing(uapi.DirNonceTail, encryptAt+4+20+12)},
		{"K5", ask(uapi.CmdKeyNew, whole(6, 1, key16, key16)), nil, refusal{Errno: unix.ENOENT, Text: "ovpn: no peer with id 6 to set key for"}},
		{"K5 before K6", ask(uapi.CmdKeyNew, whole(6, 1, key17, key17)), nil,
			refusal{Errno: unix.ENOENT, Text: "ovpn: no peer with id 6 to set key for"}},
		{"K6 encrypt", ask(uapi.CmdKeyNew, whole(5, 1, key17, key16)), nil,
			refusal{Errno: unix.EINVAL, Text: "ovpn: cannot install new key for peer 5"}},
		{"K6 decrypt", ask(uapi.CmdKeyNew, whole(5, 1, key16, key17)), nil,
			refusal{Errno: unix.EINVAL, Text: "ovpn: cannot install new key for peer 5"}},
		{"K6 ChaCha20-Poly1305", ask(uapi.CmdKeyNew, whole(5, 2, key16, key32)), nil,
			refusal{Errno: unix.EINVAL, Text: "ovpn: cannot install new key for peer 5"}},
		{"K6 no key", ask(uapi.CmdKeyNew, whole(5, 1, nil, nil)), nil,
			refusal{Errno: unix.EINVAL, Text: "ovpn: cannot install new key for peer 5"}},
		{"K7", ask(uapi.CmdKeyNew, whole(5, 1, key16, key16)), map[string]error{"InstallKey": crypto.ErrUnsupportedCipher},
			refusal{Errno: unix.ENOENT, Text: "ovpn: cannot install new key for peer 5"}},
		{"policy before everything", message(uapi.CmdKeyNew, requestFlags, keyconf(f32(uapi.KeySlot, 2))), nil,
			refusal{unix.ERANGE, "integer out of range", firstAttribute + 4, described(&keyPolicies[uapi.KeySlot]), 0, 0}},

		{"KEY_GET keyconf", ask(uapi.CmdKeyGet), nil, missing(uapi.AttrKeyconf, 0)},
		{"KEY_GET peer-id", ask(uapi.CmdKeyGet, keyconf(f32(uapi.KeySlot, 0))), nil, missing(uapi.KeyPeerID, nestAt)},
		{"KEY_GET slot", ask(uapi.CmdKeyGet, keyconf(f32(uapi.KeyPeerID, 5), f32(uapi.KeyKeyID, 0))), nil, missing(uapi.KeySlot, nestAt)},
		{"KEY_GET key-id", ask(uapi.CmdKeyGet, keyconf(f32(uapi.KeyPeerID, 5), f32(uapi.KeySlot, 0), f32(uapi.KeyCipher, 0), f32(uapi.KeyKeyID, 0))), nil,
			refusal{Errno: unix.EINVAL, Text: "ovpn: unexpected attribute 3"}},
		{"KEY_GET cipher-alg", ask(uapi.CmdKeyGet, keyconf(f32(uapi.KeyPeerID, 5), f32(uapi.KeySlot, 0), f32(uapi.KeyCipher, 0))), nil,
			refusal{Errno: unix.EINVAL, Text: "ovpn: unexpected attribute 4"}},
		{"KEY_GET peer", ask(uapi.CmdKeyGet, keyconf(f32(uapi.KeyPeerID, 6), f32(uapi.KeySlot, 0))), nil,
			refusal{Errno: unix.ENOENT, Text: "ovpn: cannot find peer with id 6"}},
		{"KEY_GET empty slot", ask(uapi.CmdKeyGet, keyconf(f32(uapi.KeyPeerID, 5), f32(uapi.KeySlot, 1))), nil,
			refusal{Errno: unix.ENOENT, Text: "ovpn: cannot extract key from slot 1 for peer 5"}},

		{"KEY_SWAP keyconf", ask(uapi.CmdKeySwap), nil, missing(uapi.AttrKeyconf, 0)},
		{"KEY_SWAP peer-id", ask(uapi.CmdKeySwap, keyconf()), nil, missing(uapi.KeyPeerID, nestAt)},
		{"KEY_SWAP peer", ask(uapi.CmdKeySwap, keyconf(f32(uapi.KeyPeerID, 6))), nil,
			refusal{Errno: unix.ENOENT, Text: "ovpn: no peer with id 6 to swap keys for"}},

		{"KEY_DEL keyconf", ask(uapi.CmdKeyDel), nil, missing(uapi.AttrKeyconf, 0)},
		{"KEY_DEL peer-id", ask(uapi.CmdKeyDel, keyconf(f32(uapi.KeySlot, 0))), nil, missing(uapi.KeyPeerID, nestAt)},
		{"KEY_DEL slot", ask(uapi.CmdKeyDel, keyconf(f32(uapi.KeyPeerID, 5))), nil, missing(uapi.KeySlot, nestAt)},
		{"KEY_DEL peer", ask(uapi.CmdKeyDel, keyconf(f32(uapi.KeyPeerID, 6), f32(uapi.KeySlot, 0))), nil,
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
	succeed("KEY_NEW", ask(uapi.CmdKeyNew, fnest(uapi.AttrKeyconf, f32(uapi.KeyPeerID, 5), f32(uapi.KeySlot, 1), f32(uapi.KeyKeyID, 7), f32(uapi.KeyCipher, 1),
		fnest(uapi.KeyEncryptDir, fraw(uapi.DirCipherKey, encrypt...), fraw(uapi.DirNonceTail, 1, 1, 1, 1, 1, 1, 1, 1)),
		fnest(uapi.KeyDecryptDir, fraw(uapi.DirCipherKey, decrypt...), fraw(uapi.DirNonceTail, 2, 2, 2, 2, 2, 2, 2, 2)))))
	want := crypto.KeyConfig{
		ID: 7, Cipher: crypto.AESGCM,
		Encrypt: crypto.Direction{Key: encrypt, NonceTail: [8]byte{1, 1, 1, 1, 1, 1, 1, 1}},
		Decrypt: crypto.Direction{Key: decrypt, NonceTail: [8]byte{2, 2, 2, 2, 2, 2, 2, 2}},
	}
	if diff := cmp.Diff(want, d.peers[0].keys[crypto.Secondary]); diff != "" {
		t.Errorf("installed key (-want +got):\n%s", diff)
	}
	first := d.peers[0].keys[crypto.Primary]
	succeed("KEY_SWAP", ask(uapi.CmdKeySwap, fnest(uapi.AttrKeyconf, f32(uapi.KeyPeerID, 5))))
	if diff := cmp.Diff([2]crypto.KeyConfig{want, first}, d.peers[0].keys); diff != "" {
		t.Errorf("keys after KEY_SWAP (-want +got):\n%s", diff)
	}
	del := ask(uapi.CmdKeyDel, fnest(uapi.AttrKeyconf, f32(uapi.KeyPeerID, 5), f32(uapi.KeySlot, 0)))
	succeed("KEY_DEL", del)
	succeed("KEY_DEL of an empty slot", del)
	if diff := cmp.Diff([2]crypto.KeyConfig{{}, first}, d.peers[0].keys); diff != "" {
		t.Errorf("keys after KEY_DEL (-want +got):\n%s", diff)
	}
}
