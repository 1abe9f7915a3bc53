package datapath

import (
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"ovpn-go/crypto"
	"ovpn-go/peers"
)

// A machine that is suspended stops every clock but CLOCK_BOOTTIME, and a timer on that which has run out expires when the machine wakes. A test
// can't suspend it, nor set that clock. But the system calls of a refusing test's child are its parent's to answer, who adds the time asleep to what the child
// reads, and takes it from the deadlines that the child sets.

// bootTime answers the calls that are about the boot time of a child that has slept. It reports false if the kernel is to carry out the call.
func (j *judge) bootTime(n notification) (done bool, err error) {
	j.mu.Lock()
	asleep := j.asleep
	j.mu.Unlock()
	if asleep == 0 {
		return false, nil
	}
	switch {
	case n.nr == unix.SYS_CLOCK_GETTIME && n.args[0] == unix.CLOCK_BOOTTIME:
		now := unix.Timespec{}
		if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
			return false, err
		}
		now.Sec += asleep
		return true, n.memory(unix.ProcessVMWritev, n.args[1], unsafe.Slice((*byte)(unsafe.Pointer(&now)), unsafe.Sizeof(now)))
	case n.nr == unix.SYS_TIMERFD_SETTIME && n.args[1]&unix.TFD_TIMER_ABSTIME != 0:
		spec := unix.ItimerSpec{}
		b := unsafe.Slice((*byte)(unsafe.Pointer(&spec)), unsafe.Sizeof(spec))
		if err := n.memory(unix.ProcessVMReadv, n.args[2], b); err != nil || spec.Value == (unix.Timespec{}) {
			return false, err
		}
		spec.Value.Sec = max(spec.Value.Sec-asleep, 1)
		return false, n.memory(unix.ProcessVMWritev, n.args[2], b)
	}
	return false, nil
}

// memory copies b from or to the memory of who makes a call.
func (n *notification) memory(copy func(int, []unix.Iovec, []unix.RemoteIovec, uint) (int, error), address uint64, b []byte) error {
	local := []unix.Iovec{{Base: &b[0], Len: uint64(len(b))}}
	_, err := copy(int(n.tid), local, []unix.RemoteIovec{{Base: uintptr(address), Len: len(b)}}, 0)
	return err
}

// suspend lets the process wake from so many seconds of sleep.
func suspend(t *testing.T, seconds int64, devices ...*end) {
	t.Helper()
	refusal{asleep: seconds}.refuse(t)
	// All is frozen for a while before the other clocks stop, and after they go again.
	time.Sleep(2 * time.Duration(bootReread))
	for _, d := range devices {
		d.exclusively(func() {
			for _, w := range d.workers {
				spec := unix.ItimerSpec{Value: unix.Timespec{Sec: w.armed}}
				if err := unix.TimerfdSettime(w.timer, unix.TFD_TIMER_ABSTIME, &spec, nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// When a machine wakes, the time that it was asleep counts: for who has been silent, who is owed a keepalive and how old things are. What happens then
// happens once, and the tunnel goes on.
func TestSuspend(t *testing.T) { runRefusing(t, "TestSuspendChild") }

func TestSuspendChild(t *testing.T) {
	startRefusing(t)
	const night = 8 * 3600
	keepalives := func(e *end) uint64 { s := e.Peers()[0].Stats; return s.LinkTxPackets - s.VPNTxPackets }
	for _, row := range []struct {
		rule      string
		keepalive peers.Keepalive
		expires   bool
		sent      uint64 // keepalives
	}{
		{"a peer whose time is up expires at once", peers.Keepalive{Interval: 600, Timeout: 3600}, true, 0},
		{"also if it was to get no keepalive yet", peers.Keepalive{Interval: 86400, Timeout: 3600}, true, 0},
		{"one that is owed many keepalives gets one", peers.Keepalive{Interval: 600, Timeout: 86400}, false, 1},
		{"one with time left stays, and gets none", peers.Keepalive{Interval: 43200, Timeout: 86400}, false, 0},
		{"one without a time limit stays", peers.Keepalive{}, false, 0},
	} {
		t.Run(row.rule, func(t *testing.T) {
			a, b := newTunnel(t)
			requireTraffic(t, a, b)
			if err := a.SetPeer(1, PeerUpdate{Keepalive: &row.keepalive}); err != nil {
				t.Fatal(err)
			}
			suspend(t, night, a, b)
			if row.expires {
				if ev := a.event(t); ev.Kind != PeerDeleted || ev.Reason != peers.Expired {
					t.Errorf("event %+v", ev)
				}
				if n := b.Peers()[0].Stats; n.LinkRxPackets != n.VPNRxPackets {
					t.Errorf("it got a keepalive before: %+v", n)
				}
				return
			}
			key, err := a.Key(1, crypto.Primary)
			if silence := a.Peers()[0].Silence; err != nil || !aboutAsOld(silence, night) || !aboutAsOld(key.Age, night) {
				t.Errorf("silent for %v, a key of %v (%v)", silence, key.Age, err)
			}
			eventually(t, "the keepalives that are due are sent", func() bool { return keepalives(a) >= row.sent })
			requireTraffic(t, a, b)
			if got := keepalives(a); got != row.sent {
				t.Errorf("%d keepalives, want %d", got, row.sent)
			}
			if silence := a.Peers()[0].Silence; !aboutAsOld(silence, 0) {
				t.Errorf("silent for %v although it was just heard", silence)
			}
			// The time until the next deadline begins anew.
			suspend(t, 1, a, b)
			requireTraffic(t, a, b)
			if got := keepalives(a); got != row.sent {
				t.Errorf("%d keepalives a moment later, want %d", got, row.sent)
			}
			a.noEvent(t)
			b.noEvent(t)
		})
	}
	t.Run("one that is owed many and has no key is tried once", func(t *testing.T) {
		a, b := newTunnel(t)
		if err := a.SetPeer(1, PeerUpdate{Keepalive: &peers.Keepalive{Interval: 600, Timeout: 86400}}); err != nil {
			t.Fatal(err)
		}
		if err := a.SwapKeys(1); err != nil { // it still opens packets
			t.Fatal(err)
		}
		suspend(t, night, a, b)
		a.waitDrops(t, DropNoKey, 1)
		b.send(t, udp4("10.8.0.2", "10.8.0.1", "another turn"))
		a.receive(t)
		if n := a.Stats().Drops[DropNoKey.String()]; n != 1 {
			t.Errorf("%d keepalives found no key, want 1", n)
		}
	})
}

// aboutAsOld reports whether an age is so many seconds, and those that the test may take.
func aboutAsOld(age time.Duration, seconds int64) bool {
	d := age - time.Duration(seconds)*time.Second
	return d >= 0 && d < 5*time.Minute
}
