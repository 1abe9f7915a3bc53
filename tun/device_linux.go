package tun

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"ovpn-go/tun/netns"
)

// Sizes in bytes of an IP packet that the interface carries, as the kernel's ovpn device has them
// (drivers/net/ovpn/main.c): its headroom of 84 bytes is taken off 1500 and 65535.
const (
	DefaultMTU = 1416
	MinMTU     = 68
	MaxMTU     = 65451
)

// DefaultName is the name pattern of a device that is given none, as the kernel's.
const DefaultName = "ovpn%d"

// txQueueLen is the transmit queue length of a TUN device in frames. 1000 is what the kernel's ovpn
// device shows; TUN's own default of 500 drops bursts.
const txQueueLen = 1000

// clonePath is where a TUN device comes from.
const clonePath = "/dev/net/tun"

// ErrMTU reports an MTU outside MinMTU..MaxMTU.
var ErrMTU = fmt.Errorf("MTU is not in the range %d to %d", MinMTU, MaxMTU)

// Config describes a device to create. The zero Config makes ovpn0, or the first free number, in
// the calling thread's network namespace, without carrier.
type Config struct {
	// Name is the interface's name, at most 15 bytes. One %d in it stands for the first free number.
	// Empty means DefaultName.
	Name string
	// Index is the interface's index, 0 means that the kernel chooses.
	Index int
	// MTU is in bytes, 0 means DefaultMTU.
	MTU int
	// NetNS is where the interface appears; nil means the calling thread's. Open keeps a duplicate.
	NetNS *netns.NS
	// Carrier is the initial state of the link: without it the stack discards what it would send.
	Carrier bool
	// Queues is the number of queues, 0 means 1.
	Queues int
}

// Device is a TUN interface. Its methods may be called concurrently, but Close only when nothing
// reads or writes the queues any more.
type Device struct {
	queues   []*Queue
	features Features
	ifindex  atomic.Int32

	mu     sync.Mutex
	ns     *netns.NS // guarded by mu
	closed bool      // guarded by mu; no descriptor may be used when set
}

// Open creates the interface, down and without addresses. The errno stays reachable: EEXIST if the
// name is taken, EBUSY if the index is, EINVAL if it can't be a name, EPERM without CAP_NET_ADMIN over the namespace, ENOENT
// or EACCES if /dev/net/tun can't be opened. The interface exists until Close or until somebody
// deletes it.
func Open(config Config) (*Device, error) {
	if config.Name == "" {
		config.Name = DefaultName
	}
	if config.MTU == 0 {
		config.MTU = DefaultMTU
	}
	config.Queues = max(config.Queues, 1)
	d, err := open(config)
	if err != nil {
		return nil, fmt.Errorf("open tun %q: %w", config.Name, err)
	}
	return d, nil
}

func open(config Config) (*Device, error) {
	if config.MTU < MinMTU || config.MTU > MaxMTU {
		return nil, fmt.Errorf("%d: %w", config.MTU, ErrMTU)
	}
	var ns *netns.NS
	var err error
	if config.NetNS != nil {
		ns, err = config.NetNS.Dup()
	} else {
		ns, err = netns.Current()
	}
	if err != nil {
		return nil, err
	}
	d := &Device{ns: ns}
	if err := d.create(config); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// create makes the interface and its queues and configures both.
func (d *Device) create(config Config) error {
	// An interface belongs to the namespace in which its descriptor was opened.
	flags := uint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if config.Queues > 1 {
		flags |= unix.IFF_MULTI_QUEUE
	}
	err := d.ns.Do(func() error {
		name, flags := config.Name, flags|unix.IFF_TUN_EXCL
		index := config.Index
		for range config.Queues {
			fd, err := openQueue(&name, index, flags)
			if err != nil {
				return err
			}
			d.queues = append(d.queues, NewQueue(fd))
			flags &^= unix.IFF_TUN_EXCL
			index = 0
		}
		return nil
	})
	if errors.Is(err, unix.EBUSY) && !d.indexTaken(config) {
		// What IFF_TUN_EXCL says to a name that is taken, by an interface of any kind.
		return unix.EEXIST
	}
	if err != nil {
		return err
	}
	d.offload()
	if err := d.setCarrier(config.Carrier); err != nil {
		return err
	}
	if err := d.resolve(); err != nil {
		return err
	}
	return d.setUpLink(config.MTU)
}

// indexTaken reports whether it was the index that the kernel found taken, and not the name, at which it looks
// first.
func (d *Device) indexTaken(config Config) bool {
	if config.Index == 0 {
		return false
	}
	_, err := indexOf(d.ns, config.Name)
	return err != nil
}

// openQueue attaches a descriptor to the interface *name, and replaces a pattern in it by the name
// that the kernel chose. An interface that this makes gets the index, unless that is 0. It runs inside the
// interface's namespace.
func openQueue(name *string, index int, flags uint16) (int, error) {
	fd, err := unix.Open(clonePath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return -1, fmt.Errorf("%s is missing (load the tun module; in a container, pass the device in): %w", clonePath, err)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return -1, fmt.Errorf("no access to %s (make it readable and writable; in a container, allow the device 10:200): %w", clonePath, err)
	case err != nil:
		return -1, fmt.Errorf("%s: %w", clonePath, err)
	}
	ifr, err := unix.NewIfreq(*name)
	if err == nil && index != 0 {
		err = unix.IoctlSetPointerInt(fd, unix.TUNSETIFINDEX, index)
	}
	if err == nil {
		ifr.SetUint16(flags)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	}
	if err != nil {
		unix.Close(fd)
		return -1, attachError(err)
	}
	*name = ifr.Name()
	return fd, nil
}

// attachError explains an error of TUNSETIFF.
func attachError(err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("creating an interface needs CAP_NET_ADMIN over the network namespace: %w", err)
	}
	return err
}

