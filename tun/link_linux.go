package tun

import (
	"encoding/binary"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"ovpn-go/tun/netns"
)

// gsoMaxSegs returns the number of segments at which the stack is to end a super-frame, so that its
// packets, each 24 bytes larger when sealed, fit one UDP_SEGMENT send: 65507 bytes of UDP payload
// and 64 segments (UDP_MAX_SEGMENTS before Linux 6.9).
func gsoMaxSegs(mtu int) uint32 {
	const maxUDPPayload, overhead, maxSegments = 65507, 24, 64
	return uint32(min(maxUDPPayload/(mtu+overhead), maxSegments))
}

// setUpLink makes a fresh interface look like the kernel's ovpn device: MTU, queue length, and no
// multicast flag, which would have the stack send router solicitations and group reports to the peers.
func (d *Device) setUpLink(mtu int) error {
	attrs := netlink.NewAttributeEncoder()
	attrs.Uint32(unix.IFLA_MTU, uint32(mtu))
	attrs.Uint32(unix.IFLA_TXQLEN, txQueueLen)
	if err := d.setLink(0, unix.IFF_MULTICAST, attrs); err != nil {
		return fmt.Errorf("configure: %w", err)
	}
	d.limitSegments(mtu)
	return nil
}

// limitSegments sets gso_max_segs. It is an optimization, so that a super-frame needs one send and
// not two; a kernel that refuses is left alone.
func (d *Device) limitSegments(mtu int) {
	attrs := netlink.NewAttributeEncoder()
	attrs.Uint32(unix.IFLA_GSO_MAX_SEGS, gsoMaxSegs(mtu))
	_ = d.setLink(0, 0, attrs)
}

// SetMTU changes the interface's MTU in bytes, wherever the interface has been moved. It returns
// ErrMTU if that is out of range, EBADFD if the interface has been deleted, os.ErrClosed after Close.
func (d *Device) SetMTU(mtu int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if mtu < MinMTU || mtu > MaxMTU {
		return fmt.Errorf("set MTU of tun to %d: %w", mtu, ErrMTU)
	}
	// The index may be another interface's if this one has left the namespace.
	if err := d.refresh(); err != nil {
		return fmt.Errorf("set MTU of tun: %w", err)
	}
	attrs := netlink.NewAttributeEncoder()
	attrs.Uint32(unix.IFLA_MTU, uint32(mtu))
	if err := d.setLink(0, 0, attrs); err != nil {
		return fmt.Errorf("set MTU of tun to %d: %w", mtu, err)
	}
	d.limitSegments(mtu)
	return nil
}

// setLink sends an RTM_SETLINK about the interface: the flags in change become those in flags, and
// the attributes are set. mu is held, or d is not shared yet.
func (d *Device) setLink(flags, change uint32, attrs *netlink.AttributeEncoder) error {
	encoded, err := attrs.Encode()
	if err != nil {
		return err
	}
	// struct ifinfomsg: family, padding, type, index, flags, change.
	info := make([]byte, unix.SizeofIfInfomsg, unix.SizeofIfInfomsg+len(encoded))
	binary.NativeEndian.PutUint32(info[4:], uint32(d.ifindex.Load()))
	binary.NativeEndian.PutUint32(info[8:], flags)
	binary.NativeEndian.PutUint32(info[12:], change)

	var conn *netlink.Conn
	err = d.ns.Do(func() (err error) {
		conn, err = netlink.Dial(unix.NETLINK_ROUTE, nil)
		return err
	})
	if err != nil {
		return fmt.Errorf("open rtnetlink: %w", err)
	}
	defer conn.Close()
	_, err = conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_SETLINK, Flags: netlink.Request | netlink.Acknowledge},
		Data:   append(info, encoded...),
	})
	return err
}

// indexOf returns the index of the interface called name in a namespace.
func indexOf(ns *netns.NS, name string) (int, error) {
	var sock int
	err := ns.Do(func() (err error) {
		sock, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(sock)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return 0, err
	}
	if err := unix.IoctlIfreq(sock, unix.SIOCGIFINDEX, ifr); err != nil {
		return 0, err
	}
	return int(ifr.Uint32()), nil
}
