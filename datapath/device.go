package datapath

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"ovpn-go/peers"
	"ovpn-go/tun"
	"ovpn-go/tun/netns"
)

// ErrDeviceGone says that the interface was deleted, by us or by anybody.
var ErrDeviceGone = errors.New("device is gone")

// Config describes a device to create. Name, Sockets and Logger are required.
type Config struct {
	// Name of the interface; one %d is replaced by the first free number.
	Name string
	Mode peers.Mode
	// Index of the interface; 0 lets the kernel choose.
	Index int
	// MTU in bytes, tun.MinMTU to tun.MaxMTU; 0 means tun.DefaultMTU.
	MTU int
	// NetNS is where the interface is created; nil means the calling thread's. It stays the caller's.
	NetNS *netns.NS
	// Fit says what is done about packets that are too long for the path to their peer.
	Fit Fit
	// GSO says whether the kernel cuts batches of datagrams.
	GSO GSO
	// Workers is how many goroutines move the device's packets, 1 to MaxWorkers, each by a queue of the
	// interface and a data socket beside each client socket; 0 lets mode and processors decide.
	Workers int
	// Sockets is where the device looks up clients' transport sockets, shared by all devices.
	Sockets *Sockets
	// Notify, if set, is called for each event, one at a time and in order, from a goroutine of the
	// device. It must not call back into the device.
	Notify func(Event)
	Logger *slog.Logger
}

// link is the network interface of a device; *tun.Device but in tests.
type link interface {
	Name() (string, error)
	Ifindex() int
	NetNS() *netns.NS
	Refresh() error
	SetCarrier(on bool) error
	Queues() []*tun.Queue
	Close() error
}

// Device is one interface of kind ovpn with its peers. Its methods may be called concurrently, but not from
// Config.Notify.
type Device struct {
	mode    peers.Mode
	fit     Fit
	gso     GSO // never GSOAuto
	link    link
	table   *peers.Table
	routes  atomic.Pointer[Routes] // MP only
	sockets *Sockets
	events  *events
	workers []*worker
	running sync.WaitGroup // the workers' goroutines
	log     *slog.Logger

	// turns is held by each worker, shared, while it has its turn, and alone by whoever changes what turns
	// take for granted: peers and their sockets come and go between the turns of all workers. So a peer that
	// a turn has found is good until the turn's end, and nobody uses one that was removed.
	turns    sync.RWMutex
	conns    map[*tcpConn]struct{} // guarded by turns: those that a worker polls
	stopping bool                  // guarded by turns: there are no more turns

	// bindings makes one of looking at a peer's binding, changing it and announcing that: packets of one peer
	// may reach several workers.
	bindings sync.Mutex

	moving   sync.Mutex
	place    netns.ID      // where routes are from; guarded by moving
	leaving  *nlListener   // hears of links that leave that namespace; guarded by moving
	gone     bool          // guarded by moving
	followed chan struct{} // closed when follow has ended

	done chan struct{} // closed when the interface is gone and everything is released
}

// New creates the interface and starts to move packets. Errors keep the kernel's errno, such as EEXIST when the
// name is taken.
func New(cfg Config) (*Device, error) {
	workers, err := workersFor(cfg.Workers, cfg.Mode, runtime.GOMAXPROCS(0))
	if err != nil {
		return nil, err
	}
	ifc, err := tun.Open(tun.Config{
		Name:  cfg.Name,
		Index: cfg.Index,
		MTU:   cfg.MTU,
		NetNS: cfg.NetNS,
		// An MP device is always ready; a P2P device when its peer is there (kernel behaviour).
		Carrier: cfg.Mode == peers.MP,
		Queues:  workers,
	})
	if err != nil {
		return nil, err
	}
	d, err := newDevice(cfg, ifc)
	if err != nil {
		ifc.Close()
		return nil, err
	}
	return d, nil
}

// newDevice starts a device on an interface, which it owns on success.
func newDevice(cfg Config, ifc link) (*Device, error) {
	name, err := ifc.Name()
	if err != nil {
		return nil, err
	}
	notify := cfg.Notify
	if notify == nil {
		notify = func(Event) {}
	}
	d := &Device{
		mode:     cfg.Mode,
		fit:      cfg.Fit,
		gso:      cfg.GSO.on(tun.RunningRelease()),
		link:     ifc,
		table:    peers.NewTable(cfg.Mode),
		sockets:  cfg.Sockets,
		log:      cfg.Logger.With("iface", name),
		conns:    map[*tcpConn]struct{}{},
		place:    ifc.NetNS().ID(),
		followed: make(chan struct{}),
		done:     make(chan struct{}),
	}
	if err := d.mirrorRoutes(); err != nil {
		return nil, err
	}
	for i, queue := range ifc.Queues() {
		w, err := newWorker(d, i, queue)
		if err != nil {
			d.closeDescriptors()
			if routes := d.routes.Load(); routes != nil {
				routes.Close()
			}
			return nil, err
		}
		d.workers = append(d.workers, w)
	}
	d.events = newEvents(notify)
	go d.follow()
	for _, w := range d.workers {
		d.running.Go(w.run)
	}
	go d.await()
	d.log.Info("device created", "mode", d.mode.String(), "ifindex", ifc.Ifindex(), "workers", len(d.workers))
	return d, nil
}

