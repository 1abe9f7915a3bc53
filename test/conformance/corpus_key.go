package conformance

import "fmt"

func direction(kind uint16, keyLength int) attr {
	return nest(kind, bytesOf(dirKey, keyLength), bytesOf(dirTail, 8))
}

func key(peer, slot, id, cipher uint32, encrypt, decrypt int) attr {
	return keyconf(u32(keyPeerID, peer), u32(keySlot, slot), u32(keyID, id), u32(keyCipher, cipher),
		direction(keyEncrypt, encrypt), direction(keyDecrypt, decrypt))
}

func (w *writer) installKey(device string, peer, slot, id, cipher uint32, encrypt, decrypt int) {
	w.on(device, fmt.Sprintf("KEY_NEW peer %d slot %d key id %d cipher %d of %d and %d bytes", peer, slot, id, cipher, encrypt, decrypt),
		keyNew, key(peer, slot, id, cipher, encrypt, decrypt))
}

func (w *writer) getKey(device string, peer, slot uint32) {
	w.on(device, fmt.Sprintf("KEY_GET peer %d slot %d", peer, slot), keyGet, keyconf(u32(keyPeerID, peer), u32(keySlot, slot)))
}

func (w *writer) swapKeys(device string, peer uint32) {
	w.on(device, fmt.Sprintf("KEY_SWAP peer %d", peer), keySwap, keyconf(u32(keyPeerID, peer)))
}

func (w *writer) deleteKey(device string, peer, slot uint32) {
	w.on(device, fmt.Sprintf("KEY_DEL peer %d slot %d", peer, slot), keyDel, keyconf(u32(keyPeerID, peer), u32(keySlot, slot)))
}

// keySequences are about keys, on devices of either mode.
func keySequences(p profile) []*writer {
	var all []*writer
	for _, mode := range []uint8{modeP2P, modeMP} {
		w := newSequence([]string{"keys in P2P mode", "keys in MP mode"}[mode], p)
		w.link("tun0", mode)
		w.socket("udp4", "udp", 6100)
		var vpn []attr
		if mode == modeMP {
			vpn = []attr{addr(peerVPN4, "10.8.0.1")}
		}
		w.noPeer()
		w.udpPeer("tun0", "udp", 1, vpn...)
		w.incomplete()
		w.keyLengths()
		w.slots()
		all = append(all, w)
	}
	return all
}

// noPeer is what is found before there is a peer.
func (w *writer) noPeer() {
	w.installKey("tun0", 1, 0, 0, 1, 32, 32)
	w.installKey("tun0", 1, 0, 0, 1, 31, 32)
	w.installKey("tun0", 1, 0, 0, 0, 32, 32)
	w.getKey("tun0", 1, 0)
	w.swapKeys("tun0", 1)
	w.deleteKey("tun0", 1, 0)
}

