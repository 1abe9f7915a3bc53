package exec

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// A member of the group of links is told of ours as of TUN interfaces, unless it has a pair instead of
// the socket: in a relay all that comes is rewritten. The kernel makes the client lose messages
// (ENOBUFS) when its socket's buffer is full. Here the pair must be full as well, and the client then
// loses messages without being told, as a pair has no such error.

// linkGroups is the bit of the group of links in nl_groups.
const linkGroups = 1 << (unix.RTNLGRP_LINK - 1)

// joinsLinks returns what makes a socket a member of the group of links in the way that the call asks for,
// nil if it asks for something else.
func (c *call) joinsLinks() (join func(fd int) error) {
	switch c.nr {
	case unix.SYS_BIND:
		raw, err := c.socketAddress(c.args[1], int32(c.args[2]))
		if err != nil {
			return nil
		}
		address, err := parseNetlinkAddress(raw)
		if err != nil || address.groups&linkGroups == 0 {
			return nil
		}
		return func(fd int) error { return bindRoute(c.task, fd, address) }
	case unix.SYS_SETSOCKOPT:
		if c.optionLevel() != unix.SOL_NETLINK || c.optionName() != unix.NETLINK_ADD_MEMBERSHIP {
			return nil
		}
		value, err := c.optionValue()
		if err != nil || len(value) < 4 || binary.NativeEndian.Uint32(value) != unix.RTNLGRP_LINK {
			return nil
		}
		return func(fd int) error {
			return unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.RTNLGRP_LINK)
		}
	}
	return nil
}

// joinLinks answers a call that makes a real route socket, of which fd is a duplicate, a member of the
// group of links.
func (s *session) joinLinks(c *call, fd int, join func(fd int) error) {
	ns, err := socketNetNS(c.task, fd)
	if err != nil {
		c.continuesUnless(err)
		return
	}
	defer ns.Close()
	before, err := unix.Getsockname(fd)
	if err == nil {
		err = c.task.withoutMore(ns, func() error { return join(fd) })
	}
	if err != nil {
		c.failsFor(err)
		return
	}
	_, err = s.openRelay(c, fd, ns)
	if isShortage(err) {
		leaveLinks(fd, before)
		c.failsFor(err)
		return
	}
	if err != nil {
		s.logger.Warn("a client will hear of links as TUN interfaces", "error", err)
	}
	c.returns(0)
}

// leaveLinks puts back the memberships that a route socket had by its name, but keeps a port that it was given since.
func leaveLinks(fd int, before unix.Sockaddr) {
	if nl, ok := before.(*unix.SockaddrNetlink); ok {
		if port, err := boundTo(fd); err == nil {
			unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: port, Groups: nl.Groups})
		}
	}
}

// hearsOfLinks says whether the real socket is a member of the group of links.
func (r *relay) hearsOfLinks() bool {
	name, err := unix.Getsockname(r.socket)
	nl, ok := name.(*unix.SockaddrNetlink)
	return err == nil && ok && nl.Groups&linkGroups != 0
}

// controlOptions are the SOL_NETLINK options that make messages come with control data, which a pair
// can't have: the group and the namespace that a message is from.
var controlOptions = map[int]bool{unix.NETLINK_PKTINFO: true, unix.NETLINK_LISTEN_ALL_NSID: true}

// wantsControl says whether one of them is set. Such a client keeps the real socket.
func wantsControl(fd int) bool {
	for option := range controlOptions {
		if value, err := unix.GetsockoptInt(fd, unix.SOL_NETLINK, option); err == nil && value != 0 {
			return true
		}
	}
	return false
}
