package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Of linux/fib_rules.h, what golang.org/x/sys/unix lacks.
const (
	fibRuleHeader = 12 // sizeof(struct fib_rule_hdr)
	fibRuleInvert = 0x2

	fraDst               = 1
	fraSrc               = 2
	fraIIFName           = 3
	fraGoto              = 4
	fraPriority          = 6
	fraFwMark            = 10
	fraFlow              = 11
	fraTunID             = 12
	fraSuppressIfgroup   = 13
	fraSuppressPrefixLen = 14
	fraTable             = 15
	fraFwMask            = 16
	fraPad               = 18
	fraL3MDev            = 19
	fraUIDRange          = 20
	fraProtocol          = 21
	fraDSCP              = 25
)

// parseRule reads a struct fib_rule_hdr and its attributes.
func parseRule(m nlMessage) (r rule, ok bool) {
	if m.typ != unix.RTM_NEWRULE || len(m.payload) < fibRuleHeader {
		return r, false
	}
	h := m.payload
	var any netip.Addr
	switch h[0] {
	case unix.AF_INET:
		any = netip.IPv4Unspecified()
	case unix.AF_INET6:
		any = netip.IPv6Unspecified()
	default:
		return r, false
	}
	r = rule{
		table: uint32(h[4]), action: ruleAction(h[7]), other: h[3] != 0, suppress: -1,
		invert: binary.NativeEndian.Uint32(h[8:])&fibRuleInvert != 0,
	}
	from, to := any, any
	mark, mask := uint32(0), ^uint32(0)
	number := func(value []byte, into *uint32) {
		if len(value) == 4 {
			*into = binary.NativeEndian.Uint32(value)
		}
	}
	suppress := ^uint32(0)
	var l3mdev bool
	eachAttribute(h[fibRuleHeader:], func(typ uint16, value []byte) {
		switch typ {
		case fraDst, fraSrc:
			if a, ok := netip.AddrFromSlice(value); ok && a.Is4() == any.Is4() {
				if typ == fraDst {
					to = a
				} else {
					from = a
				}
			}
		case fraPriority:
			number(value, &r.priority)
		case fraTable:
			number(value, &r.table)
		case fraGoto:
			number(value, &r.target)
		case fraFwMark:
			number(value, &mark)
		case fraFwMask:
			number(value, &mask)
		case fraSuppressPrefixLen:
			number(value, &suppress)
		case fraIIFName:
			r.other = r.other || string(value) != "lo\x00"
		case fraUIDRange:
			r.other = r.other || len(value) != 8 || binary.NativeEndian.Uint32(value) != 0
		case fraDSCP:
			r.other = r.other || len(value) != 1 || value[0] != 0
		case fraL3MDev:
			l3mdev = len(value) == 1 && value[0] != 0
		case fraTunID:
			r.other = r.other || slices.ContainsFunc(value, func(b byte) bool { return b != 0 })
		case fraFlow, fraSuppressIfgroup, fraPad, fraProtocol:
			// Nothing that a flow is chosen by.
		default:
			// An output interface, a protocol, ports, a flow label, or what is not known yet.
			r.other = true
		}
	})
	r.other = r.other || l3mdev || mark&mask != 0
	if l3mdev {
		r.table = unix.RT_TABLE_UNSPEC
	}
	r.suppress = int(int32(suppress))
	// The mask of no bits takes everything.
	if h[1] > 0 {
		r.to = netip.PrefixFrom(to, int(h[1])).Masked()
		ok = r.to.IsValid()
	} else {
		ok = true
	}
	if h[2] > 0 {
		r.from = netip.PrefixFrom(from, int(h[2])).Masked()
		ok = ok && r.from.IsValid()
	}
	return r, ok
}

// readRules reads a family's rules, in the kernel's order.
func (r *Routes) readRules(family byte) (rules []rule, err error) {
	body := make([]byte, fibRuleHeader)
	body[0] = family
	err = dumpNetlink(r.ns, unix.NETLINK_ROUTE, unix.RTM_GETRULE, body, func(m nlMessage) {
		if c, ok := parseRule(m); ok && m.payload[0] == family {
			rules = append(rules, c)
		}
	})
	if err != nil && !errors.Is(err, errInterrupted) {
		// A kernel without rules (CONFIG_IP_MULTIPLE_TABLES) has the default ones.
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) {
			return defaultRules(family == unix.AF_INET), nil
		}
		return nil, fmt.Errorf("read routing rules: %w", err)
	}
	return rules, err
}
