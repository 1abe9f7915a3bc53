package datapath

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestParseRoute(t *testing.T) {
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("the literals are little-endian")
	}
	header := func(family, bits, tos, table, typ byte, flags uint32, attrs ...byte) []byte {
		b := []byte{family, bits, 0, tos, table, unix.RTPROT_STATIC, unix.RT_SCOPE_UNIVERSE, typ}
		return append(binary.NativeEndian.AppendUint32(b, flags), attrs...)
	}
	static := func(r route) route { r.protocol = unix.RTPROT_STATIC; return r }
	gateway := netip.MustParseAddr("172.16.0.2")
	for _, tt := range []struct {
		name    string
		typ     uint16
		flags   uint16
		payload []byte
		want    routeChange
		ok      bool
	}{
		{
			"IPv4 with gateway", unix.RTM_NEWROUTE, unix.NLM_F_CREATE,
			header(unix.AF_INET, 8, 0, unix.RT_TABLE_MAIN, unix.RTN_UNICAST, 0,
				8, 0, unix.RTA_TABLE, 0, 254, 0, 0, 0,
				8, 0, unix.RTA_DST, 0, 10, 0, 0, 0,
				8, 0, unix.RTA_PRIORITY, 0, 5, 0, 0, 0,
				8, 0, unix.RTA_GATEWAY, 0, 172, 16, 0, 2,
				8, 0, unix.RTA_OIF, 0, 3, 0, 0, 0),
			routeChange{
				prefix: netip.MustParsePrefix("10.0.0.0/8"),
				route:  static(route{table: tableMain, id: unix.RT_TABLE_MAIN, typ: unix.RTN_UNICAST, metric: 5, first: hop{gateway: gateway, ifindex: 3}}),
				op:     routePrepend,
			}, true,
		},
		{
			"default route, appended, dead", unix.RTM_NEWROUTE, unix.NLM_F_CREATE | unix.NLM_F_APPEND,
			header(unix.AF_INET, 0, 0, unix.RT_TABLE_MAIN, unix.RTN_UNICAST, unix.RTNH_F_DEAD,
				8, 0, unix.RTA_OIF, 0, 3, 0, 0, 0),
			routeChange{
				prefix: netip.MustParsePrefix("0.0.0.0/0"),
				route:  static(route{table: tableMain, id: unix.RT_TABLE_MAIN, typ: unix.RTN_UNICAST, first: hop{ifindex: 3, dead: true}}),
				op:     routeAppend,
			}, true,
		},
		{
			"IPv4 through an IPv6 gateway, replacing", unix.RTM_NEWROUTE, unix.NLM_F_CREATE | unix.NLM_F_REPLACE,
			header(unix.AF_INET, 32, 0, unix.RT_TABLE_MAIN, unix.RTN_UNICAST, 0,
				8, 0, unix.RTA_DST, 0, 10, 1, 2, 3,
				22, 0, unix.RTA_VIA, 0, unix.AF_INET6, 0, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0),
			routeChange{
				prefix: netip.MustParsePrefix("10.1.2.3/32"),
				route:  static(route{table: tableMain, id: unix.RT_TABLE_MAIN, typ: unix.RTN_UNICAST, first: hop{gateway: netip.MustParseAddr("fd00::2")}}),
				op:     routeReplace,
			}, true,
		},
		{
			"multipath, deleted", unix.RTM_DELROUTE, 0,
			header(unix.AF_INET, 8, 0, unix.RT_TABLE_MAIN, unix.RTN_UNICAST, 0,
				8, 0, unix.RTA_DST, 0, 10, 0, 0, 0,
				28, 0, unix.RTA_MULTIPATH, 0,
				16, 0, unix.RTNH_F_DEAD, 0, 3, 0, 0, 0, 8, 0, unix.RTA_GATEWAY, 0, 172, 16, 0, 2,
				8, 0, 0, 0, 4, 0, 0, 0),
			routeChange{
				prefix: netip.MustParsePrefix("10.0.0.0/8"),
				route: static(route{
					table: tableMain, id: unix.RT_TABLE_MAIN, typ: unix.RTN_UNICAST,
					first: hop{gateway: gateway, ifindex: 3, dead: true}, more: []hop{{ifindex: 4}},
				}),
				op: routeDelete,
			}, true,
		},
		{
			"unreachable in the default table", unix.RTM_NEWROUTE, unix.NLM_F_CREATE,
			header(unix.AF_INET, 0, 0, unix.RT_TABLE_DEFAULT, unix.RTN_UNREACHABLE, 0),
			routeChange{
				prefix: netip.MustParsePrefix("0.0.0.0/0"),
				route:  static(route{table: tableDefault, id: unix.RT_TABLE_DEFAULT, typ: unix.RTN_UNREACHABLE, kind: routeRefuse}),
				op:     routePrepend,
			}, true,
		},
		{
			"IPv6 default table", unix.RTM_NEWROUTE, 0,
			header(unix.AF_INET6, 0, 0, unix.RT_TABLE_DEFAULT, unix.RTN_UNICAST, 0),
			routeChange{
				prefix: netip.MustParsePrefix("::/0"),
				route:  static(route{table: tableOther, id: unix.RT_TABLE_DEFAULT, typ: unix.RTN_UNICAST}),
				op:     routePrepend,
			}, true,
		},
		{
			"other table, long form", unix.RTM_NEWROUTE, 0,
			header(unix.AF_INET, 0, 0, unix.RT_TABLE_COMPAT, unix.RTN_UNICAST, 0, 8, 0, unix.RTA_TABLE, 0, 0, 1, 0, 0),
			routeChange{
				prefix: netip.MustParsePrefix("0.0.0.0/0"),
				route:  static(route{table: tableOther, id: 256, typ: unix.RTN_UNICAST}),
				op:     routePrepend,
			}, true,
		},
		{"for one TOS", unix.RTM_NEWROUTE, 0, header(unix.AF_INET, 0, 16, unix.RT_TABLE_MAIN, unix.RTN_UNICAST, 0), routeChange{}, false},
		{"clone", unix.RTM_NEWROUTE, 0, header(unix.AF_INET6, 0, 0, unix.RT_TABLE_MAIN, unix.RTN_UNICAST, unix.RTM_F_CLONED), routeChange{}, false},
		{"prefix too long", unix.RTM_NEWROUTE, 0, header(unix.AF_INET, 33, 0, unix.RT_TABLE_MAIN, unix.RTN_UNICAST, 0), routeChange{}, false},
		{"other family", unix.RTM_NEWROUTE, 0, header(unix.AF_MPLS, 0, 0, unix.RT_TABLE_MAIN, unix.RTN_UNICAST, 0), routeChange{}, false},
		{"truncated", unix.RTM_NEWROUTE, 0, header(unix.AF_INET, 0, 0, unix.RT_TABLE_MAIN, unix.RTN_UNICAST, 0)[:11], routeChange{}, false},
		{"no route", unix.RTM_NEWLINK, 0, header(unix.AF_INET, 0, 0, unix.RT_TABLE_MAIN, unix.RTN_UNICAST, 0), routeChange{}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := parseRoute(nlMessage{typ: tt.typ, flags: tt.flags, payload: tt.payload})
			if ok != tt.ok {
				t.Fatalf("ok = %v, want %v", ok, tt.ok)
			}
			if !ok {
				return
			}
			if diff := cmp.Diff(tt.want, got, compareRoutes, cmp.AllowUnexported(routeChange{}), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
				t.Errorf("change (-want +got):\n%s", diff)
			}
		})
	}
}

func FuzzParseRoute(f *testing.F) {
	f.Add(uint16(unix.RTM_NEWROUTE), make([]byte, unix.SizeofRtMsg))
	f.Fuzz(func(t *testing.T, typ uint16, payload []byte) {
		c, ok := parseRoute(nlMessage{typ: typ, payload: payload})
		if !ok {
			return
		}
		if !c.prefix.IsValid() || c.prefix != c.prefix.Masked() {
			t.Fatalf("prefix %v", c.prefix)
		}
		set, _ := newRouteSet([2][]rule{}).update([]routeChange{c, c})
		set.hop(c.prefix.Addr(), 0)
		set.hop(c.prefix.Addr(), c.route.first.ifindex)
	})
}
