package peers

// transports finds peers by transport address. Nothing keeps two peers from having the same one:
// then the one that was added last is found, and after it is gone the one before.
//
// get takes no lock and may be called at any time; the other methods are serialised by the caller.
// The zero value is empty.
type transports struct {
	newest index[transportKey]
}

// transportLinks chains the peers that share a transport address.
type transportLinks struct{ newer, older *Peer }

func (t *transports) get(key transportKey) *Peer { return t.newest.get(key) }

// put adds a peer as the newest under key.
func (t *transports) put(key transportKey, p *Peer) {
	older := t.newest.get(key)
	p.sameRemote = transportLinks{older: older}
	if older != nil {
		older.sameRemote.newer = p
	}
	t.newest.put(key, p)
}

// del takes away a peer that was put under key.
func (t *transports) del(key transportKey, p *Peer) {
	links := p.sameRemote
	p.sameRemote = transportLinks{}
	if links.older != nil {
		links.older.sameRemote.newer = links.newer
	}
	switch {
	case links.newer != nil:
		links.newer.sameRemote.older = links.older
	case links.older != nil:
		t.newest.put(key, links.older)
	default:
		t.newest.del(key)
	}
}

// move takes a peer from one binding to another, either of which may be nil.
func (t *transports) move(p *Peer, from, to *Binding) {
	stays := from != nil && to != nil && keyOf(from.Remote) == keyOf(to.Remote)
	if stays && p.sameRemote.newer == nil {
		return // it is the one that is found, and lookups should find it throughout
	}
	if from != nil {
		t.del(keyOf(from.Remote), p)
	}
	if to != nil {
		t.put(keyOf(to.Remote), p)
	}
}
