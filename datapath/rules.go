package datapath

import (
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"
	"golang.org/x/sys/unix"
)

// ruleAction is what a routing rule does (FR_ACT_*, linux/fib_rules.h).
type ruleAction uint8

const (
	ruleToTable ruleAction = 1
	ruleGoto    ruleAction = 2
	ruleNop     ruleAction = 3
	// All others, FR_ACT_BLACKHOLE, FR_ACT_UNREACHABLE and FR_ACT_PROHIBIT, refuse.
)

// rule is one of a family's routing rules (ip rule). The flow that is looked up for the reverse path check has a
// destination and nothing else: no source, mark, port or protocol, and the loopback interface as its input.
type rule struct {
	priority uint32
	action   ruleAction
	table    uint32 // of ruleToTable; RT_TABLE_UNSPEC: that of a VRF
	target   uint32 // of ruleGoto: a priority
	to       netip.Prefix
	from     netip.Prefix // invalid, as to: any
	// other: it asks for something else that the bare flow hasn't.
	other bool
	// invert: it is for what does not match.
	invert bool
	// suppress is the prefix length in bits up to which a route that it finds is not taken, -1: none.
	suppress int
}

// matches reports whether the rule is for a flow with that destination and nothing else.
func (r *rule) matches(dst netip.Addr) bool {
	ok := !r.other
	if r.from.IsValid() && r.from.Bits() > 0 {
		// An unset IPv4 source is compared as an address, an unset IPv6 source has none.
		ok = ok && dst.Is4() && r.from.Contains(netip.IPv4Unspecified())
	}
	return (ok && r.takes(dst)) != r.invert
}

// mayMatch reports whether the rule may be for a packet to dst about which nothing else is known.
func (r *rule) mayMatch(dst netip.Addr) bool { return r.invert || r.takes(dst) }

func (r *rule) takes(dst netip.Addr) bool { return !r.to.IsValid() || r.to.Contains(dst) }

// defaultRules are those that a namespace begins with.
func defaultRules(is4 bool) []rule {
	rules := []rule{
		{priority: 0, action: ruleToTable, table: unix.RT_TABLE_LOCAL, suppress: -1},
		{priority: 32766, action: ruleToTable, table: unix.RT_TABLE_MAIN, suppress: -1},
	}
	if is4 {
		rules = append(rules, rule{priority: 32767, action: ruleToTable, table: unix.RT_TABLE_DEFAULT, suppress: -1})
	}
	return rules
}

// ruledRoutes are the routes of one family where rules other than the default ones choose among the tables. Once
// published it is immutable.
type ruledRoutes struct {
	rules  []rule // in the kernel's order
	tables map[uint32]*bart.Table[[]route]
}

// hop is routeSet.hop. A packet that came to the link by other rules than a bare flow would, because of its mark, its
// source or where it came from, is looked for in the tables that any rule may have led it to.
func (s *ruledRoutes) hop(dst netip.Addr, ifindex int32) netip.Addr {
	h := s.walk(dst, 0, (*rule).matches)
	if ifindex != 0 && h.ifindex != ifindex {
		h = s.walk(dst, ifindex, (*rule).mayMatch)
	}
	if h.gateway.IsValid() {
		return h.gateway
	}
	return dst
}

// walk goes by the rules that match and returns the next hop where that ends, a zero one if there is none.
func (s *ruledRoutes) walk(dst netip.Addr, ifindex int32, match func(*rule, netip.Addr) bool) hop {
	for i := 0; i < len(s.rules); i++ {
		r := &s.rules[i]
		if !match(r, dst) {
			continue
		}
		switch r.action {
		case ruleNop:
			continue
		case ruleGoto:
			if ifindex != 0 {
				continue // it may not have matched
			}
			// The first one of that priority, which is behind this one; without one the rule does nothing.
			if at := s.at(r.target); at > i {
				i = at - 1
			}
			continue
		case ruleToTable:
		default:
			if ifindex != 0 {
				continue
			}
			return hop{}
		}
		if r.table == unix.RT_TABLE_UNSPEC {
			if h, ok := s.anywhere(dst, ifindex); ok {
				return h
			}
			continue
		}
		t := s.tables[r.table]
		if t == nil {
			continue
		}
		h, kind, found := lookupRoute(t, dst, ifindex)
		if found && r.suppress >= 0 {
			_, _, bits := lookupPrefix(t, dst, ifindex)
			found = kind != routeUse || bits > r.suppress
		}
		if !found || kind == routeThrow {
			continue
		}
		if dst.Is4() && unroutedIPv4(t, dst) {
			h.gateway = netip.Addr{}
		}
		return h
	}
	return hop{}
}

// at returns the index of the first rule of a priority, or -1.
func (s *ruledRoutes) at(priority uint32) int {
	return slices.IndexFunc(s.rules, func(r rule) bool { return r.priority == priority })
}

// anywhere looks for a route out of the link in the tables that no rule names, one of which is that of the link's VRF.
func (s *ruledRoutes) anywhere(dst netip.Addr, ifindex int32) (best hop, found bool) {
	if ifindex == 0 {
		return best, false
	}
	var lowest uint32
	for id, t := range s.tables {
		if found && id > lowest || slices.ContainsFunc(s.rules, func(r rule) bool { return r.table == id }) {
			continue
		}
		if h, kind, bits := lookupPrefix(t, dst, ifindex); bits >= 0 && kind == routeUse {
			best, lowest, found = h, id, true
		}
	}
	return best, found
}
