package datapath

import (
	"encoding/binary"
	"fmt"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/peers"
	"ovpn-go/tun"
)

// How much one turn may do before the other direction gets its chance: enough to fill batches, small
// enough to keep the idle direction's latency low.
const (
	readsPerTurn    = 64
	bytesPerTurn    = 256 << 10 // read from the interface
	receivesPerTurn = 16
)

// worker moves a device's packets: one goroutine, one epoll set, non-blocking raw system calls. It
// alternates between reading its TUN queue and its sockets until both are dry and then sleeps in
// epoll_wait.
//
// All of it belongs to its goroutine during a turn, and between turns to whoever holds Device.turns.
type worker struct {
	dev   *Device
	index int // in Device.workers
	queue *tun.Queue
	epfd  int
	wake  int // eventfd: there are no more turns
	timer int // timerfd on CLOCK_BOOTTIME: the earliest keepalive deadline

	sources    map[int32]*source // polled ones, by descriptor
	generation int32             // of the source polled last
	readable   []*source         // those of them that may hold something
	lifetimes  *peers.Lifetimes
	armed      int64 // deadline the timer is set to, boot-time seconds; 0: disarmed
	tx         transmitter
	rx         receiver
	tunReady   bool
	after      []func() // see later
	clock      clock
	pace       pace
	counters   workerCounters
}

// clock is the time of the current turn, read once per turn.
type clock struct {
	boot   int64 // CLOCK_BOOTTIME, whole seconds: keepalive and expiry, which suspend must not stop
	mono   int64 // monotonic nanoseconds: the replay window's floor
	reread int64 // value of mono from which on boot is read anew
}

// bootReread is how old, in nanoseconds awake, the boot time of a turn may be. Reading it takes a system call, which
// a lone packet would feel; the timer for a deadline has it read at once, so that only seconds begin late. Suspending a machine and
// waking it takes far longer, with this process frozen and the clock still going, so the first turn afterwards reads it too.
const bootReread = int64(50 * time.Millisecond)

var started = time.Now()

func (c *clock) read() {
	c.mono = monotonic()
	if c.mono >= c.reread {
		c.boot = bootSeconds()
		c.reread = c.mono + bootReread
	}
}

// monotonic returns nanoseconds that are never near zero: the replay window's expiry starts in the past.
func monotonic() int64 { return int64(time.Since(started)) + int64(time.Hour) }

func bootSeconds() int64 {
	var ts unix.Timespec
	// Can't fail: the clock exists since Linux 2.6.39 and the pointer is good.
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	return ts.Sec
}

func newWorker(d *Device, index int, queue *tun.Queue) (*worker, error) {
	w := &worker{
		dev: d, index: index, queue: queue, epfd: -1, wake: -1, timer: -1,
		sources:   map[int32]*source{},
		lifetimes: peers.NewLifetimes(),
	}
	w.tx.init(w)
	w.rx.init(w)
	w.clock.read()
	var err error
	defer func() {
		if err != nil {
			w.closeDescriptors()
		}
	}()
	if w.epfd, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("create epoll set: %w", err)
	}
	if w.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, fmt.Errorf("create eventfd: %w", err)
	}
	if w.timer, err = unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK); err != nil {
		return nil, fmt.Errorf("create timer: %w", err)
	}
	for fd, events := range map[int]uint32{
		w.wake:     unix.EPOLLIN,
		w.timer:    unix.EPOLLIN,
		queue.FD(): unix.EPOLLIN | unix.EPOLLET,
	} {
		if err = w.epoll(unix.EPOLL_CTL_ADD, fd, events, 0); err != nil {
			return nil, fmt.Errorf("poll descriptor: %w", err)
		}
	}
	w.tunReady = true
	return w, nil
}

func (w *worker) closeDescriptors() {
	for _, fd := range []*int{&w.epfd, &w.wake, &w.timer} {
		if *fd >= 0 {
			unix.Close(*fd)
			*fd = -1
		}
	}
}

func (w *worker) epoll(op, fd int, events uint32, generation int32) error {
	return unix.EpollCtl(w.epfd, op, fd, &unix.EpollEvent{Events: events, Fd: int32(fd), Pad: generation})
}

// source is a descriptor that a worker receives from.
type source struct {
	fd       int
	drain    func() (more bool) // takes what is there, up to its share of a turn
	writable func()             // there is room again; nil if nobody waits for that
	events   uint32             // what epoll said last
	worker   *worker            // in whose epoll set it is; nil: in none
	// generation tells it from an earlier source with the same descriptor, whose events may still be in the
	// hands of a worker that is about to begin its turn.
	generation int32
	readable   bool // in the worker's list
}

// poll adds a source to the epoll set.
func (w *worker) poll(src *source, events uint32) error {
	if src.worker != nil {
		return nil
	}
	w.generation++
	if err := w.epoll(unix.EPOLL_CTL_ADD, src.fd, events|unix.EPOLLET, w.generation); err != nil {
		return fmt.Errorf("poll transport socket: %w", err)
	}
	// What is there already raises an event, too.
	src.worker, src.generation = w, w.generation
	w.sources[int32(src.fd)] = src
	return nil
}

