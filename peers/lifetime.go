package peers

// Lifetimes decides when a peer gets a keepalive and when it has been silent for too long. It
// holds the peers whose keepalive is on in a heap, ordered by when each has to be looked at next.
//
// A look is cheap and traffic does not reorder the heap: a peer is looked at when it was due as of
// the last look, and if it has sent and received since then only its next due time is computed.
// So a peer costs at most a few looks per interval, however much it talks.
//
// All times are whole seconds of boot time. Lifetimes is not safe for concurrent use: it belongs to
// the one who also calls Advance. The peers' MarkSent and MarkReceived may be called by anyone.
type Lifetimes struct {
	heap []due // the children of i are 2i+1 and 2i+2, and not due before it
}

// due says when to look at a peer.
type due struct {
	at   int64
	peer *Peer
}

// lifetime is what Lifetimes notes about a peer.
type lifetime struct {
	position int   // in the heap, plus 1; 0: not there
	pingAt   int64 // no keepalive before this time
}

// NewLifetimes makes an empty schedule.
func NewLifetimes() *Lifetimes { return new(Lifetimes) }

// Set gives a peer another keepalive setting and restarts both of its timers, even if the setting
// is what it was. If it is not Enabled the peer is forgotten.
func (l *Lifetimes) Set(p *Peer, k Keepalive, now int64) {
	p.setKeepalive(k)
	p.lastSent.Store(now)
	p.lastReceived.Store(now)
	if !k.Enabled() {
		l.Forget(p)
		return
	}
	p.lifetime.pingAt = now + int64(k.Interval)
	l.schedule(p, min(p.lifetime.pingAt, now+int64(k.Timeout)))
}

// Forget ends the peer's keepalives and expiry. It is harmless if there are none.
func (l *Lifetimes) Forget(p *Peer) {
	i := p.lifetime.position - 1
	if i < 0 {
		return
	}
	p.lifetime.position = 0
	last := len(l.heap) - 1
	moved := l.heap[last]
	l.heap[last] = due{}
	l.heap = l.heap[:last]
	if i != last {
		l.settle(i, moved)
	}
}

// Has reports whether the peer is to be looked at.
func (l *Lifetimes) Has(p *Peer) bool { return p.lifetime.position != 0 }

// Next returns when Advance has something to do, if ever.
func (l *Lifetimes) Next() (deadline int64, ok bool) {
	if len(l.heap) == 0 {
		return 0, false
	}
	return l.heap[0].at, true
}

// Advance looks at every peer that is due. One that has received nothing for its timeout is
// forgotten and given to expire. Otherwise, one that has sent nothing for its interval is given to
// ping, which should send a keepalive; whether or not that works, ping gets it again an interval
// later at the earliest. Both functions may call Set and Forget, for any peer.
func (l *Lifetimes) Advance(now int64, expire, ping func(*Peer)) {
	for len(l.heap) > 0 && l.heap[0].at <= now {
		p := l.heap[0].peer
		k := p.Keepalive()
		expireAt := p.LastReceived() + int64(k.Timeout)
		if expireAt <= now {
			l.Forget(p)
			expire(p)
			continue
		}
		pings := false
		if sendBy := p.LastSent() + int64(k.Interval); sendBy > now {
			p.lifetime.pingAt = sendBy
		} else if p.lifetime.pingAt <= now {
			p.lifetime.pingAt = now + int64(k.Interval)
			pings = true
		}
		l.schedule(p, min(p.lifetime.pingAt, expireAt))
		if pings {
			ping(p)
		}
	}
}

// schedule says when to look at a peer next, whether or not it is in the heap.
func (l *Lifetimes) schedule(p *Peer, at int64) {
	if p.lifetime.position == 0 {
		l.heap = append(l.heap, due{})
		p.lifetime.position = len(l.heap)
	}
	l.settle(p.lifetime.position-1, due{at, p})
}

// settle puts d into the heap, starting at place i, which is free.
func (l *Lifetimes) settle(i int, d due) {
	for i > 0 {
		parent := (i - 1) / 2
		if l.heap[parent].at <= d.at {
			break
		}
		l.place(i, l.heap[parent])
		i = parent
	}
	for {
		child := 2*i + 1
		if child >= len(l.heap) {
			break
		}
		if other := child + 1; other < len(l.heap) && l.heap[other].at < l.heap[child].at {
			child = other
		}
		if d.at <= l.heap[child].at {
			break
		}
		l.place(i, l.heap[child])
		i = child
	}
	l.place(i, d)
}

func (l *Lifetimes) place(i int, d due) {
	l.heap[i] = d
	d.peer.lifetime.position = i + 1
}
