package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/tun/netns"
)

// Routes mirrors the IPv4 and IPv6 routes of one network namespace, as the kernel's answers to look-ups of a
// bare destination depend on them. The kernel module reads the next hop from the packet's route; a TUN reader
// gets the packet without it.
//
// Rules are followed as they are for a packet of which nothing but the destination is set. A packet to send that came to the
// link by others is looked for in all tables that rules lead to, in their order.
//
// What it doesn't see: groups of interfaces in rules (suppress_ifgroup); routes for one TOS or IPv6 source prefix; redirects; nexthop objects where net.ipv4.nexthop_compat_mode is 0. Of several next
// hops the first working one is taken, of IPv6 routers of equal metric the one added first.
//
// NextHop and SourceHop are lock-free and may be called concurrently. A change of the routes shows as soon as the
// kernel has announced it, within a second at the latest.
type Routes struct {
	ns       *netns.NS
	log      *slog.Logger
	listener *nlListener
	current  atomic.Pointer[routeSet]
	done     chan struct{}

	// What follows belongs to the goroutine of run.
	links    map[int32]uint32 // IFF_UP, IFF_RUNNING and IFF_LOWER_UP of the links seen so far, by ifindex
	changes  []routeChange    // announced since the last update
	ruled4   bool             // the IPv4 rules have changed while we looked
	hasDead  bool             // some next hop was dead when the routes were read
	readDue  time.Time        // when to read everything anew; zero: no need to
	readLast time.Time        // when that was last finished
	readCost time.Duration    // how long it took
	confirm  int              // reads to follow the next one
}

// How the routes are read anew when the announcements don't say enough.
const (
	// readGap is the shortest time between two reads. Where a read takes long the gap is four times as long, so
	// that an endless burst costs a fifth of a core, but not longer than maxReadGap.
	readGap    = 50 * time.Millisecond
	maxReadGap = 500 * time.Millisecond
	// burstLimit is how long announcements are collected before they are applied.
	burstLimit = 50 * time.Millisecond
)

// rtaNHID is RTA_NH_ID (linux/rtnetlink.h).
const rtaNHID = 30

// linkState is what of a link's flags decides over routes.
const linkState = unix.IFF_UP | unix.IFF_RUNNING | unix.IFF_LOWER_UP

// NewRoutes reads the routes of ns, of which it keeps a duplicate, and follows them until Close. A device that
// moves to another namespace needs new Routes.
func NewRoutes(ns *netns.NS, log *slog.Logger) (*Routes, error) {
	ns, err := ns.Dup()
	if err != nil {
		return nil, err
	}
	r := &Routes{ns: ns, log: log, done: make(chan struct{}), links: map[int32]uint32{}}
	// Joined before the routes are read: what changes in between is announced.
	r.listener, err = listenNetlink(ns, unix.NETLINK_ROUTE,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR,
		unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE)
	if err != nil {
		ns.Close()
		return nil, fmt.Errorf("follow routes: %w", err)
	}
	// Since Linux 5.3; before there were no nexthop objects.
	_ = netns.Control(r.listener.file, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.RTNLGRP_NEXTHOP)
	})
	switch err := r.read(); {
	case errors.Is(err, errInterrupted):
		r.readSoon(0)
	case err != nil:
		r.listener.close()
		ns.Close()
		return nil, err
	}
	go r.run()
	return r, nil
}

// Close stops following the routes and waits until the goroutine has ended. The look-ups keep answering from the
// last state.
func (r *Routes) Close() {
	r.listener.close()
	<-r.done
	r.ns.Close()
}

// NextHop returns the address that a packet to dst, which was routed to the link ifindex, is handed to there
// (kernel behaviour: peer choice on transmit): the gateway of the best route to dst that leaves through the link,
// or dst itself where that has none, or there is no such route. The gateway of an IPv4 route may be an IPv6
// address.
func (r *Routes) NextHop(dst netip.Addr, ifindex int) netip.Addr {
	return r.current.Load().hop(dst, int32(ifindex))
}

// SourceHop returns the address on the way to src (kernel behaviour: reverse path check): the gateway of the best
// route to src, whatever link it leaves through, or src itself where that has none, or there is no route.
func (r *Routes) SourceHop(src netip.Addr) netip.Addr {
	return r.current.Load().hop(src, 0)
}

func (r *Routes) run() {
	defer close(r.done)
	for {
		// The zero time is no deadline.
		if err := r.listener.file.SetReadDeadline(r.readDue); err != nil {
			return // closed
		}
		lost, err := r.listener.receive(burstLimit, r.receive)
		r.publish()
		if lost {
			r.readSoon(0)
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			if !errors.Is(err, os.ErrClosed) {
				r.log.Error("follow routes", "error", err)
			}
			return
		}
		if !r.readDue.IsZero() && !time.Now().Before(r.readDue) {
			if err := r.read(); err != nil {
				r.log.Debug("read routes", "error", err)
				r.readSoon(0)
			}
		}
	}
}

