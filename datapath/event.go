package datapath

import (
	"net/netip"
	"sync"

	"ovpn-go/peers"
	"ovpn-go/tun/netns"
)

// EventKind says what happened to a peer.
type EventKind uint8

const (
	// PeerDeleted: the peer has left the device, for Event.Reason.
	PeerDeleted EventKind = iota + 1
	// PeerFloated: an authenticated packet came from a new address, now Event.Remote.
	PeerFloated
	// KeyExhausted: the packet ids of key Event.KeyID are used up and the key was removed.
	KeyExhausted
)

// Event is something that a controller is told without having asked.
type Event struct {
	Kind    EventKind
	Ifindex int      // of the device, in the device's network namespace
	NetNS   netns.ID // of the peer's transport socket: the namespace in which the kernel multicasts
	PeerID  uint32
	Reason  peers.DelReason // PeerDeleted only
	Remote  netip.AddrPort  // PeerFloated only; unmapped, no zone
	ScopeID uint32          // PeerFloated only, IPv6 link-local only
	KeyID   uint8           // KeyExhausted only
}

// maxQueuedEvents is how many events may wait for a controller. Floats beyond it are dropped, as the kernel's
// multicast drops what a listener does not read: of all events only they can be had in any number, by a peer
// that sends from two addresses in turn.
const maxQueuedEvents = 4096

// events hands a device's events to its controller in order, from a goroutine of its own, so that
// the worker never waits for a controller.
type events struct {
	notify func(Event)

	mu      sync.Mutex
	changed sync.Cond
	queue   []Event // guarded by mu
	pushed  uint64  // guarded by mu: events ever queued
	told    uint64  // guarded by mu: of these, those that notify has returned from
	closed  bool    // guarded by mu
	done    chan struct{}
}

func newEvents(notify func(Event)) *events {
	e := &events{notify: notify, done: make(chan struct{})}
	e.changed.L = &e.mu
	go e.run()
	return e
}

// push queues ev. It never blocks on the controller.
func (e *events) push(ev Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if ev.Kind == PeerFloated && len(e.queue) >= maxQueuedEvents {
		return
	}
	e.queue = append(e.queue, ev)
	e.pushed++
	e.changed.Broadcast()
}

// drain returns when the controller has been told of every event pushed before the call.
func (e *events) drain() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for last := e.pushed; e.told < last; {
		e.changed.Wait()
	}
}

// close ends the goroutine once the queue is empty.
func (e *events) close() {
	e.mu.Lock()
	e.closed = true
	e.changed.Broadcast()
	e.mu.Unlock()
	<-e.done
}

func (e *events) run() {
	defer close(e.done)
	for {
		e.mu.Lock()
		for len(e.queue) == 0 && !e.closed {
			e.changed.Wait()
		}
		batch := e.queue
		e.queue = nil
		e.mu.Unlock()
		if len(batch) == 0 {
			return
		}
		for _, ev := range batch {
			e.notify(ev)
			e.mu.Lock()
			e.told++
			e.changed.Broadcast()
			e.mu.Unlock()
		}
	}
}