// incomplete leaves out each attribute of each request (K1, K2 and K4).
func (w *writer) incomplete() {
	for _, op := range operations[4:] {
		w.on("tun0", "no keyconf: "+op.name, op.cmd)
		w.on("tun0", "empty keyconf: "+op.name, op.cmd, keyconf())
	}
	full := key(1, 0, 0, 1, 32, 32).kids
	for i := range full {
		kids := append(append([]attr(nil), full[:i]...), full[i+1:]...)
		w.on("tun0", fmt.Sprintf("K2: without %d", full[i].kind), keyNew, keyconf(kids...))
		w.on("tun0", fmt.Sprintf("K2: only the first %d", i), keyNew, keyconf(full[:i]...))
		w.on("tun0", fmt.Sprintf("K2: only the last %d", len(full)-i-1), keyNew, keyconf(full[i+1:]...))
	}
	w.on("tun0", "KEY_GET without slot", keyGet, keyconf(u32(keyPeerID, 1)))
	w.on("tun0", "KEY_GET without peer", keyGet, keyconf(u32(keySlot, 1)))
	w.on("tun0", "KEY_DEL without slot", keyDel, keyconf(u32(keyPeerID, 1)))
	w.on("tun0", "KEY_DEL without peer", keyDel, keyconf(u32(keySlot, 1)))
	for _, extra := range []attr{u32(keyID, 1), u32(keyCipher, 1)} {
		w.on("tun0", fmt.Sprintf("KEY_GET with %d", extra.kind), keyGet, keyconf(u32(keyPeerID, 1), u32(keySlot, 0), extra))
		w.on("tun0", fmt.Sprintf("KEY_GET of an unknown peer with %d", extra.kind), keyGet, keyconf(u32(keyPeerID, 9), u32(keySlot, 0), extra))
	}
	tail, material := bytesOf(dirTail, 8), bytesOf(dirKey, 32)
	for _, c := range []struct {
		name             string
		encrypt, decrypt attr
	}{
		{"encrypt without key", nest(keyEncrypt, tail), direction(keyDecrypt, 32)},
		{"encrypt without tail", nest(keyEncrypt, material), direction(keyDecrypt, 32)},
		{"encrypt empty", nest(keyEncrypt), direction(keyDecrypt, 32)},
		{"decrypt without key", direction(keyEncrypt, 32), nest(keyDecrypt, tail)},
		{"decrypt without tail", direction(keyEncrypt, 32), nest(keyDecrypt, material)},
		{"decrypt empty", direction(keyEncrypt, 32), nest(keyDecrypt)},
		{"both without tail", nest(keyEncrypt, material), nest(keyDecrypt, material)},
		{"tail before the key", nest(keyEncrypt, tail, material), direction(keyDecrypt, 32)},
		{"the last of two keys counts", nest(keyEncrypt, bytesOf(dirKey, 5), material, tail), direction(keyDecrypt, 32)},
		{"the last of two keys is bad", nest(keyEncrypt, material, bytesOf(dirKey, 5), tail), direction(keyDecrypt, 32)},
	} {
		for _, cipher := range []uint32{0, 1} {
			w.on("tun0", fmt.Sprintf("K3/K4, cipher %d: %s", cipher, c.name), keyNew,
				keyconf(u32(keyPeerID, 1), u32(keySlot, 1), u32(keyID, 0), u32(keyCipher, cipher), c.encrypt, c.decrypt))
		}
	}
}

// keyLengths tries lengths with ciphers (K3, K5 and K6).
func (w *writer) keyLengths() {
	for cipher := range uint32(3) {
		for _, n := range []int{0, 1, 15, 16, 17, 24, 31, 32, 33, 64, 256} {
			w.installKey("tun0", 1, 0, 1, cipher, n, n)
			w.getKey("tun0", 1, 0)
		}
		for _, n := range []int{16, 24, 32, 31} {
			w.installKey("tun0", 1, 1, 2, cipher, n, 32)
			w.installKey("tun0", 1, 1, 3, cipher, 32, n)
			w.getKey("tun0", 1, 1)
		}
		w.installKey("tun0", 9, 0, 0, cipher, 5, 5)
	}
}

// slots moves keys about.
func (w *writer) slots() {
	look := func() {
		w.getKey("tun0", 1, 0)
		w.getKey("tun0", 1, 1)
	}
	for _, slot := range []uint32{0, 1} {
		w.deleteKey("tun0", 1, slot)
		w.deleteKey("tun0", 1, slot)
	}
	w.swapKeys("tun0", 1)
	look()
	for id := range uint32(8) {
		w.installKey("tun0", 1, id%2, id, 1+id%2, 32, 32)
		look()
		w.swapKeys("tun0", 1)
		look()
	}
	w.deleteKey("tun0", 1, 0)
	look()
	w.swapKeys("tun0", 1)
	look()
	w.deleteKey("tun0", 1, 0)
	w.deleteKey("tun0", 1, 1)
	look()
	w.installKey("tun0", 1, 0, 3, 1, 16, 16)
	w.installKey("tun0", 1, 1, 3, 2, 32, 32)
	look()
	w.swapKeys("tun0", 9)
	w.deleteKey("tun0", 9, 1)
	w.getKey("tun0", 9, 1)
	w.on("tun0", "delete the peer", peerDel, peer(u32(peerID, 1)))
	look()
}
