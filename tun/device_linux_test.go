package tun_test

import (
	"errors"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"ovpn-go/tun"
	"ovpn-go/tun/netns"
	"ovpn-go/tun/tuntest"
)

// openDevice opens a device that is closed with the test.
func openDevice(t testing.TB, config tun.Config) *tun.Device {
	t.Helper()
	d, err := tun.Open(config)
	if err != nil {
		skipOrFail(t, err, unix.EPERM, unix.EACCES, unix.ENOENT)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Errorf("Close: %v", err)
		}
	})
	return d
}

// inside runs fn in a namespace and fails the test on its error.
func inside(t testing.TB, ns *netns.NS, fn func() error) {
	t.Helper()
	if err := ns.Do(fn); err != nil {
		t.Fatal(err)
	}
}

// linkOf returns what rtnetlink says of the interface called name.
func linkOf(t testing.TB, ns *netns.NS, name string) *netlink.LinkAttrs {
	t.Helper()
	var attrs *netlink.LinkAttrs
	inside(t, ns, func() error {
		link, err := netlink.LinkByName(name)
		if err == nil {
			attrs = link.Attrs()
		}
		return err
	})
	return attrs
}

// change runs fn on the interface called name.
func change(t testing.TB, ns *netns.NS, name string, fn func(netlink.Link) error) {
	t.Helper()
	inside(t, ns, func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return fn(link)
	})
}

