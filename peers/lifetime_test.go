package peers_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ovpn-go/peers"
)

// plainLifetimes is the kernel's keepalive worker as its rules are written down: one wake-up time
// for all, and at each wake-up a look at every peer.
type plainLifetimes struct {
	peers  []*plainLifetime
	wake   int64
	asleep bool
}

type plainLifetime struct {
	id                     uint32
	interval, timeout      int64
	lastSent, lastReceived int64
	nextSend               int64
}

func (l *plainLifetimes) set(id uint32, k peers.Keepalive, now int64, ping, expire func(uint32)) {
	l.forget(id)
	l.peers = append(l.peers, &plainLifetime{
		id: id, interval: int64(k.Interval), timeout: int64(k.Timeout), lastSent: now, lastReceived: now,
	})
	l.work(now, ping, expire)
}

func (l *plainLifetimes) forget(id uint32) {
	l.peers = slices.DeleteFunc(l.peers, func(p *plainLifetime) bool { return p.id == id })
}

func (l *plainLifetimes) of(id uint32) *plainLifetime {
	for _, p := range l.peers {
		if p.id == id {
			return p
		}
	}
	return nil
}

// due returns when something will happen if nobody talks until then.
func (l *plainLifetimes) due() (at int64, ok bool) {
	for _, p := range l.peers {
		if p.interval == 0 || p.timeout == 0 {
			continue
		}
		next := min(max(p.nextSend, p.lastSent+p.interval), p.lastReceived+p.timeout)
		if !ok || next < at {
			at, ok = next, true
		}
	}
	return at, ok
}

func (l *plainLifetimes) advance(now int64, ping, expire func(uint32)) {
	if !l.asleep && now >= l.wake {
		l.work(now, ping, expire)
	}
}

func (l *plainLifetimes) work(now int64, ping, expire func(uint32)) {
	var deadlines []int64
	for _, p := range slices.Clone(l.peers) {
		if p.interval == 0 || p.timeout == 0 {
			continue
		}
		if now-p.lastReceived >= p.timeout {
			l.forget(p.id)
			expire(p.id)
			continue
		}
		switch {
		case now-p.lastSent < p.interval:
			p.nextSend = p.lastSent + p.interval
		case p.nextSend <= now:
			p.nextSend = now + p.interval
			ping(p.id)
		}
		deadlines = append(deadlines, p.nextSend, p.lastReceived+p.timeout)
	}
	l.asleep = len(deadlines) == 0
	if !l.asleep {
		l.wake = slices.Min(deadlines)
	}
}

// TestLifetimesLikePlain lets peers with all kinds of settings talk, fall silent, lose their keys
// and change settings, while time goes on by seconds and sometimes jumps.
func TestLifetimesLikePlain(t *testing.T) {
	rng := newRand(t)
	for round := range 40 {
		fast, slow := peers.NewLifetimes(), &plainLifetimes{asleep: true}
		all := map[uint32]*peers.Peer{}
		keyless := map[uint32]bool{}
		now := int64(rng.IntN(1000))

		// A keepalive that can be sent counts as sent, at once.
		var got, want []string
		fastPing := func(p *peers.Peer) {
			got = append(got, fmt.Sprintf("%d ping %d", now, p.ID()))
			if !keyless[p.ID()] {
				p.MarkSent(now)
			}
		}
		fastExpire := func(p *peers.Peer) { got = append(got, fmt.Sprintf("%d expire %d", now, p.ID())) }
		slowPing := func(id uint32) {
			want = append(want, fmt.Sprintf("%d ping %d", now, id))
			if !keyless[id] {
				slow.of(id).lastSent = now
			}
		}
		slowExpire := func(id uint32) { want = append(want, fmt.Sprintf("%d expire %d", now, id)) }

		for step := range 2000 {
			id := rng.Uint32N(12)
			p := all[id]
			s := slow.of(id)
			switch rng.IntN(12) {
			case 0:
				if p == nil {
					p = peers.New(peers.Config{ID: id})
					all[id] = p
				}
				k := peers.Keepalive{Interval: rng.Uint32N(8), Timeout: rng.Uint32N(12)}
				fast.Set(p, k, now)
				slow.set(id, k, now, slowPing, slowExpire)
				// Setting one runs the worker for all.
				fast.Advance(now, fastExpire, fastPing)
				if p.Keepalive() != k || p.LastSent() != now && !keyless[id] || p.LastReceived() != now {
					t.Fatalf("Set left %v, sent %d, received %d", p.Keepalive(), p.LastSent(), p.LastReceived())
				}
			case 1:
				if p != nil && rng.IntN(4) == 0 {
					fast.Forget(p)
					slow.forget(id)
				}
			case 2:
				keyless[id] = rng.IntN(3) == 0
			case 3, 4:
				if s != nil {
					p.MarkSent(now)
					s.lastSent = now
				}
			case 5, 6, 7:
				if s != nil {
					p.MarkReceived(now)
					s.lastReceived = now
				}
			case 8:
				if rng.IntN(20) == 0 {
					now += int64(rng.IntN(30))
				}
			default:
				now++
			}
			fast.Advance(now, fastExpire, fastPing)
			slow.advance(now, slowPing, slowExpire)
			slices.Sort(got)
			slices.Sort(want)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("round %d, step %d (-want +got):\n%s", round, step, diff)
			}
			got, want = nil, nil
			next, ok := fast.Next()
			if ok && next <= now {
				t.Fatalf("round %d, step %d: at %d, Next is %d", round, step, now, next)
			}
			if due, on := slow.due(); ok != on || next > due {
				t.Fatalf("round %d, step %d: Next is %d, %v; want at most %d, %v", round, step, next, ok, due, on)
			}
		}
	}
}