// readSoon makes run read the routes anew, and confirm more times after that.
func (r *Routes) readSoon(confirm int) {
	r.confirm = max(r.confirm, confirm)
	if r.readDue.IsZero() {
		r.readDue = r.readLast.Add(r.gap())
	}
}

// gap is the time from the end of the last read to the next.
func (r *Routes) gap() time.Duration { return min(max(readGap, 4*r.readCost), maxReadGap) }

// receive takes one announcement.
func (r *Routes) receive(m nlMessage) {
	switch m.typ {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		c, ok := parseRoute(m)
		if ok {
			r.changes = append(r.changes, c)
		}
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		// The first one of IPv4 separates the tables for good.
		r.ruled4 = r.ruled4 || len(m.payload) > 0 && m.payload[0] == unix.AF_INET
		r.readSoon(0)
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		r.receiveLink(m)
	case unix.RTM_NEWADDR:
		// It may bring dead next hops back to life.
		if r.hasDead {
			r.readSoon(1)
		}
	case unix.RTM_DELADDR, unix.RTM_NEWNEXTHOP, unix.RTM_DELNEXTHOP:
		// The kernel removes IPv4 routes that used it without saying so.
		r.readSoon(1)
	}
}

// receiveLink reads a struct ifinfomsg. A link that changes its state or ends takes its IPv4 routes with it, or
// changes which of their next hops are dead, and none of that is announced. Worse, the kernel announces the link
// first and then sees to the routes: hence the read to confirm.
func (r *Routes) receiveLink(m nlMessage) {
	if len(m.payload) < unix.SizeofIfInfomsg || m.payload[0] != unix.AF_UNSPEC {
		return
	}
	index := int32(binary.NativeEndian.Uint32(m.payload[4:]))
	state := binary.NativeEndian.Uint32(m.payload[8:]) & linkState
	if m.typ == unix.RTM_DELLINK {
		delete(r.links, index)
		r.readSoon(1)
		return
	}
	if old, known := r.links[index]; !known || old != state {
		r.links[index] = state
		r.readSoon(1)
	}
}

// publish applies what was announced.
func (r *Routes) publish() {
	if len(r.changes) == 0 {
		return
	}
	set, resync := r.current.Load().update(r.changes)
	r.current.Store(set)
	if resync {
		r.readSoon(0)
	}
	r.changes = r.changes[:0]
	if cap(r.changes) > 1024 {
		r.changes = nil
	}
}

// read replaces the routes by what the kernel has now.
func (r *Routes) read() error {
	r.readDue = time.Time{}
	if r.confirm > 0 {
		r.awaitRTNL()
	}
	start := time.Now() // to wait costs nothing
	r.readLast = start  // on failure too: the next attempt keeps its distance
	var interrupted error
	var rules [2][]rule
	for i, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		read, err := r.readRules(family)
		if errors.Is(err, errInterrupted) {
			interrupted = err
		} else if err != nil {
			return err
		}
		if family == unix.AF_INET && r.ruled4 || !slices.Equal(read, defaultRules(family == unix.AF_INET)) {
			rules[i] = append([]rule{}, read...)
		}
	}
	set := newRouteSet(rules)
	r.hasDead = false
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		body := make([]byte, unix.SizeofRtMsg)
		body[0] = family
		err := dumpNetlink(r.ns, unix.NETLINK_ROUTE, unix.RTM_GETROUTE, body, func(m nlMessage) {
			c, ok := parseRoute(m)
			// Without IPv6 in the kernel the question about its routes is answered with all the others.
			if !ok || m.payload[0] != family {
				return
			}
			r.hasDead = r.hasDead || c.route.anyDead()
			set.insert(c.prefix, c.route)
		})
		if errors.Is(err, errInterrupted) {
			interrupted = err
		} else if err != nil {
			return fmt.Errorf("read routes: %w", err)
		}
	}
	r.current.Store(set)
	r.readLast = time.Now()
	r.readCost = r.readLast.Sub(start)
	if r.confirm > 0 {
		r.confirm--
		r.readDue = r.readLast.Add(r.gap())
	}
	return interrupted
}

// awaitRTNL waits for the end of the configuration change that is under way, by a request that takes the lock
// which changes hold.
func (r *Routes) awaitRTNL() {
	body := make([]byte, unix.SizeofIfInfomsg)
	_ = dumpNetlink(r.ns, unix.NETLINK_ROUTE, unix.RTM_GETLINK, body, func(nlMessage) {})
}