func nameOf(t testing.TB, d *tun.Device) string {
	t.Helper()
	name, err := d.Name()
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func TestOpenLooksLikeTheKernelsDevice(t *testing.T) {
	ns := newNetNS(t)
	d := openDevice(t, tun.Config{NetNS: ns, Name: "vpn"})
	link := linkOf(t, ns, "vpn")
	if got := nameOf(t, d); got != "vpn" {
		t.Errorf("Name = %q", got)
	}
	if link.Index != d.Ifindex() {
		t.Errorf("Ifindex = %d, want %d", d.Ifindex(), link.Index)
	}
	if d.NetNS().ID() != ns.ID() {
		t.Errorf("NetNS = %v, want %v", d.NetNS().ID(), ns.ID())
	}
	if link.MTU != 1416 {
		t.Errorf("MTU %d, want 1416", link.MTU)
	}
	if link.TxQLen != 1000 {
		t.Errorf("queue length %d, want 1000", link.TxQLen)
	}
	if link.RawFlags != unix.IFF_POINTOPOINT|unix.IFF_NOARP {
		t.Errorf("flags %#x, want %#x", link.RawFlags, unix.IFF_POINTOPOINT|unix.IFF_NOARP)
	}
	if link.GSOMaxSegs != 45 {
		t.Errorf("gso_max_segs %d, want 65507/1440", link.GSOMaxSegs)
	}
	if !d.Features().TSO {
		t.Error("no TSO")
	}
	if got := len(d.Queues()); got != 1 {
		t.Errorf("%d queues, want 1", got)
	}
}

// A kernel may refuse a part of the offloads, or all: the device has what is left.
func TestOpenWithoutOffloads(t *testing.T) {
	whole := openDevice(t, tun.Config{NetNS: newNetNS(t)})
	for _, row := range []struct {
		rule    string
		refused uint32
		want    tun.Features
	}{
		{"UDP", unix.TUN_F_USO4, tun.Features{TSO: true}},
		{"all", unix.TUN_F_CSUM, tun.Features{}},
		{"none", 0, whole.Features()},
	} {
		t.Run(row.rule, func(t *testing.T) {
			ns := newNetNS(t)
			var d *tun.Device
			err := tuntest.WithoutOffloads(row.refused, func() (err error) {
				d, err = tun.Open(tun.Config{NetNS: ns, Queues: 2})
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			if d.Features() != row.want {
				t.Errorf("reads %+v, want %+v", d.Features(), row.want)
			}
			for i, q := range d.Queues() {
				// Of UDP it may be less: some kernels lose what they are given.
				if got := q.Features(); got.TSO != row.want.TSO || got.USO && !row.want.USO {
					t.Errorf("queue %d is given %+v, want %+v at most", i, got, row.want)
				}
			}
		})
	}
}

func TestChosenIndex(t *testing.T) {
	for _, queues := range []int{1, 2} {
		d := openDevice(t, tun.Config{NetNS: newNetNS(t), Index: 4711, Queues: queues})
		if got := d.Ifindex(); got != 4711 {
			t.Errorf("index %d of an interface of %d queues, want 4711", got, queues)
		}
	}
}

func TestOpenErrors(t *testing.T) {
	ns := newNetNS(t)
	openDevice(t, tun.Config{NetNS: ns, Name: "taken"})
	for _, row := range []struct {
		rule   string
		config tun.Config
		want   error
	}{
		{"name of another device of ours", tun.Config{Name: "taken"}, unix.EEXIST},
		{"index of another interface", tun.Config{Name: "new0", Index: 1}, unix.EBUSY},
		{"index of another interface, pattern", tun.Config{Index: 1}, unix.EBUSY},
		{"name and index of others", tun.Config{Name: "taken", Index: 1}, unix.EEXIST},
		{"taken name, free index", tun.Config{Name: "taken", Index: 900}, unix.EEXIST},
		{"negative index", tun.Config{Name: "new0", Index: -1}, unix.EINVAL},
		{"name of an interface of another kind", tun.Config{Name: "lo"}, unix.EEXIST},
		{"name of 16 bytes", tun.Config{Name: strings.Repeat("x", 16)}, unix.EINVAL},
		{"name with a slash", tun.Config{Name: "a/b"}, unix.EINVAL},
		{"name with another pattern", tun.Config{Name: "vpn%s"}, unix.EINVAL},
		{"MTU below the range", tun.Config{MTU: 67}, tun.ErrMTU},
		{"MTU above the range", tun.Config{MTU: 65452}, tun.ErrMTU},
	} {
		t.Run(row.rule, func(t *testing.T) {
			row.config.NetNS = ns
			d, err := tun.Open(row.config)
			if !errors.Is(err, row.want) {
				t.Errorf("Open = %v, want %v", err, row.want)
			}
			if d != nil {
				d.Close()
			}
		})
	}
	t.Run("no right over the namespace", func(t *testing.T) {
		var err error
		inside(t, ns, func() error {
			// The thread gives up its capabilities for this one call.
			header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var all, none [2]unix.CapUserData
			if err := unix.Capget(&header, &all[0]); err != nil {
				return err
			}
			none = all
			none[0].Effective, none[1].Effective = 0, 0
			if err := unix.Capset(&header, &none[0]); err != nil {
				return err
			}
			_, err = tun.OpenQueue("denied")
			return unix.Capset(&header, &all[0])
		})
		if !errors.Is(err, unix.EPERM) {
			t.Errorf("error %v, want EPERM", err)
		}
	})
}

func TestOpenInTheThreadsNamespace(t *testing.T) {
	ns := newNetNS(t)
	err := ns.Do(func() error {
		d, err := tun.Open(tun.Config{Name: "here", MTU: tun.MaxMTU, Carrier: true})
		if err != nil {
			return err
		}
		defer d.Close()
		if d.NetNS().ID() != ns.ID() {
			t.Errorf("opened in %v, want %v", d.NetNS().ID(), ns.ID())
		}
		link, err := netlink.LinkByName("here")
		if err == nil && link.Attrs().MTU != 65451 {
			t.Errorf("MTU %d, want 65451", link.Attrs().MTU)
		}
		return err
	})
	if err != nil {
		skipOrFail(t, err, unix.EPERM, unix.EACCES, unix.ENOENT)
	}
}

func TestNamePattern(t *testing.T) {
	ns := newNetNS(t)
	for _, want := range []string{"ovpn0", "ovpn1"} {
		if got := nameOf(t, openDevice(t, tun.Config{NetNS: ns})); got != want {
			t.Errorf("Name = %q, want %q", got, want)
		}
	}
	d := openDevice(t, tun.Config{NetNS: ns, Name: "a%db", Queues: 2})
	if got := nameOf(t, d); got != "a0b" {
		t.Errorf("Name = %q, want a0b", got)
	}
	if got := len(d.Queues()); got != 2 {
		t.Errorf("%d queues, want 2", got)
	}
}

func TestSetMTU(t *testing.T) {
	ns := newNetNS(t)
	d := openDevice(t, tun.Config{NetNS: ns, Name: "vpn"})
	for _, mtu := range []int{tun.MinMTU, 1500, tun.MaxMTU} {
		if err := d.SetMTU(mtu); err != nil {
			t.Error(err)
		}
		if got := linkOf(t, ns, "vpn").MTU; got != mtu {
			t.Errorf("MTU %d, want %d", got, mtu)
		}
	}
	for _, mtu := range []int{0, tun.MinMTU - 1, tun.MaxMTU + 1} {
		if err := d.SetMTU(mtu); !errors.Is(err, tun.ErrMTU) {
			t.Errorf("SetMTU(%d) = %v, want ErrMTU", mtu, err)
		}
	}
}

func TestCarrier(t *testing.T) {
	ns := newNetNS(t)
	d := openDevice(t, tun.Config{NetNS: ns, Name: "vpn"})
	change(t, ns, "vpn", netlink.LinkSetUp)
	lower := func() bool { return linkOf(t, ns, "vpn").RawFlags&unix.IFF_LOWER_UP != 0 }
	if lower() {
		t.Error("a new device has carrier")
	}
	for _, on := range []bool{true, false, true} {
		if err := d.SetCarrier(on); err != nil {
			t.Fatal(err)
		}
		if lower() != on {
			t.Errorf("after SetCarrier(%v) the carrier is %v", on, lower())
		}
	}

	openDevice(t, tun.Config{NetNS: ns, Name: "vpn2", Carrier: true})
	change(t, ns, "vpn2", netlink.LinkSetUp)
	if linkOf(t, ns, "vpn2").RawFlags&unix.IFF_LOWER_UP == 0 {
		t.Error("no carrier though Config.Carrier is set")
	}
}

func TestRenameAndMove(t *testing.T) {
	ns, other := newNetNS(t), newNetNS(t)
	d := openDevice(t, tun.Config{NetNS: ns, Name: "vpn"})

	change(t, ns, "vpn", func(link netlink.Link) error { return netlink.LinkSetName(link, "tunnel") })
	if got := nameOf(t, d); got != "tunnel" {
		t.Errorf("Name after a rename = %q, want tunnel", got)
	}

	// Another interface first, so that the index differs from the one here.
	openDevice(t, tun.Config{NetNS: other, Name: "first"})
	openDevice(t, tun.Config{NetNS: other, Name: "second"})
	if err := d.Refresh(); err != nil {
		t.Fatal(err)
	}
	if d.NetNS().ID() != ns.ID() {
		t.Error("Refresh found a device elsewhere that has not moved")
	}
	change(t, ns, "tunnel", func(link netlink.Link) error {
		return netlink.LinkSetNsFd(link, int(other.File().Fd()))
	})
	if err := d.Refresh(); err != nil {
		t.Fatal(err)
	}
	if d.NetNS().ID() != other.ID() {
		t.Errorf("NetNS after a move = %v, want %v", d.NetNS().ID(), other.ID())
	}
	if got, want := d.Ifindex(), linkOf(t, other, "tunnel").Index; got != want {
		t.Errorf("Ifindex after a move = %d, want %d", got, want)
	}
	if got := nameOf(t, d); got != "tunnel" {
		t.Errorf("Name after a move = %q, want tunnel", got)
	}

	change(t, other, "tunnel", func(link netlink.Link) error {
		return netlink.LinkSetNsFd(link, int(ns.File().Fd()))
	})
	if err := d.SetMTU(1300); err != nil {
		t.Error(err)
	}
	if got := linkOf(t, ns, "tunnel").MTU; got != 1300 {
		t.Errorf("MTU set after another move is %d, want 1300", got)
	}
}

func TestCloseRemovesTheInterface(t *testing.T) {
	ns := newNetNS(t)
	for _, queues := range []int{1, 3} {
		d := openDevice(t, tun.Config{NetNS: ns, Name: "vpn", Queues: queues})
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		inside(t, ns, func() error {
			if _, err := net.InterfaceByName("vpn"); err == nil {
				t.Errorf("the interface with %d queues outlives Close", queues)
			}
			return nil
		})
		_, nameErr := d.Name()
		for call, err := range map[string]error{
			"Close":      d.Close(),
			"Name":       nameErr,
			"SetMTU":     d.SetMTU(1400),
			"SetCarrier": d.SetCarrier(true),
			"Refresh":    d.Refresh(),
		} {
			if !errors.Is(err, os.ErrClosed) {
				t.Errorf("%s after Close = %v, want os.ErrClosed", call, err)
			}
		}
		if _, err := d.Queues()[0].Read(make([]byte, 100)); err != unix.EBADF {
			t.Errorf("Read after Close = %v, want EBADF", err)
		}
	}
}

func TestQueueErrors(t *testing.T) {
	ns := newNetNS(t)
	d := openDevice(t, tun.Config{NetNS: ns, Name: "vpn", Carrier: true})
	q := d.Queues()[0]
	frame := tuntest.Frame(tuntest.UDP4("10.8.0.2:1", "10.8.0.1:2", []byte("x")))
	buf := make([]byte, tun.MaxFrame)

	if _, err := q.Write(frame); err != unix.EIO {
		t.Errorf("Write while down = %v, want EIO", err)
	}
	c := tun.NewCoalescer(q)
	commit(c, frame[tun.VnetHdrLen:])
	if got := c.Flush(); got != 1 {
		t.Errorf("Flush while down dropped %d, want 1", got)
	}
	change(t, ns, "vpn", netlink.LinkSetUp)
	if n, err := q.Write(frame); n != len(frame) || err != nil {
		t.Errorf("Write = %d, %v", n, err)
	}
	if _, err := q.Write(nil); err != unix.EINVAL {
		t.Errorf("Write of nothing = %v, want EINVAL", err)
	}
	for {
		// The stack may have had something to say when the interface came up.
		if _, err := q.Read(buf); err != nil {
			if err != unix.EAGAIN {
				t.Errorf("Read without a frame = %v, want EAGAIN", err)
			}
			break
		}
	}
	change(t, ns, "vpn", netlink.LinkDel)
	if _, err := q.Read(buf); err != unix.EBADFD {
		t.Errorf("Read after deletion = %v, want EBADFD", err)
	}
	if _, err := q.Write(frame); err != unix.EBADFD {
		t.Errorf("Write after deletion = %v, want EBADFD", err)
	}
	_, nameErr := d.Name()
	for call, err := range map[string]error{"Name": nameErr, "Refresh": d.Refresh(), "SetMTU": d.SetMTU(1400)} {
		if !errors.Is(err, unix.EBADFD) {
			t.Errorf("%s after deletion = %v, want EBADFD", call, err)
		}
	}
	if err := d.Close(); err != nil {
		t.Errorf("Close after deletion: %v", err)
	}
}
