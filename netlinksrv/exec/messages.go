package exec

import (
	"encoding/binary"
	"iter"

	"golang.org/x/sys/unix"
)

// messages yields the netlink messages in a datagram, as far as they are complete.
func messages(datagram []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for len(datagram) >= unix.NLMSG_HDRLEN {
			length := binary.NativeEndian.Uint32(datagram)
			if length < unix.NLMSG_HDRLEN || uint64(length) > uint64(len(datagram)) {
				return
			}
			if !yield(datagram[:length:length]) {
				return
			}
			aligned := (uint64(length) + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1)
			datagram = datagram[min(aligned, uint64(len(datagram))):]
		}
	}
}

// messageType returns the type in a message's header.
func messageType(m []byte) uint16 { return binary.NativeEndian.Uint16(m[4:]) }

// onlyGets says whether a datagram asks rtnetlink for nothing but information: the types come in
// fours, of which the third is the GET (RTNL_KIND_GET).
func onlyGets(datagram []byte) bool {
	const firstType, kinds, get = unix.RTM_BASE, 4, 2
	for m := range messages(datagram) {
		if t := messageType(m); t >= firstType && (t-firstType)%kinds != get {
			return false
		}
	}
	return true
}

// namesProcess says whether a datagram refers to a descriptor or a process of its sender, which
// mean something else when we send it.
func namesProcess(datagram []byte) bool {
	for m := range messages(datagram) {
		switch messageType(m) {
		case unix.RTM_NEWLINK, unix.RTM_SETLINK, unix.RTM_DELLINK:
			if linkNamesProcess(m) {
				return true
			}
		case unix.RTM_NEWNSID:
			return true
		}
	}
	return false
}

// linkNamesProcess looks for the attributes IFLA_NET_NS_FD and IFLA_NET_NS_PID, wherever they
// are: a veth's peer has its own. What looks like one by accident is refused as well.
func linkNamesProcess(m []byte) bool {
	const attributes = unix.NLMSG_HDRLEN + unix.SizeofIfInfomsg
	for i := attributes; i+8 <= len(m); i += 4 {
		if binary.NativeEndian.Uint16(m[i:]) != 8 {
			continue
		}
		switch binary.NativeEndian.Uint16(m[i+2:]) {
		case unix.IFLA_NET_NS_FD, unix.IFLA_NET_NS_PID:
			return true
		}
	}
	return false
}
