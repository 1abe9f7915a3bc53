package peers

import (
	"sync/atomic"

	"ovpn-go/crypto"
)

const (
	leafBits = 8
	leafSize = 1 << leafBits
	rootSize = (crypto.MaxPeerID + 1) / leafSize
)

// ids finds peers by their 24-bit id: an array of arrays, of which only those in use exist. Ids
// are normally given out from 0 upwards; spread ones cost 2 KiB each.
//
// get may be called at any time; the other methods are serialised by the caller. The zero value is
// empty. It is 512 KiB, which a machine only backs where it is used.
type ids [rootSize]atomic.Pointer[leaf]

type leaf struct {
	peers [leafSize]atomic.Pointer[Peer]
	used  int
}

func (t *ids) get(id uint32) *Peer {
	if id > crypto.MaxPeerID {
		return nil
	}
	leaf := t[id>>leafBits].Load()
	if leaf == nil {
		return nil
	}
	return leaf.peers[id%leafSize].Load()
}

// put adds a peer under an id that is free.
func (t *ids) put(id uint32, p *Peer) {
	at := &t[id>>leafBits]
	l := at.Load()
	if l == nil {
		l = new(leaf)
		at.Store(l)
	}
	l.peers[id%leafSize].Store(p)
	l.used++
}

// del takes a peer away. A leaf that becomes empty goes too, so that ids which wander over the
// whole range do not leave it allocated.
func (t *ids) del(id uint32) {
	at := &t[id>>leafBits]
	l := at.Load()
	l.peers[id%leafSize].Store(nil)
	l.used--
	if l.used == 0 {
		at.Store(nil)
	}
}
