package netlinksrv

import (
	"errors"

	"golang.org/x/sys/unix"

	"ovpn-go/crypto"
	"ovpn-go/datapath"
	"ovpn-go/netlinksrv/uapi"
	"ovpn-go/peers"
)

// newKey is KEY_NEW.
func newKey(r *request) ([]byte, error) {
	id, slot := r.inner.u32(uapi.KeyPeerID), crypto.Slot(r.inner.u32(uapi.KeySlot))
	cfg := crypto.KeyConfig{ID: uint8(r.inner.u32(uapi.KeyKeyID)), Cipher: crypto.Cipher(r.inner.u32(uapi.KeyCipher))}
	// K3
	if cfg.Cipher == crypto.CipherNone {
		return nil, refuse(unix.EINVAL, "unsupported cipher")
	}
	// K4
	for _, dir := range []struct {
		number uint16
		to     *crypto.Direction
	}{
		{uapi.KeyEncryptDir, &cfg.Encrypt},
		{uapi.KeyDecryptDir, &cfg.Decrypt},
	} {
		nest := r.inner.inside(dir.number)
		for _, number := range []uint16{uapi.DirCipherKey, uapi.DirNonceTail} {
			if !nest.has(number) {
				return nil, missing(&nest, number)
			}
		}
		dir.to.Key = nest.get(uapi.DirCipherKey).payload
		dir.to.NonceTail = [crypto.NonceTailSize]byte(nest.get(uapi.DirNonceTail).payload)
	}
	err := r.device.InstallKey(id, slot, cfg)
	switch {
	case err == nil:
		return nil, nil
	case errors.Is(err, peers.ErrNotFound): // K5
		return nil, refuse(unix.ENOENT, "no peer with id %d to set key for", id)
	case errors.Is(err, crypto.ErrUnsupportedCipher): // K7
		return nil, refuse(unix.ENOENT, "cannot install new key for peer %d", id)
	case errors.Is(err, datapath.ErrDeviceGone):
		return nil, peerError(err, "", id)
	}
	// K6
	return nil, refuse(errnoOf(err, unix.EINVAL), "cannot install new key for peer %d", id)
}

// getKey is KEY_GET. No key material leaves the server.
func getKey(r *request) ([]byte, error) {
	id, slot := r.inner.u32(uapi.KeyPeerID), r.inner.u32(uapi.KeySlot)
	info, err := r.device.Key(id, crypto.Slot(slot))
	if errors.Is(err, datapath.ErrNoKey) {
		return nil, refuse(unix.ENOENT, "cannot extract key from slot %d for peer %d", slot, id)
	}
	if err != nil {
		return nil, peerError(err, "cannot find peer with id %d", id)
	}
	var b builder
	start := r.reply(&b, uapi.CmdKeyGet, 0)
	keyconf := b.nest(uapi.AttrKeyconf | unix.NLA_F_NESTED)
	b.u32(uapi.KeyPeerID, id)
	b.u32(uapi.KeySlot, slot)
	b.u32(uapi.KeyKeyID, uint32(info.ID))
	b.u32(uapi.KeyCipher, uint32(info.Cipher))
	b.endNest(keyconf)
	b.endMessage(start)
	return b.buf, nil
}

// swapKeys is KEY_SWAP, which succeeds whether or not there are keys.
func swapKeys(r *request) ([]byte, error) {
	id := r.inner.u32(uapi.KeyPeerID)
	return nil, peerError(r.device.SwapKeys(id), "no peer with id %d to swap keys for", id)
}

// deleteKey is KEY_DEL, which succeeds whether or not there is a key.
func deleteKey(r *request) ([]byte, error) {
	id, slot := r.inner.u32(uapi.KeyPeerID), crypto.Slot(r.inner.u32(uapi.KeySlot))
	return nil, peerError(r.device.DeleteKey(id, slot), "no peer with id %d to delete key for", id)
}
