package datapath

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

func TestPathLimits(t *testing.T) {
	for _, tt := range []struct {
		rule              string
		route, fragment   int
		v6                bool
		mss               int
		whole, mss4, mss6 uint32
	}{
		{"nothing is known", 0, 0, false, MSSAuto, 0, 0, 0},
		{"the route's", 1400, 0, false, MSSAuto, 1348, 1308, 1288},
		{"less over IPv6", 1400, 0, true, MSSAuto, 1328, 1288, 1268},
		{"Ethernet may be PPPoE", 1500, 0, false, MSSAuto, 1448, 1400, 1380},
		{"what fragments tell", 1400, 1300, false, MSSAuto, 1248, 1208, 1188},
		{"a number", 1400, 0, false, 1200, 1348, 1108, 1088},
		{"the smallest number, over IPv6", 1400, 0, true, MinMSS, 1328, 464, 444},
		{"no MSS", 1400, 0, false, MSSOff, 1348, 0, 0},
		{"the loopback interface", 65536, 0, false, MSSAuto, 65483, 65443, 65423},
		{"no narrower than 576", 68, 0, false, MSSAuto, 524, 484, 464},
		{"no narrower than 1280 over IPv6", 68, 0, true, MSSAuto, 1208, 1168, 1148},
		{"forged fragments", 1400, 28, false, MSSAuto, 524, 484, 464},
		{"forged fragments over IPv6", 1400, 60, true, MSSAuto, 1208, 1168, 1148},
	} {
		p := path{route: tt.route, v6: tt.v6}
		fit := Fit{MSS: tt.mss}
		p.settle(fit)
		if tt.fragment != 0 {
			p.cameInFragments(tt.fragment, fit, 0)
		}
		if whole, mss4, mss6 := p.whole.Load(), p.mss4.Load(), p.mss6.Load(); whole != tt.whole || mss4 != tt.mss4 || mss6 != tt.mss6 {
			t.Errorf("%s: %d, MSS %d and %d; want %d, %d and %d", tt.rule, whole, mss4, mss6, tt.whole, tt.mss4, tt.mss6)
		}
	}
}

func TestPathProbeGivesUpItsPort(t *testing.T) {
	fd, err := openProbe(unix.AF_INET, udpInfo{})
	if err != nil {
		t.Fatal(err)
	}
	p := &pathProbe{v4: fd, v6: -1}
	t.Cleanup(p.close)
	for _, tt := range []struct {
		rule, remote string
		found        bool
	}{
		{"when it has found a route", "127.0.0.1:1194", true},
		{"when it may not connect", "255.255.255.255:1194", false},
	} {
		if _, err := p.mtu(netip.MustParseAddrPort(tt.remote), 0); (err == nil) != tt.found {
			t.Errorf("%s: %v", tt.rule, err)
		}
		name, err := unix.Getsockname(fd)
		if err != nil {
			t.Fatal(err)
		}
		if in4, ok := name.(*unix.SockaddrInet4); !ok || in4.Port != 0 {
			t.Errorf("%s: it is bound to %+v", tt.rule, name)
		}
	}
}
