package datapath

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
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
	receivesPerTurn = 16
)

// worker moves a device's packets: one goroutine, one epoll set, non-blocking raw system calls. It
// alternates between reading the TUN queue and its sockets until both are dry and then sleeps in
// epoll_wait.
type worker struct {
	dev   *Device
	queue *tun.Queue
	epfd  int
	wake  int // eventfd: a command waits
	timer int // timerfd on CLOCK_BOOTTIME: the earliest keepalive deadline

	sources   map[int]*source // polled ones, by descriptor
	readable  []*source       // those of them that may hold something
	conns     map[*tcpConn]struct{}
	failed    []*tcpConn // whose peers are to be removed
	lifetimes *peers.Lifetimes
	armed     int64 // deadline the timer is set to, boot-time seconds; 0: disarmed
	tx        transmitter
	rx        receiver
	tunReady  bool
	tunGone   bool
	stopped   bool
	clock     clock

	mu       sync.Mutex
	commands []func() // guarded by mu
	ended    bool     // guarded by mu: commands are not accepted any more
	done     chan struct{}
}

// clock is the time of the current turn, read once per turn.
type clock struct {
	boot int64 // CLOCK_BOOTTIME, whole seconds: keepalive and expiry, which suspend must not stop
	mono int64 // monotonic nanoseconds: the replay window's floor
}

var started = time.Now()

func (c *clock) read() {
	c.boot = bootSeconds()
	c.mono = int64(time.Since(started)) + int64(time.Hour) // never near zero: the window's expiry starts in the past
}

func bootSeconds() int64 {
	var ts unix.Timespec
	// Can't fail: the clock exists since Linux 2.6.39 and the pointer is good.
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	return ts.Sec
}

func newWorker(d *Device, queue *tun.Queue) (*worker, error) {
	w := &worker{
		dev: d, queue: queue, epfd: -1, wake: -1, timer: -1,
		sources:   map[int]*source{},
		conns:     map[*tcpConn]struct{}{},
		lifetimes: peers.NewLifetimes(),
		done:      make(chan struct{}),
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
		if err = w.epoll(unix.EPOLL_CTL_ADD, fd, events); err != nil {
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

func (w *worker) epoll(op, fd int, events uint32) error {
	return unix.EpollCtl(w.epfd, op, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)})
}

// source is a descriptor that the worker receives from.
type source struct {
	fd       int
	drain    func() (more bool) // takes what is there, up to its share of a turn
	writable func()             // there is room again; nil if nobody waits for that
	events   uint32             // what epoll said last
	polled   bool               // in the worker's epoll set
	readable bool               // in the worker's list
}

// poll adds a source to the epoll set.
func (w *worker) poll(src *source, events uint32) error {
	if src.polled {
		return nil
	}
	if err := w.epoll(unix.EPOLL_CTL_ADD, src.fd, events|unix.EPOLLET); err != nil {
		return fmt.Errorf("poll transport socket: %w", err)
	}
	src.polled = true
	w.sources[src.fd] = src
	w.markReadable(src)
	return nil
}

func (w *worker) markReadable(src *source) {
	if !src.readable {
		src.readable = true
		w.readable = append(w.readable, src)
	}
}

// unpoll forgets a source that is about to be closed.
func (w *worker) unpoll(src *source) {
	if !src.polled {
		return
	}
	src.polled = false
	delete(w.sources, src.fd)
	w.readable = slices.DeleteFunc(w.readable, func(s *source) bool { return s == src })
	// Explicit, as a duplicate in a process between fork and exec would keep it in the set.
	_ = w.epoll(unix.EPOLL_CTL_DEL, src.fd, 0)
}

// removeFailed removes the peers whose connections failed in this turn.
func (w *worker) removeFailed() {
	for _, c := range w.failed {
		if c.peer != nil { // it has not been removed for another reason
			w.dev.remove(c.peer, peers.TransportError)
		}
	}
	w.failed = w.failed[:0]
}

// run is the worker's goroutine. It ends when a command stops it or the interface is gone.
func (w *worker) run() {
	defer close(w.done)
	defer w.end()
	events := make([]unix.EpollEvent, 32)
	for {
		w.wait(events, len(w.readable) > 0 || w.tunReady)
		w.clock.read()
		w.runCommands()
		w.advance()
		if w.tunReady {
			w.tx.turn()
		}
		w.rx.turn()
		w.removeFailed()
		if w.tunGone && !w.stopped {
			w.dev.linkGone()
		}
		if w.stopped {
			return
		}
	}
}

// wait collects readiness. With work in hand it only looks; otherwise it sleeps.
func (w *worker) wait(events []unix.EpollEvent, busy bool) {
	var n int
	if busy {
		r, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(w.epfd),
			uintptr(ptr(&events[0])), uintptr(len(events)), 0, 0, 0)
		if errno != 0 {
			return
		}
		n = int(r)
	} else {
		var err error
		if n, err = unix.EpollWait(w.epfd, events, -1); err != nil {
			return // EINTR: the next turn asks again
		}
	}
	for _, ev := range events[:n] {
		switch fd := int(ev.Fd); fd {
		case w.wake, w.timer:
			var buf [8]byte
			_, _ = unix.Read(fd, buf[:])
			if fd == w.timer {
				w.armed = 0
			}
		case w.queue.FD():
			w.tunReady = true
		default:
			src := w.sources[fd]
			if src == nil {
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

// advance runs the keepalive schedule and sets the timer to its next deadline.
func (w *worker) advance() {
	next, ok := w.lifetimes.Next()
	if ok && next <= w.clock.boot {
		w.lifetimes.Advance(w.clock.boot, w.dev.expire, w.tx.keepalive)
		w.tx.flush()
		next, ok = w.lifetimes.Next()
	}
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

// post queues fn to be run by the worker between two turns. It reports false when the worker has ended.
func (w *worker) post(fn func()) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return false
	}
	w.commands = append(w.commands, fn)
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	// EAGAIN means that the counter is full: the worker is awake then.
	_, _ = unix.Write(w.wake, one[:])
	return true
}

// do runs fn on the worker and waits for it. It reports false when the worker has ended, and then only after all
// that the worker did.
func (w *worker) do(fn func()) bool {
	ran := make(chan struct{})
	if !w.post(func() { fn(); close(ran) }) {
		<-w.done
		return false
	}
	<-ran
	return true
}

func (w *worker) runCommands() {
	w.mu.Lock()
	commands := w.commands
	w.commands = nil
	w.mu.Unlock()
	for _, fn := range commands {
		fn()
	}
}

// end refuses further commands, runs the ones that came too late for a turn and closes what the worker
// owns.
func (w *worker) end() {
	w.mu.Lock()
	w.ended = true
	w.mu.Unlock()
	w.runCommands()
	w.dev.removeAll() // such a command may have added a peer
	for c := range w.conns {
		w.dev.sockets.releaseTCP(c)
	}
	w.closeDescriptors()
}