// owner returns the worker that a peer's packets are received by, and that looks after its keepalive.
func (d *Device) owner(peerID uint32) *worker {
	return d.workers[peerID%uint32(len(d.workers))]
}

func (d *Device) closeDescriptors() {
	for _, w := range d.workers {
		w.closeDescriptors()
	}
}

// await releases what the workers leave behind.
func (d *Device) await() {
	d.running.Wait()
	d.exclusively(d.closeDescriptors)
	if err := d.link.Close(); err != nil {
		d.log.Warn("close interface", "error", err)
	}
	d.moving.Lock()
	if routes := d.routes.Load(); routes != nil {
		routes.Close()
	}
	d.gone = true
	if d.leaving != nil {
		d.leaving.close()
	}
	d.moving.Unlock()
	<-d.followed
	d.events.close()
	s := d.Stats()
	d.log.Info("device removed", "rx_packets", s.RxPackets, "tx_packets", s.TxPackets,
		"tun_reads", s.TunReads, "sends", s.Sends, "receives", s.Receives, "drops", s.Drops)
	close(d.done)
}

// Name returns the interface's present name.
func (d *Device) Name() string {
	name, err := d.link.Name()
	if err != nil {
		return ""
	}
	return name
}

// Ifindex returns the interface's index where Place last saw it.
func (d *Device) Ifindex() int { return d.link.Ifindex() }

// Place returns the namespace the interface is in, and its index there. Both may change when it is moved.
func (d *Device) Place() (ns netns.ID, ifindex int) {
	d.moving.Lock()
	defer d.moving.Unlock()
	if d.gone || d.link.Refresh() != nil {
		return d.place, d.link.Ifindex() // where it was last
	}
	if ns = d.link.NetNS().ID(); ns != d.place {
		if err := d.mirrorRoutes(); err != nil {
			d.log.Error("follow the device", "error", err)
		} else {
			d.log.Info("device moved", "ifindex", d.link.Ifindex())
			d.place = ns
		}
	}
	return ns, d.link.Ifindex()
}

// mirrorRoutes starts to follow the routes of the interface's namespace, in place of another's.
func (d *Device) mirrorRoutes() error {
	if d.mode != peers.MP {
		return nil
	}
	routes, err := NewRoutes(d.link.NetNS(), d.log)
	if err != nil {
		return fmt.Errorf("mirror routes: %w", err)
	}
	if old := d.routes.Swap(routes); old != nil {
		old.Close()
	}
	return nil
}

// Mode returns the mode the device was created with; it never changes.
func (d *Device) Mode() peers.Mode { return d.mode }

// Done is closed when the device is gone, whoever deleted its interface, and all it held is released.
func (d *Device) Done() <-chan struct{} { return d.done }

// Stats returns the device's counters.
func (d *Device) Stats() DeviceStats {
	s := DeviceStats{Drops: map[string]uint64{}}
	for _, w := range d.workers {
		w.counters.addTo(&s)
	}
	return s
}

// Close removes all peers (reason teardown), then deletes the interface. It returns when the controller has
// been told and everything is released.
func (d *Device) Close() error {
	d.Teardown()
	_ = d.do(d.stop)
	<-d.done
	return nil
}

// Teardown removes all peers (reason teardown), gives clients their connections back and leaves the interface, for a caller
// that knows that the kernel is about to delete it. It returns when the controller has been told.
func (d *Device) Teardown() {
	var conns []*tcpConn
	if d.do(func() {
		d.removeAll()
		conns = slices.Collect(maps.Keys(d.conns))
	}) != nil {
		return
	}
	for _, c := range conns {
		d.restore(c)
	}
	d.events.drain()
}

// stop removes all peers and ends the workers, between turns.
func (d *Device) stop() {
	d.removeAll()
	for c := range d.conns {
		d.sockets.releaseTCP(c)
	}
	d.stopping = true
	for _, w := range d.workers {
		w.awake()
	}
}

// do runs fn while no worker has a turn, and waits until that is so. Whatever changes what the workers use without
// being made for concurrent use goes through here, but not from within a turn. The error is ErrDeviceGone, when
// there will be no more turns.
func (d *Device) do(fn func()) (err error) {
	d.exclusively(func() {
		if d.stopping {
			err = ErrDeviceGone
			return
		}
		fn()
		for _, w := range d.workers {
			w.arm()
		}
	})
	return err
}

// exclusively is do for what has to be done even if the device is gone.
func (d *Device) exclusively(fn func()) {
	d.turns.Lock()
	defer d.turns.Unlock()
	fn()
}
