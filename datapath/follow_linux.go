package datapath

import (
	"encoding/binary"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/tun/netns"
)

// follow goes with the interface when somebody moves it to another network namespace, so that the routes are those
// of the namespace that it is in, and events carry the index that it has there. It ends with the device.
func (d *Device) follow() {
	const pause = 100 * time.Millisecond
	defer close(d.followed)
	for {
		listener, here, err := d.listenHere()
		if isShortage(err) {
			time.Sleep(pause) // until somebody has closed something
			continue
		}
		if err != nil {
			if !errors.Is(err, os.ErrClosed) {
				d.log.Error("watch for moves of the interface", "error", err)
			}
			return
		}
		err = d.awaitMove(listener, here)
		listener.close()
		if err != nil {
			if !errors.Is(err, os.ErrClosed) {
				d.log.Error("watch for moves of the interface", "error", err)
			}
			return
		}
	}
}

// listenHere joins the group of links in the namespace where the interface was last seen. The error is os.ErrClosed
// if the device is gone.
func (d *Device) listenHere() (*nlListener, netns.ID, error) {
	d.moving.Lock()
	defer d.moving.Unlock()
	if d.gone {
		return nil, netns.ID{}, os.ErrClosed
	}
	here := d.link.NetNS()
	listener, err := listenNetlink(here, unix.NETLINK_ROUTE, unix.RTNLGRP_LINK)
	d.leaving = listener
	return listener, here.ID(), err
}

// awaitMove returns nil when the interface is no longer here, where listener listens. The kernel says of an interface that is
// moved, as of one that is deleted, that it is gone from where it was.
func (d *Device) awaitMove(listener *nlListener, here netns.ID) error {
	const limit = 50 * time.Millisecond
	for {
		// At first too: it may have moved before the group was joined.
		ns, ifindex := d.Place()
		if ns != here {
			return nil
		}
		for left := false; !left; {
			lost, err := listener.receive(limit, func(m nlMessage) {
				if m.typ == unix.RTM_DELLINK && len(m.payload) >= unix.SizeofIfInfomsg &&
					int(int32(binary.NativeEndian.Uint32(m.payload[4:]))) == ifindex {
					left = true
				}
			})
			if err != nil {
				return err
			}
			left = left || lost
		}
	}
}
