package datapath

import (
	"errors"
	"fmt"
	"log/slog"
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
	// MTU in bytes, tun.MinMTU to tun.MaxMTU; 0 means tun.DefaultMTU.
	MTU int
	// NetNS is where the interface is created; nil means the calling thread's. It stays the caller's.
	NetNS *netns.NS
	// Fit says what is done about packets that are too long for the path to their peer.
	Fit Fit
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
	mode     peers.Mode
	fit      Fit
	link     link
	table    *peers.Table
	routes   atomic.Pointer[Routes] // MP only
	sockets  *Sockets
	events   *events
	worker   *worker
	counters deviceCounters
	log      *slog.Logger

	moving sync.Mutex
	place  netns.ID // where routes are from; guarded by moving
	gone   bool     // guarded by moving

	done chan struct{} // closed when the interface is gone and everything is released
}

// New creates the interface and starts to move packets. Errors keep the kernel's errno, such as EEXIST when the
// name is taken.
func New(cfg Config) (*Device, error) {
	ifc, err := tun.Open(tun.Config{
		Name:  cfg.Name,
		MTU:   cfg.MTU,
		NetNS: cfg.NetNS,
		// An MP device is always ready; a P2P device when its peer is there (kernel behaviour).
		Carrier: cfg.Mode == peers.MP,
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
		mode:    cfg.Mode,
		fit:     cfg.Fit,
		link:    ifc,
		table:   peers.NewTable(cfg.Mode),
		sockets: cfg.Sockets,
		log:     cfg.Logger.With("iface", name),
		place:   ifc.NetNS().ID(),
		done:    make(chan struct{}),
	}
	if err := d.mirrorRoutes(); err != nil {
		return nil, err
	}
	if d.worker, err = newWorker(d, ifc.Queues()[0]); err != nil {
		if routes := d.routes.Load(); routes != nil {
			routes.Close()
		}
		return nil, err
	}
	d.events = newEvents(notify)
	go d.worker.run()
	go d.await()
	d.log.Info("device created", "mode", d.mode.String(), "ifindex", ifc.Ifindex())
	return d, nil
}

// await releases what the worker leaves behind.
func (d *Device) await() {
	<-d.worker.done
	if err := d.link.Close(); err != nil {
		d.log.Warn("close interface", "err", err)
	}
	d.moving.Lock()
	if routes := d.routes.Load(); routes != nil {
		routes.Close()
	}
	d.gone = true
	d.moving.Unlock()
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
			d.log.Error("follow the device", "err", err)
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
func (d *Device) Stats() DeviceStats { return d.counters.snapshot() }

// Close removes all peers (reason teardown), then deletes the interface. It returns when the controller has
// been told and everything is released.
func (d *Device) Close() error {
	d.Teardown()
	d.do(func() { d.worker.stopped = true })
	<-d.done
	return nil
}

// Teardown removes all peers (reason teardown) and leaves the interface, for a caller that knows that the kernel
// is about to delete it. It returns when the controller has been told.
func (d *Device) Teardown() {
	if d.do(d.removeAll) == nil {
		d.events.drain()
	}
}

// linkGone runs on the worker when the interface was deleted behind our back.
func (d *Device) linkGone() {
	d.removeAll()
	d.worker.stopped = true
}

// do runs fn on the worker, between two turns, and waits for it. Whatever changes what the worker uses without
// being made for concurrent use goes through here.
func (d *Device) do(fn func()) error {
	if !d.worker.do(fn) {
		return ErrDeviceGone
	}
	return nil
}

// doOrRun runs fn on the worker, or here if that has ended, and waits for it.
func (d *Device) doOrRun(fn func()) {
	if d.do(fn) != nil {
		fn()
	}
}

// post is do without the wait; fn is dropped when the device is gone.
func (d *Device) post(fn func()) { d.worker.post(fn) }