// offload asks the kernel for super-frames and unfinished checksums, as far as it has them: USO needs Linux 6.2. Without
// any, the stack hands over complete packets, and a kernel that won't make super-frames is not trusted to take some.
func (d *Device) offload() {
	const (
		tso = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
		uso = unix.TUN_F_USO4 | unix.TUN_F_USO6
	)
	fd := d.queues[0].fd
	d.features.TSO = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tso) == nil
	d.features.USO = d.features.TSO && unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tso|uso) == nil
	writable := d.features
	writable.USO = writable.USO && !losesUSO(RunningRelease())
	for _, q := range d.queues {
		q.SetFeatures(writable)
	}
}

// Queues returns the device's queues, which belong to it; their number is Config.Queues.
func (d *Device) Queues() []*Queue { return d.queues }

// Features returns the super-frames that the kernel hands out. Those it should get may be fewer: Queue.Features.
func (d *Device) Features() Features { return d.features }

// Ifindex returns the interface's index in the namespace where Open, SetMTU or Refresh last saw it.
func (d *Device) Ifindex() int { return int(d.ifindex.Load()) }

// NetNS returns the namespace where Open, SetMTU or Refresh last saw the interface. It stays owned by
// the device, which closes it when it finds the interface elsewhere, and on Close.
func (d *Device) NetNS() *netns.NS {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ns
}

// Name asks the kernel for the interface's present name. The error is EBADFD if the interface has
// been deleted, os.ErrClosed after Close.
func (d *Device) Name() (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	name, err := d.name()
	if err != nil {
		return "", fmt.Errorf("name of tun: %w", err)
	}
	return name, nil
}

// name works wherever the interface has been moved, unlike the index. mu is held.
func (d *Device) name() (string, error) {
	if d.closed {
		return "", os.ErrClosed
	}
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return "", err
	}
	if err := unix.IoctlIfreq(d.queues[0].fd, unix.TUNGETIFF, ifr); err != nil {
		return "", err
	}
	return ifr.Name(), nil
}

// SetCarrier switches the link on or off. Without carrier the stack discards what it would send and
// the operational state is down.
func (d *Device) SetCarrier(on bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return fmt.Errorf("set carrier of tun: %w", os.ErrClosed)
	}
	return d.setCarrier(on)
}

func (d *Device) setCarrier(on bool) error {
	value := 0
	if on {
		value = 1
	}
	if err := unix.IoctlSetPointerInt(d.queues[0].fd, unix.TUNSETCARRIER, value); err != nil {
		return fmt.Errorf("set carrier of tun: %w", err)
	}
	return nil
}

// Refresh finds the interface again after it may have been moved to another network namespace, so
// that NetNS and Ifindex tell where it is now. It needs CAP_NET_ADMIN there.
func (d *Device) Refresh() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.refresh()
}

func (d *Device) refresh() error {
	if d.closed {
		return fmt.Errorf("find tun: %w", os.ErrClosed)
	}
	fd, err := unix.IoctlRetInt(d.queues[0].fd, unix.TUNGETDEVNETNS)
	if err != nil {
		return fmt.Errorf("network namespace of tun: %w", err)
	}
	unix.CloseOnExec(fd)
	ns, err := netns.New(os.NewFile(uintptr(fd), "netns"))
	if err != nil {
		return err
	}
	if ns.ID() == d.ns.ID() {
		// Keep the one that NetNS may have given out.
		ns.Close()
		return nil // the index is the interface's for as long as it stays
	}
	old := d.ns
	d.ns = ns
	if err := d.resolve(); err != nil {
		d.ns = old
		ns.Close()
		return err
	}
	old.Close()
	return nil
}

// resolve looks up the index of the interface in d.ns. mu is held, or d is not shared yet.
func (d *Device) resolve() error {
	for {
		name, err := d.name()
		if err != nil {
			return fmt.Errorf("name of tun: %w", err)
		}
		index, err := indexOf(d.ns, name)
		again, nameErr := d.name()
		if nameErr != nil {
			return fmt.Errorf("name of tun: %w", nameErr)
		}
		if again != name {
			// Renamed in between: the index may be another interface's.
			continue
		}
		if err != nil {
			return fmt.Errorf("index of tun %q: %w", name, err)
		}
		d.ifindex.Store(int32(index))
		return nil
	}
}

// Close removes the interface. Closing twice returns os.ErrClosed.
func (d *Device) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return fmt.Errorf("close tun: %w", os.ErrClosed)
	}
	d.closed = true
	var errs []error
	for _, q := range d.queues {
		errs = append(errs, q.Close())
	}
	errs = append(errs, d.ns.Close())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close tun: %w", err)
	}
	return nil
}
