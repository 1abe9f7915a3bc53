package datapath

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/tun/netns"
)

// The multicast groups of NETLINK_SOCK_DIAG that announce destroyed sockets (linux/sock_diag.h). They need no
// capability.
const (
	sknlgrpInetTCPDestroy  = 1
	sknlgrpInetUDPDestroy  = 2
	sknlgrpInet6TCPDestroy = 3
	sknlgrpInet6UDPDestroy = 4
)

// pollInterval is how often sockets are looked up where the kernel doesn't announce their end.
const pollInterval = time.Second

var errWatchClosed = errors.New("the socket watch is closed")

// sockWatch notices that a client's socket is finally closed: by its last process, in whatever way, however
// often it was duplicated. It holds no reference to the socket, which would keep it open, but knows it by its
// cookie. The kernel announces a socket's end from a work queue, so gone is called a little later than the
// close.
//
// A watched socket must have a port, as a socket without one is not in the tables that can be searched.
// Its methods may be called concurrently.
type sockWatch struct {
	log      *slog.Logger
	interval time.Duration // of polling
	pollOnly bool          // as on a kernel without the groups
	warn     sync.Once
	running  sync.WaitGroup

	mu     sync.Mutex
	groups map[watchKey]*watchGroup // guarded by mu
	closed bool                     // guarded by mu
}

type watchKey struct {
	ns    netns.ID
	proto int
}

// watchGroup watches the sockets of one protocol in one namespace. It ends with its last socket.
type watchGroup struct {
	key      watchKey
	ns       *netns.NS
	listener *nlListener   // nil: poll
	deaf     chan struct{} // closed when nobody receives from the listener: there is none, or it broke
	check    chan struct{}
	stop     chan struct{}
	entries  map[uint64][]*watchEntry // by cookie; guarded by sockWatch.mu
}

// watchEntry is one call of watch.
type watchEntry struct {
	cookie uint64
	mu     sync.Mutex
	gone   func() // guarded by mu, which is held during the call; nil: was called, or must not be any more
}

func newSockWatch(log *slog.Logger) *sockWatch {
	return &sockWatch{log: log, interval: pollInterval, groups: map[watchKey]*watchGroup{}}
}

// watch calls gone, at most once and on another goroutine, after the socket with the cookie has been
// destroyed, which may be already so. ns is the socket's namespace, of which a duplicate is kept; proto is
// unix.IPPROTO_UDP or unix.IPPROTO_TCP. The end of a TCP socket may be announced only when its connection has
// ended too, which takes the other side's part.
//
// cancel ends the watch; when it has returned, gone is not called any more. It waits for a call in progress,
// so gone must not call cancel, nor wait for something that does.
func (w *sockWatch) watch(ns *netns.NS, proto int, cookie uint64, gone func()) (cancel func(), err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil, errWatchClosed
	}
	key := watchKey{ns.ID(), proto}
	g := w.groups[key]
	if g == nil {
		if g, err = w.open(ns, key); err != nil {
			return nil, fmt.Errorf("watch sockets: %w", err)
		}
		w.groups[key] = g
	}
	e := &watchEntry{cookie: cookie, gone: gone}
	g.entries[cookie] = append(g.entries[cookie], e)
	// The socket may have ended before the groups were joined.
	g.requestCheck()
	return func() {
		e.cancel()
		w.mu.Lock()
		defer w.mu.Unlock()
		w.remove(g, e)
	}, nil
}

// open starts a group. w.mu is held.
func (w *sockWatch) open(ns *netns.NS, key watchKey) (*watchGroup, error) {
	ns, err := ns.Dup()
	if err != nil {
		return nil, err
	}
	g := &watchGroup{
		key: key, ns: ns,
		deaf:    make(chan struct{}),
		check:   make(chan struct{}, 1),
		stop:    make(chan struct{}),
		entries: map[uint64][]*watchEntry{},
	}
	if !w.pollOnly {
		groups := []int{sknlgrpInetUDPDestroy, sknlgrpInet6UDPDestroy}
		if key.proto == unix.IPPROTO_TCP {
			groups = []int{sknlgrpInetTCPDestroy, sknlgrpInet6TCPDestroy}
		}
		g.listener, err = listenNetlink(ns, unix.NETLINK_SOCK_DIAG, groups...)
		if isShortage(err) {
			ns.Close()
			return nil, err
		}
	}
	if g.listener == nil {
		w.warn.Do(func() {
			w.log.Warn("closed client sockets are noticed by polling", "interval", w.interval, "error", err)
		})
		close(g.deaf)
	} else {
		go func() {
			defer close(g.deaf)
			w.receive(g)
		}()
	}
	w.running.Go(func() { w.run(g) })
	return g, nil
}