// parseRoute reads a struct rtmsg and its attributes. ok is false when the route plays no part in the look-ups.
func parseRoute(m nlMessage) (c routeChange, ok bool) {
	if len(m.payload) < unix.SizeofRtMsg || (m.typ != unix.RTM_NEWROUTE && m.typ != unix.RTM_DELROUTE) {
		return c, false
	}
	family, bits, srcBits, tos := m.payload[0], m.payload[1], m.payload[2], m.payload[3]
	table, flags := uint32(m.payload[4]), binary.NativeEndian.Uint32(m.payload[8:])
	r := &c.route
	r.protocol, r.scope, r.typ = m.payload[5], m.payload[6], m.payload[7]

	var dst netip.Addr
	switch family {
	case unix.AF_INET:
		dst = netip.IPv4Unspecified()
	case unix.AF_INET6:
		dst = netip.IPv6Unspecified()
	default:
		return c, false
	}
	r.first.dead = flags&unix.RTNH_F_DEAD != 0
	var multipath []hop
	eachAttribute(m.payload[unix.SizeofRtMsg:], func(typ uint16, value []byte) {
		switch typ {
		case unix.RTA_DST:
			if a, ok := netip.AddrFromSlice(value); ok && a.Is4() == dst.Is4() {
				dst = a
			}
		case unix.RTA_TABLE:
			if len(value) == 4 {
				table = binary.NativeEndian.Uint32(value)
			}
		case unix.RTA_PRIORITY:
			if len(value) == 4 {
				r.metric = binary.NativeEndian.Uint32(value)
			}
		case rtaNHID:
			if len(value) == 4 {
				r.nexthop = binary.NativeEndian.Uint32(value)
			}
		case unix.RTA_OIF:
			if len(value) == 4 {
				r.first.ifindex = int32(binary.NativeEndian.Uint32(value))
			}
		case unix.RTA_GATEWAY, unix.RTA_VIA:
			if a, ok := parseGateway(typ, value); ok {
				r.first.gateway = a
			}
		case unix.RTA_MULTIPATH:
			multipath = parseMultipath(value)
		}
	})
	if len(multipath) > 0 {
		r.first, r.more = multipath[0], multipath[1:]
	}

	switch r.typ {
	case unix.RTN_THROW:
		r.kind = routeThrow
	case unix.RTN_BLACKHOLE, unix.RTN_UNREACHABLE, unix.RTN_PROHIBIT:
		r.kind = routeRefuse
	}
	r.id = table
	switch {
	case table == unix.RT_TABLE_LOCAL:
		r.table = tableLocal
	case table == unix.RT_TABLE_MAIN:
		r.table = tableMain
	case table == unix.RT_TABLE_DEFAULT && family == unix.AF_INET:
		// IPv6 has no rule that leads to it.
		r.table = tableDefault
	default:
		r.table = tableOther
	}
	if flags&unix.RTM_F_CLONED != 0 || srcBits != 0 || tos != 0 {
		return c, false
	}

	c.prefix = netip.PrefixFrom(dst, int(bits)).Masked()
	switch {
	case m.typ == unix.RTM_DELROUTE:
		c.op = routeDelete
	case m.flags&unix.NLM_F_REPLACE != 0:
		c.op = routeReplace
	case m.flags&unix.NLM_F_APPEND == 0:
		c.op = routePrepend
	}
	return c, c.prefix.IsValid()
}

// parseMultipath reads an array of struct rtnexthop.
func parseMultipath(value []byte) (hops []hop) {
	for len(value) >= unix.SizeofRtNexthop {
		size := int(binary.NativeEndian.Uint16(value))
		if size < unix.SizeofRtNexthop || size > len(value) {
			break
		}
		h := hop{
			ifindex: int32(binary.NativeEndian.Uint32(value[4:])),
			dead:    value[2]&unix.RTNH_F_DEAD != 0,
		}
		eachAttribute(value[unix.SizeofRtNexthop:size], func(typ uint16, value []byte) {
			if typ == unix.RTA_GATEWAY || typ == unix.RTA_VIA {
				if a, ok := parseGateway(typ, value); ok {
					h.gateway = a
				}
			}
		})
		hops = append(hops, h)
		value = value[min(nlAlign(size), len(value)):]
	}
	return hops
}

// parseGateway reads an RTA_GATEWAY, which is an address, or an RTA_VIA, where its family stands before it.
func parseGateway(typ uint16, value []byte) (netip.Addr, bool) {
	if typ == unix.RTA_VIA {
		if len(value) < 2 {
			return netip.Addr{}, false
		}
		value = value[2:]
	}
	a, ok := netip.AddrFromSlice(value)
	return a, ok && !a.IsUnspecified()
}

// anyDead reports whether a next hop of the route is dead.
func (r *route) anyDead() bool {
	for _, h := range r.more {
		if h.dead {
			return true
		}
	}
	return r.first.dead
}