func TestLifetimeRules(t *testing.T) {
	type event struct {
		At   int64
		What string
	}
	// run advances one peer second by second and notes what happens.
	run := func(k peers.Keepalive, until int64, each func(now int64, p *peers.Peer), ping func(now int64, p *peers.Peer)) []event {
		var events []event
		l, p := peers.NewLifetimes(), peers.New(peers.Config{ID: 1})
		l.Set(p, k, 100)
		for now := int64(100); now <= until; now++ {
			l.Advance(now,
				func(*peers.Peer) { events = append(events, event{now, "expire"}) },
				func(p *peers.Peer) {
					events = append(events, event{now, "ping"})
					ping(now, p)
				})
			each(now, p)
		}
		return events
	}
	nothing := func(int64, *peers.Peer) {}
	sent := func(now int64, p *peers.Peer) { p.MarkSent(now) }
	received := func(now int64, p *peers.Peer) { p.MarkReceived(now) }

	for _, c := range []struct {
		name       string
		keepalive  peers.Keepalive
		until      int64
		each, ping func(int64, *peers.Peer)
		want       []event
	}{
		{"silence: keepalives until it expires", peers.Keepalive{Interval: 4, Timeout: 10}, 130, nothing, sent,
			[]event{{104, "ping"}, {108, "ping"}, {110, "expire"}}},
		{"interval above timeout is accepted", peers.Keepalive{Interval: 10, Timeout: 4}, 130, nothing, sent,
			[]event{{104, "expire"}}},
		{"expiry goes before a keepalive at the same time", peers.Keepalive{Interval: 5, Timeout: 5}, 130, nothing, sent,
			[]event{{105, "expire"}}},
		{"receiving keeps it alive, and does not count as sending", peers.Keepalive{Interval: 10, Timeout: 5}, 125, received, sent,
			[]event{{110, "ping"}, {120, "ping"}}},
		{"sending puts the keepalive off", peers.Keepalive{Interval: 5, Timeout: 20}, 130, sent, sent,
			[]event{{120, "expire"}}},
		{"a keepalive that fails is tried again an interval later", peers.Keepalive{Interval: 5, Timeout: 12}, 130, nothing, nothing,
			[]event{{105, "ping"}, {110, "ping"}, {112, "expire"}}},
		{"interval alone does nothing", peers.Keepalive{Interval: 5}, 200, nothing, sent, nil},
		{"timeout alone does nothing", peers.Keepalive{Timeout: 5}, 200, nothing, sent, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, run(c.keepalive, c.until, c.each, c.ping)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestTurningKeepaliveOff(t *testing.T) {
	l, p := peers.NewLifetimes(), peers.New(peers.Config{ID: 1})
	l.Forget(p)
	l.Set(p, peers.Keepalive{Interval: 1, Timeout: 2}, 10)
	if next, ok := l.Next(); next != 11 || !ok || !l.Has(p) {
		t.Errorf("Next is %d, %v; want 11", next, ok)
	}
	l.Set(p, peers.Keepalive{}, 12)
	if _, ok := l.Next(); ok || l.Has(p) {
		t.Error("there is still something to do")
	}
	if p.LastSent() != 12 || p.LastReceived() != 12 {
		t.Error("turning keepalive off did not restart the timers")
	}
	l.Forget(p)
	l.Advance(1000, func(*peers.Peer) { t.Error("expired") }, func(*peers.Peer) { t.Error("ping") })
}

// TestCallbacksMayForget has every callback forget peers, its own and others.
func TestCallbacksMayForget(t *testing.T) {
	rng := newRand(t)
	l := peers.NewLifetimes()
	var all []*peers.Peer
	for id := range uint32(200) {
		p := peers.New(peers.Config{ID: id})
		all = append(all, p)
		l.Set(p, peers.Keepalive{Interval: 1 + rng.Uint32N(9), Timeout: 5 + rng.Uint32N(20)}, 0)
	}
	forgotten := map[*peers.Peer]bool{}
	forgetSome := func(p *peers.Peer) {
		if forgotten[p] {
			t.Errorf("peer %d came up after it was forgotten", p.ID())
		}
		for range rng.IntN(3) {
			other := all[rng.IntN(len(all))]
			l.Forget(other)
			forgotten[other] = true
		}
	}
	for now := range int64(40) {
		l.Advance(now, func(p *peers.Peer) { forgetSome(p); forgotten[p] = true }, forgetSome)
	}
	if _, ok := l.Next(); ok || len(forgotten) != len(all) {
		t.Errorf("%d of %d peers are gone", len(forgotten), len(all))
	}
}

// TestLastSeen: a new setting restarts the timers, but a peer was last seen when it last sent something.
func TestLastSeen(t *testing.T) {
	p, l := peers.New(peers.Config{ID: 1}), peers.NewLifetimes()
	l.Set(p, peers.Keepalive{Interval: 5, Timeout: 20}, 100)
	if got := p.LastSeen(); got != 0 {
		t.Errorf("a peer that was not heard yet was seen at %d", got)
	}
	p.MarkReceived(100) // in the second of the setting
	if seen, received := p.LastSeen(), p.LastReceived(); seen != 100 || received != 100 {
		t.Errorf("seen at %d, timer from %d, want 100", seen, received)
	}
	l.Set(p, peers.Keepalive{Interval: 5, Timeout: 20}, 110)
	if seen, received := p.LastSeen(), p.LastReceived(); seen != 100 || received != 110 {
		t.Errorf("seen at %d, timer from %d, want 100 and 110", seen, received)
	}
}
