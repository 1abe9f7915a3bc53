package datapath

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"ovpn-go/peers"
	"ovpn-go/tun"
	"ovpn-go/tun/netns"
)

// ip runs the tool in a namespace.
func ip(t *testing.T, ns *netns.NS, arguments ...string) {
	t.Helper()
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("no ip")
	}
	err := ns.Do(func() error {
		out, err := exec.Command("ip", arguments...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("ip %q: %w\n%s", arguments, err, out)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// pathOf names a namespace for a process of ours.
func pathOf(ns *netns.NS) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.File().Fd()) }

// What others do to the interface is noticed when they do it, and not when somebody asks for the device.
func TestInterfaceInOtherHands(t *testing.T) {
	for _, mode := range []peers.Mode{peers.P2P, peers.MP} {
		t.Run(mode.String(), func(t *testing.T) {
			first, second := freshNS(t), freshNS(t)
			sockets := newSockets(t)
			events := make(chan Event, 8)
			d, err := New(Config{
				Name: "tun0", Mode: mode, NetNS: first, Sockets: sockets, Logger: slog.New(slog.DiscardHandler),
				Notify: func(e Event) { events <- e },
			})
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			addUDPPeer(t, d, first)
			index := d.Ifindex()
			// Another has its index where it goes.
			other, err := tun.Open(tun.Config{Name: "other", Index: index, NetNS: second})
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			seen := func(ns *netns.NS) func() bool {
				return func() bool {
					d.moving.Lock()
					defer d.moving.Unlock()
					return d.place == ns.ID()
				}
			}

			ip(t, first, "link", "set", "tun0", "netns", pathOf(second))
			eventually(t, "the device is seen where it was moved to", seen(second))
			if d.Ifindex() == index {
				t.Errorf("its index is still taken for %d", index)
			}
			ip(t, second, "link", "set", "tun0", "name", "tun1", "mtu", "1300")
			if got := d.Name(); got != "tun1" {
				t.Errorf("name %q, want tun1", got)
			}
			ip(t, second, "link", "set", "tun1", "up")
			ip(t, second, "addr", "add", "10.8.0.1/24", "dev", "tun1")
			ip(t, second, "route", "add", "10.9.0.0/16", "via", "10.8.0.2")
			dst, gateway := netip.MustParseAddr("10.9.1.1"), netip.MustParseAddr("10.8.0.2")
			if mode == peers.MP {
				eventually(t, "the routes there are followed", func() bool { return d.routes.Load().NextHop(dst, d.Ifindex()) == gateway })
			}
			ip(t, second, "link", "set", "tun1", "netns", pathOf(first))
			eventually(t, "the device is seen where it was moved back to", seen(first))
			if mode == peers.MP {
				eventually(t, "the other's routes are forgotten", func() bool { return d.routes.Load().NextHop(dst, d.Ifindex()) == dst })
			}
			ip(t, first, "link", "set", "tun1", "netns", pathOf(second))
			eventually(t, "the device is seen where it was moved to again", seen(second))

			moved := d.Ifindex()
			ip(t, second, "link", "del", "tun1")
			select {
			case e := <-events:
				if e.Kind != PeerDeleted || e.Reason != peers.Teardown || e.Ifindex != moved {
					t.Errorf("event %+v, want the teardown of a peer of interface %d", e, moved)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("no peer was torn down")
			}
			select {
			case <-d.Done():
			case <-time.After(10 * time.Second):
				t.Fatal("the end of the interface was not noticed")
			}
		})
	}
}

// A move is seen although its announcement may be one of many for which the queue has no room.
func TestMoveAmongTooManyAnnouncements(t *testing.T) {
	places := [2]*netns.NS{freshNS(t), freshNS(t)}
	d, err := New(Config{Name: "tun0", Mode: peers.MP, NetNS: places[0], Sockets: newSockets(t), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var listener *nlListener
	for n := range 30 {
		from, to := places[n%2], places[(n+1)%2]
		eventually(t, "the device's namespace is watched", func() bool {
			d.moving.Lock()
			defer d.moving.Unlock()
			before := listener
			listener = d.leaving
			return listener != nil && listener != before
		})
		shorten(t, listener)
		moveAmidst(t, d, listener, from, to)
	}
}

// moveAmidst moves a device's interface while there are too many announcements for its listener.
func moveAmidst(t *testing.T, d *Device, listener *nlListener, from, to *netns.NS) {
	t.Helper()
	var others sync.WaitGroup
	defer others.Wait()
	stop := make(chan struct{})
	defer close(stop)
	for range 2 {
		h := nlHandle(t, from)
		others.Go(func() { changeLoopback(t, h, stop) })
	}
	eventually(t, "announcements are lost", func() bool { return dropped(t, from, listener) > 0 })
	h := nlHandle(t, from)
	link, err := h.LinkByName("tun0")
	if err == nil {
		err = netns.Control(to.File(), func(fd int) error { return h.LinkSetNsFd(link, fd) })
	}
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the device is seen where it was moved to", func() bool {
		d.moving.Lock()
		defer d.moving.Unlock()
		return d.place == to.ID()
	})
}

// changeLoopback changes the MTU of a loopback interface, as fast as it can, until stop is closed.
func changeLoopback(t *testing.T, h *netlink.Handle, stop chan struct{}) {
	lo, err := h.LinkByName("lo")
	for mtu := 1000; err == nil; mtu = 1000 + (mtu+1)%1000 {
		select {
		case <-stop:
			return
		default:
			err = h.LinkSetMTU(lo, mtu)
		}
	}
	t.Error(err)
}

// addUDPPeer gives a device a peer over a socket in a namespace.
func addUDPPeer(t *testing.T, d *Device, ns *netns.NS) {
	t.Helper()
	err := d.NewPeer(PeerConfig{
		ID: 1, TxID: 1, Remote: netip.MustParseAddrPort("127.0.0.1:9"), VPN4: netip.MustParseAddr("10.8.0.2"),
		Socket: udpSocketIn(t, ns, unix.AF_INET, bound("127.0.0.1:0")),
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A device that goes leaves no listener behind, and makes none when it went before the first.
func TestFollowEnds(t *testing.T) {
	ns := freshNS(t)
	sockets := newSockets(t)
	for _, watched := range []bool{true, false} {
		d, err := New(Config{Name: "tun0", NetNS: ns, Sockets: sockets, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		listener := func() *nlListener {
			d.moving.Lock()
			defer d.moving.Unlock()
			return d.leaving
		}
		if watched {
			eventually(t, "the namespace is watched", func() bool { return listener() != nil })
		}
		d.Close()
		select {
		case <-d.followed:
		default:
			t.Error("the namespace is still watched")
		}
		l := listener()
		if l == nil {
			continue // follow came too late to make one
		}
		if fd := l.file.Fd(); fd != ^uintptr(0) {
			unix.Close(int(fd))
			t.Error("the listener is still open")
		}
	}
}

// A device whose interface somebody deletes ends, however the deletion meets the worker that looks for packets.
func TestDeletedInterfacesAreAllNoticed(t *testing.T) {
	ns := freshNS(t)
	sockets := newSockets(t)
	for range 150 {
		d, err := New(Config{Name: "tun0", Mode: peers.MP, NetNS: ns, Sockets: sockets, Logger: slog.New(slog.DiscardHandler), Notify: func(Event) {}})
		if err != nil {
			t.Fatal(err)
		}
		err = ns.Do(func() error {
			link, err := netlink.LinkByName("tun0")
			if err != nil {
				return err
			}
			return errors.Join(netlink.LinkSetUp(link), netlink.LinkDel(link))
		})
		if err != nil {
			t.Fatal(err)
		}
		select {
		case <-d.Done():
		case <-time.After(10 * time.Second):
			d.Close()
			t.Fatal("the device has outlived its interface")
		}
	}
}