func (w *worker) markReadable(src *source) {
	if !src.readable {
		src.readable = true
		w.readable = append(w.readable, src)
	}
}

// unpoll takes a source that is about to be closed from its worker.
func (src *source) unpoll() {
	w := src.worker
	if w == nil {
		return
	}
	src.worker = nil
	delete(w.sources, int32(src.fd))
	w.readable = slices.DeleteFunc(w.readable, func(s *source) bool { return s == src })
	// Explicit, as a duplicate in a process between fork and exec would keep it in the set.
	_ = w.epoll(unix.EPOLL_CTL_DEL, src.fd, 0, 0)
}

// later has fn run as soon as this turn and those of the other workers are over: what removes a peer or releases a
// socket can't be done while any worker may be using it. fn is dropped when the device is gone.
func (w *worker) later(fn func()) { w.after = append(w.after, fn) }

// run is the worker's goroutine. It ends when the device is stopped or the interface is gone.
func (w *worker) run() {
	events := make([]unix.EpollEvent, 32)
	for busy := true; ; {
		n := w.wait(events, busy)
		w.dev.turns.RLock()
		if w.dev.stopping {
			w.dev.turns.RUnlock()
			return
		}
		w.turn(events[:n])
		w.pace.end(w.counters.txPackets.Load() + w.counters.rxPackets.Load())
		busy = len(w.readable) > 0 || w.tunReady
		removals := len(w.after) > 0
		w.dev.turns.RUnlock()
		if removals {
			_ = w.dev.do(w.runAfter)
			busy = true // what came of it may be ready to be read
		}
	}
}

// turn takes what there is to take, up to its share. Nothing is kept for the next one: batches are sent, frames
// written and counters published.
func (w *worker) turn(events []unix.EpollEvent) {
	w.dispatch(events)
	w.clock.read()
	w.pace.begin(w.clock.mono)
	w.advance()
	if w.tunReady {
		w.tx.turn()
	}
	if w.rx.turn() {
		// The stack answers within the write: what it has to say is in the queue already.
		w.tunReady = true
		w.tx.turn()
	}
}

func (w *worker) runAfter() {
	for _, fn := range w.after {
		if !w.dev.stopping {
			fn()
		}
	}
	clear(w.after)
	w.after = w.after[:0]
}

// wait collects readiness and returns the number of events. With work in hand it only looks; otherwise it sleeps, but
// looks for a moment before that where packets come and go one at a time.
func (w *worker) wait(events []unix.EpollEvent, busy bool) int {
	if busy {
		return w.look(events)
	}
	if n := w.linger(events); n > 0 {
		return n
	}
	n, err := unix.EpollWait(w.epfd, events, -1)
	if err != nil {
		return 0 // EINTR: the next turn asks again
	}
	return n
}

// look returns what is ready now.
func (w *worker) look(events []unix.EpollEvent) int {
	n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(w.epfd),
		uintptr(ptr(&events[0])), uintptr(len(events)), 0, 0, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
}

// dispatch notes what wait has found out.
func (w *worker) dispatch(events []unix.EpollEvent) {
	for _, ev := range events {
		switch fd := int(ev.Fd); fd {
		case w.wake, w.timer:
			var buf [8]byte
			_, _ = unix.Read(fd, buf[:])
			if fd == w.timer {
				w.armed = 0
				w.clock.reread = 0
			}
		case w.queue.FD():
			w.tunReady = true
			if ev.Events&unix.EPOLLERR != 0 {
				// The interface is being deleted. Reading may not show that yet, and nothing wakes the worker when it does.
				w.later(w.dev.stop)
			}
		default:
			src := w.sources[ev.Fd]
			if src == nil || src.generation != ev.Pad {
				continue
			}
			src.events = ev.Events
			if ev.Events&unix.EPOLLOUT != 0 && src.writable != nil {
				src.writable()
			}
			if ev.Events&^unix.EPOLLOUT != 0 {
				w.markReadable(src)
			}
		}
	}
}

// advance runs the keepalive schedule.
func (w *worker) advance() {
	next, ok := w.lifetimes.Next()
	if ok && next <= w.clock.boot {
		w.lifetimes.Advance(w.clock.boot, w.expire, w.tx.keepalive)
		w.tx.flush()
	}
	w.arm()
}

// expire is the keepalive schedule's verdict on a silent peer.
func (w *worker) expire(p *peers.Peer) { w.later(func() { w.dev.expire(p) }) }

// arm sets the timer to the keepalive schedule's next deadline.
func (w *worker) arm() {
	next, ok := w.lifetimes.Next()
	if !ok {
		next = 0
	}
	if next == w.armed {
		return
	}
	w.armed = next
	spec := unix.ItimerSpec{Value: unix.Timespec{Sec: next}}
	// Can't fail: the descriptor and the value are good.
	_ = unix.TimerfdSettime(w.timer, unix.TFD_TIMER_ABSTIME, &spec, nil)
}

// awake makes a worker that sleeps have a turn.
func (w *worker) awake() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	// EAGAIN means that the counter is full: the worker is awake then.
	_, _ = unix.Write(w.wake, one[:])
}
