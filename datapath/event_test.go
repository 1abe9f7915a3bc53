package datapath

import (
	"testing"
	"time"
)

// Events that keep coming, as floats may, must not keep drain from returning, nor pile up.
func TestEventsDrainUnderAStorm(t *testing.T) {
	// Slower than they come: there is always one waiting.
	e := newEvents(func(Event) { time.Sleep(time.Microsecond) })
	stop := make(chan struct{})
	storm := make(chan struct{})
	go func() {
		defer close(storm)
		for {
			select {
			case <-stop:
				return
			default:
				for range 100 {
					e.push(Event{Kind: PeerFloated})
				}
				time.Sleep(time.Microsecond) // a worker does other things too
			}
		}
	}()
	for range 3 {
		e.push(Event{Kind: PeerDeleted})
		e.drain()
		e.mu.Lock()
		queued := len(e.queue)
		e.mu.Unlock()
		if queued > maxQueuedEvents+1 {
			t.Errorf("%d events queued, want at most %d", queued, maxQueuedEvents)
		}
	}
	close(stop)
	<-storm
	e.close()
}

func TestEventsAreToldInOrderAndAllBeforeClose(t *testing.T) {
	var got []uint32
	e := newEvents(func(ev Event) { got = append(got, ev.PeerID) })
	const n = 1000
	for id := range uint32(n) {
		e.push(Event{Kind: PeerDeleted, PeerID: id})
	}
	e.close()
	if len(got) != n {
		t.Fatalf("%d events told, want %d", len(got), n)
	}
	for i, id := range got {
		if id != uint32(i) {
			t.Fatalf("event %d is about peer %d", i, id)
		}
	}
}
