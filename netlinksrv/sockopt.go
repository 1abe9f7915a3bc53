package netlinksrv

import (
	"golang.org/x/sys/unix"
)

// plainOptions are the SOL_SOCKET options that may be set on the twin: those whose value is plain data. Others
// hold pointers or descriptors, which would be taken for ours.
var plainOptions = map[int]bool{
	unix.SO_DEBUG:        true,
	unix.SO_REUSEADDR:    true,
	unix.SO_DONTROUTE:    true,
	unix.SO_BROADCAST:    true,
	unix.SO_SNDBUF:       true,
	unix.SO_RCVBUF:       true,
	unix.SO_SNDBUFFORCE:  true,
	unix.SO_RCVBUFFORCE:  true,
	unix.SO_KEEPALIVE:    true,
	unix.SO_OOBINLINE:    true,
	unix.SO_PRIORITY:     true,
	unix.SO_LINGER:       true,
	unix.SO_PASSCRED:     true,
	unix.SO_RCVLOWAT:     true,
	unix.SO_RCVTIMEO:     true,
	unix.SO_SNDTIMEO:     true,
	unix.SO_TIMESTAMP:    true,
	unix.SO_TIMESTAMPNS:  true,
	unix.SO_TIMESTAMPING: true,
	unix.SO_PASSSEC:      true,
	unix.SO_MARK:         true,
	unix.SO_RXQ_OVFL:     true,
	unix.SO_PEEK_OFF:     true,
	unix.SO_BUSY_POLL:    true,
}

// SetOption is setsockopt. The error is the kernel's errno.
func (g *GenericSocket) SetOption(task Task, level, name int, value []byte) error {
	if level == unix.SOL_SOCKET && !plainOptions[name] {
		return unix.ENOPROTOOPT
	}
	var v uint32
	if len(value) >= 4 {
		v = nativeEndian.Uint32(value)
	}
	for i, ids := range g.server.ids {
		if level != unix.SOL_NETLINK || v != ids.group {
			continue
		}
		switch name {
		case unix.NETLINK_ADD_MEMBERSHIP:
			g.member[i].Store(true)
			return nil
		case unix.NETLINK_DROP_MEMBERSHIP:
			g.member[i].Store(false)
			return nil
		}
	}
	err := g.asSender(task, func() error { return g.twin.setOption(level, name, value) })
	if err != nil || level != unix.SOL_NETLINK {
		return err
	}
	switch name {
	case unix.NETLINK_EXT_ACK:
		g.extended.Store(v != 0)
	case unix.NETLINK_CAP_ACK:
		g.cap.Store(v != 0)
	}
	return nil
}

// maxMemberships is the room for a list of memberships: one bit per group, of which the kernel has far fewer.
const maxMemberships = 4096

// GetOption is getsockopt with room for size bytes; the result may be shorter. A list of memberships
// (NETLINK_LIST_MEMBERSHIPS) is returned whole, since the kernel reports its full length however little room
// there is: the door copies what fits. The error is the kernel's errno.
func (g *GenericSocket) GetOption(level, name int, size int) ([]byte, error) {
	if size < 0 {
		return nil, unix.EINVAL
	}
	if level != unix.SOL_NETLINK || name != unix.NETLINK_LIST_MEMBERSHIPS {
		const maxOption = 64 << 10 // what no option exceeds
		return g.twin.getOption(level, name, min(size, maxOption))
	}
	list, err := g.twin.getOption(level, name, maxMemberships)
	if err != nil {
		return nil, err
	}
	for i, ids := range g.server.ids {
		if g.member[i].Load() {
			list = withMembership(list, ids.group)
		}
	}
	return list, nil
}

// withMembership sets the bit of group in a list of memberships, which is an array of 32-bit words.
func withMembership(list []byte, group uint32) []byte {
	word := int(group-1) / 32 * 4
	for len(list) < word+4 {
		list = append(list, 0)
	}
	bits := nativeEndian.Uint32(list[word:])
	nativeEndian.PutUint32(list[word:], bits|1<<((group-1)%32))
	return list
}