// run looks the group's sockets up whenever that is asked for, and owns the group's descriptors.
func (w *sockWatch) run(g *watchGroup) {
	var tick <-chan time.Time
	defer func() {
		if g.listener != nil {
			g.listener.close()
		}
		<-g.deaf
		g.ns.Close()
	}()
	deaf := g.deaf // becomes nil once it was seen
	for {
		select {
		case <-g.stop:
			return
		case <-deaf:
			deaf = nil
			ticker := time.NewTicker(w.interval)
			defer ticker.Stop()
			tick = ticker.C
			continue
		case <-tick:
		case <-g.check:
		}
		w.checkAll(g)
	}
}

// receive calls gone for every announced socket until the listener is closed.
func (w *sockWatch) receive(g *watchGroup) {
	for {
		var cookies []uint64
		lost, err := g.listener.receive(10*time.Millisecond, func(m nlMessage) {
			if s, ok := parseDiag(m.payload); ok && m.typ == sockDiagByFamily {
				cookies = append(cookies, s.cookie)
			}
		})
		w.fire(g, cookies)
		if lost {
			g.requestCheck()
		}
		if err != nil {
			if !errors.Is(err, os.ErrClosed) {
				w.log.Warn("receive announcements of closed sockets", "error", err)
			}
			return
		}
	}
}

// requestCheck makes run look up all sockets that are watched by now. It doesn't wait.
func (g *watchGroup) requestCheck() {
	select {
	case g.check <- struct{}{}:
	default: // a check is due already, and will see what is watched when it starts
	}
}

// checkAll looks up every watched socket and calls gone for those that are missing.
func (w *sockWatch) checkAll(g *watchGroup) {
	w.mu.Lock()
	missing := make([]uint64, 0, len(g.entries))
	for cookie := range g.entries {
		missing = append(missing, cookie)
	}
	w.mu.Unlock()
	// A dump goes by position within a hash bucket, so one that comes in several parts may skip a socket when
	// another one ends meanwhile. Whoever is missing is looked for twice.
	for range 2 {
		if len(missing) == 0 {
			return
		}
		present := map[uint64]bool{}
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			socks, err := dumpSockets(g.ns, g.key.proto, family, 0)
			if err != nil {
				w.log.Debug("look up client sockets", "error", err)
				return
			}
			for _, s := range socks {
				present[s.cookie] = present[s.cookie] || s.inode != 0
			}
		}
		missing = slices.DeleteFunc(missing, func(cookie uint64) bool { return present[cookie] })
	}
	w.fire(g, missing)
}

// fire calls gone for the entries of the cookies.
func (w *sockWatch) fire(g *watchGroup, cookies []uint64) {
	var fired []*watchEntry
	w.mu.Lock()
	for _, cookie := range cookies {
		fired = append(fired, g.entries[cookie]...)
	}
	w.mu.Unlock()
	// Outside of the lock, and before the entries are removed: a cancel meanwhile waits for the entry.
	for _, e := range fired {
		e.fire()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range fired {
		w.remove(g, e)
	}
}

func (e *watchEntry) fire() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.gone != nil {
		e.gone()
		e.gone = nil
	}
}

func (e *watchEntry) cancel() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.gone = nil
}

// remove takes an entry out of its group, if it is still in, and ends a group without entries. w.mu is held.
func (w *sockWatch) remove(g *watchGroup, e *watchEntry) {
	i := slices.Index(g.entries[e.cookie], e)
	if i < 0 {
		return
	}
	g.entries[e.cookie] = slices.Delete(g.entries[e.cookie], i, i+1)
	if len(g.entries[e.cookie]) == 0 {
		delete(g.entries, e.cookie)
	}
	if len(g.entries) == 0 {
		delete(w.groups, g.key)
		close(g.stop)
	}
}

// close cancels every watch and waits until the goroutines have ended.
func (w *sockWatch) close() {
	w.mu.Lock()
	w.closed = true
	var all []*watchEntry
	for key, g := range w.groups {
		for _, entries := range g.entries {
			all = append(all, entries...)
		}
		clear(g.entries)
		delete(w.groups, key)
		close(g.stop)
	}
	w.mu.Unlock()
	for _, e := range all {
		e.cancel()
	}
	w.running.Wait()
}

// exists reports whether the socket with the cookie is still open in some process. proto and family are the
// socket's; port is its local port, or 0 to search all of them.
func (w *sockWatch) exists(ns *netns.NS, proto int, family int, cookie uint64, port uint16) (bool, error) {
	socks, err := dumpSockets(ns, proto, family, port)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(socks, func(s diagSocket) bool {
		return s.cookie == cookie && s.inode != 0
	}), nil
}
