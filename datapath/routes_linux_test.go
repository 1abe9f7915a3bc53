package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"ovpn-go/tun/netns"
)

func followRoutes(t testing.TB, ns *netns.NS) *Routes {
	t.Helper()
	r, err := NewRoutes(ns, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// kernelHop asks the kernel for the way to dst, out of the link oif if that is not 0.
func kernelHop(t testing.TB, h *netlink.Handle, dst netip.Addr, oif int) netip.Addr {
	t.Helper()
	routes, err := h.RouteGetWithOptions(dst.AsSlice(), &netlink.RouteGetOptions{OifIndex: oif})
	for _, expected := range []error{unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EACCES, unix.EINVAL} {
		if errors.Is(err, expected) {
			return dst
		}
	}
	if err != nil || len(routes) != 1 {
		t.Fatalf("route to %v: %v, %v", dst, routes, err)
	}
	via := routes[0].Gw
	if v, ok := routes[0].Via.(*netlink.Via); ok {
		via = v.Addr
	}
	if via == nil {
		return dst
	}
	gateway, _ := netip.AddrFromSlice(via)
	return gateway.Unmap()
}

// routeNet is a namespace with three links to send random routes through.
type routeNet struct {
	ns    *netns.NS
	h     *netlink.Handle
	links []netlink.Link
}

func newRouteNet(t testing.TB) *routeNet {
	t.Helper()
	n := &routeNet{ns: freshNS(t)}
	other := freshNS(t)
	n.h = nlHandle(t, n.ns)
	for i := range 3 {
		name := fmt.Sprintf("veth%d", i)
		addVeth(t, n.ns, name, other, name)
		addAddr(t, n.h, name, fmt.Sprintf("172.16.%d.1/24", i))
		addAddr(t, n.h, name, fmt.Sprintf("fd00:%d::1/64", i))
		link, err := n.h.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		n.links = append(n.links, link)
	}
	return n
}

// random returns a route that the kernel may or may not accept.
func (n *routeNet) random(rng *rand.Rand, is4 bool) *netlink.Route {
	i := rng.IntN(len(n.links))
	r := &netlink.Route{
		Dst:       ipNet(randomPrefix(rng, is4)),
		LinkIndex: n.links[i].Attrs().Index,
		Priority:  1 + rng.IntN(3),
		Table:     unix.RT_TABLE_MAIN,
		Type:      unix.RTN_UNICAST,
	}
	if rng.IntN(3) > 0 {
		r.Gw = net.IPv4(172, 16, byte(i), byte(2+rng.IntN(200)))
		if !is4 {
			r.Gw = netip.MustParseAddr(fmt.Sprintf("fd00:%d::%x", i, 2+rng.IntN(200))).AsSlice()
		}
	} else {
		r.Scope = unix.RT_SCOPE_LINK
	}
	switch rng.IntN(10) {
	case 0:
		r.Type = []int{unix.RTN_BLACKHOLE, unix.RTN_UNREACHABLE, unix.RTN_PROHIBIT, unix.RTN_THROW}[rng.IntN(4)]
		r.LinkIndex, r.Gw, r.Scope = 0, nil, 0
	case 1:
		if is4 {
			r.Table = unix.RT_TABLE_DEFAULT
		}
	case 2:
		r.Table = 100 // no look-up goes there
	case 3:
		if is4 {
			r.Tos = 0x10
		}
	}
	return r
}

// settled waits until the mirror agrees with the kernel about dsts.
func (n *routeNet) settled(t testing.TB, r *Routes, what string, dsts []netip.Addr) {
	t.Helper()
	var diff string
	end := time.Now().Add(10 * time.Second)
	for {
		want, got := map[string]netip.Addr{}, map[string]netip.Addr{}
		for _, dst := range dsts {
			want[dst.String()], got[dst.String()] = kernelHop(t, n.h, dst, 0), r.SourceHop(dst)
			for _, link := range n.links {
				index := link.Attrs().Index
				key := fmt.Sprintf("%v through %s", dst, link.Attrs().Name)
				want[key], got[key] = kernelHop(t, n.h, dst, index), r.NextHop(dst, index)
			}
		}
		if diff = cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff == "" {
			return
		}
		if time.Now().After(end) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	out, _ := n.ip("route", "show", "table", "all")
	out6, _ := n.ip("-6", "route", "show", "table", "all")
	t.Fatalf("%s: hops (-kernel +mirror):\n%s\n%s%s", what, diff, out, out6)
}

func (n *routeNet) ip(args ...string) (out string, err error) {
	err = n.ns.Do(func() error {
		b, err := exec.Command("ip", args...).CombinedOutput()
		out = string(b)
		return err
	})
	return out, err
}

// TestRoutesAnswerLikeTheKernel changes routes at random and compares the mirror's answers with the kernel's. The announcements may come
// faster than they are read, and be lost.
func TestRoutesAnswerLikeTheKernel(t *testing.T) {
	t.Run("all is announced", func(t *testing.T) { testRoutesAnswerLikeTheKernel(t, false) })
	t.Run("announcements are lost", func(t *testing.T) { testRoutesAnswerLikeTheKernel(t, true) })
}

func testRoutesAnswerLikeTheKernel(t *testing.T, overrun bool) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	n := newRouteNet(t)
	for range 30 { // some that are there before
		_ = n.h.RouteAdd(n.random(rng, rng.IntN(2) == 0))
	}
	r := followRoutes(t, n.ns)
	if overrun {
		shorten(t, r.listener)
	}
	var live []*netlink.Route
	for round := range 15 {
		var others sync.WaitGroup
		if overrun {
			others.Go(func() {
				changeRoutes(t, n.ns, unix.RTM_NEWROUTE, n.links[0].Attrs().Index, 1000)
				changeRoutes(t, n.ns, unix.RTM_DELROUTE, n.links[0].Attrs().Index, 900)
			})
		}
		for range 60 {
			is4 := rng.IntN(2) == 0
			route := n.random(rng, is4)
			var err error
			switch op := rng.IntN(8); {
			case op < 3 && len(live) > 0:
				i := rng.IntN(len(live))
				_ = n.h.RouteDel(live[i]) // may have gone with its link
				live = append(live[:i], live[i+1:]...)
				continue
			case op < 5:
				err = n.h.RouteReplace(route)
			case op == 5 && is4:
				err = n.h.RouteAppend(route)
			default:
				err = n.h.RouteAdd(route)
			}
			if err == nil {
				live = append(live, route)
			}
		}
		if i := rng.IntN(2 * len(n.links)); i < len(n.links) {
			if err := errors.Join(n.h.LinkSetDown(n.links[i]), n.h.LinkSetUp(n.links[i])); err != nil {
				t.Fatal(err)
			}
			// IPv6 addresses don't survive that.
			addAddr(t, n.h, n.links[i].Attrs().Name, fmt.Sprintf("fd00:%d::1/64", i))
		}
		others.Wait()
		var dsts []netip.Addr
		for range 40 {
			dsts = append(dsts, randomAddr(rng, rng.IntN(2) == 0))
		}
		n.settled(t, r, fmt.Sprintf("seed %d, round %d", seed, round), dsts)
	}
	if lost := dropped(t, n.ns, r.listener) > 0; lost != overrun {
		t.Errorf("announcements were lost: %v, want %v", lost, overrun)
	}
}

// TestRoutesFollow: one change at a time, of every kind the kernel tells or doesn't tell.
func TestRoutesFollow(t *testing.T) {
	n := newRouteNet(t)
	r := followRoutes(t, n.ns)
	dsts := []netip.Addr{
		netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("10.9.9.9"),
		netip.MustParseAddr("172.16.0.1"), netip.MustParseAddr("172.16.0.77"), netip.MustParseAddr("172.16.3.1"),
		netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("255.255.255.255"), netip.MustParseAddr("192.0.2.1"),
		netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8:9::1"),
		netip.MustParseAddr("fd00:0::1"), netip.MustParseAddr("fd00:0::77"), netip.MustParseAddr("::1"),
	}
	n.settled(t, r, "at the start", dsts)
	for _, step := range []string{
		"route add 10.0.0.0/8 via 172.16.0.2",
		"route add 10.1.0.0/16 via 172.16.1.2",
		"route add 10.1.0.0/16 via 172.16.2.2 metric 5",
		"route add default via 172.16.2.9",
		"-6 route add 2001:db8::/32 via fd00:0::2",
		"-6 route add 2001:db8::/48 via fd00:1::2 metric 7",
		"-6 route add default via fd00:2::9",
		"route replace 10.1.0.0/16 via 172.16.1.3",
		"route change 10.0.0.0/8 via 172.16.0.3",
		"route append 10.0.0.0/8 via 172.16.1.7",
		"route prepend 10.0.0.0/8 via 172.16.2.7",
		"route del 10.0.0.0/8 via 172.16.2.7",
		"-6 route replace 2001:db8::/32 via fd00:0::3",
		"link set veth1 down",
		"link set veth1 up",
		"route add 10.1.0.0/16 via 172.16.1.4",
		"route add 10.1.2.0/24 via inet6 fd00:0::55",
		"route add unreachable 10.1.2.3",
		"route del unreachable 10.1.2.3",
		"route add blackhole 10.9.0.0/16",
		"route add 192.0.2.0/24 via 172.16.0.4 table default",
		"route add throw 192.0.2.0/24",
		"route del throw 192.0.2.0/24",
		"route add local 10.9.9.0/24 dev lo table local",
		"addr add 172.16.3.1/24 dev veth0",
		"route add 10.1.2.3/32 via 172.16.3.2",
		"addr del 172.16.3.1/24 dev veth0",
		"route replace 10.1.2.3/32 via 172.16.1.8 src 172.16.2.1",
		"addr del 172.16.2.1/24 dev veth2",
		"addr add 172.16.2.1/24 dev veth2",
		"route add default via 172.16.2.9",
		"nexthop add id 7 via 172.16.1.20 dev veth1",
		"route replace 10.1.2.3/32 nhid 7",
		"nexthop replace id 7 via 172.16.1.21 dev veth1",
		"nexthop del id 7",
		"link set lo down",
		"link set lo up",
		"link set veth2 down",
		"route flush table main",
		"-6 route flush table main",
		"route add default via 172.16.1.9 dev veth1 onlink",
		"link del veth1",
	} {
		if step == "link del veth1" {
			n.links = n.links[:1]
		}
		if out, err := n.ip(strings.Fields(step)...); err != nil {
			t.Fatalf("ip %s: %v\n%s", step, err, out)
		}
		start := time.Now()
		n.settled(t, r, "after ip "+step, dsts)
		t.Logf("%4d ms: ip %s", time.Since(start).Milliseconds(), step)
	}
}

// TestRoutesAreReadAgainSoon: however long a read takes, the one to confirm it keeps to the longest gap.
func TestRoutesAreReadAgainSoon(t *testing.T) {
	n := newRouteNet(t)
	r := followRoutes(t, n.ns)
	r.Close()
	r.ns = n.ns // in place of the closed duplicate
	var batch strings.Builder
	for i := range 1 << 18 {
		fmt.Fprintf(&batch, "route add 100.%d.%d.%d/32 dev veth0\n", 64+i>>16, i>>8&255, i&255)
	}
	err := n.ns.Do(func() error {
		cmd := exec.Command("ip", "-batch", "-")
		cmd.Stdin = strings.NewReader(batch.String())
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	r.readSoon(1)
	if err := r.read(); err != nil {
		t.Fatal(err)
	}
	gap := r.readDue.Sub(r.readLast)
	t.Logf("read in %v, confirmed %v later", r.readCost, gap)
	if gap < readGap || gap > maxReadGap {
		t.Errorf("confirmed %v later, want %v to %v", gap, readGap, maxReadGap)
	}
}

// TestRoutesMultipath: of several next hops the first one that works counts.
func TestRoutesMultipath(t *testing.T) {
	n := newRouteNet(t)
	r := followRoutes(t, n.ns)
	v4, v6 := netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("2001:db8::1")
	index := func(i int) int { return n.links[i].Attrs().Index }
	type answers struct{ Source4, Link4, Source6, Link6 string }
	for _, step := range []struct {
		commands []string
		want     answers
	}{
		{
			[]string{
				"route add 10.0.0.0/8 nexthop via 172.16.0.2 dev veth0 nexthop via 172.16.1.2 dev veth1 nexthop via 172.16.1.3 dev veth1",
				"-6 route add 2001:db8::/32 nexthop via fd00:0::2 dev veth0 nexthop via fd00:1::2 dev veth1 nexthop via fd00:1::3 dev veth1",
			},
			answers{"172.16.0.2", "172.16.1.2", "fd00::2", "fd00:1::2"},
		},
		{
			[]string{"-6 route del 2001:db8::/32 via fd00:1::2 dev veth1"},
			answers{"172.16.0.2", "172.16.1.2", "fd00::2", "fd00:1::3"},
		},
		{
			[]string{"-6 route append 2001:db8::/32 via fd00:2::2 dev veth2", "-6 route del 2001:db8::/32 via fd00:0::2 dev veth0"},
			answers{"172.16.0.2", "172.16.1.2", "fd00:1::3", "fd00:1::3"},
		},
		{
			[]string{"link set veth0 down"},
			answers{"172.16.1.2", "172.16.1.2", "fd00:1::3", "fd00:1::3"},
		},
		{
			[]string{"link set veth0 up"},
			answers{"172.16.0.2", "172.16.1.2", "fd00:1::3", "fd00:1::3"},
		},
		{
			[]string{"link del veth1"},
			// The kernel removes an IPv4 route with all its next hops when the link of one is deleted.
			answers{"10.1.2.3", "10.1.2.3", "fd00:2::2", "2001:db8::1"},
		},
	} {
		for _, c := range step.commands {
			if out, err := n.ip(strings.Fields(c)...); err != nil {
				t.Fatalf("ip %s: %v\n%s", c, err, out)
			}
		}
		var diff string
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			got := answers{
				r.SourceHop(v4).String(), r.NextHop(v4, index(1)).String(),
				r.SourceHop(v6).String(), r.NextHop(v6, index(1)).String(),
			}
			if diff = cmp.Diff(step.want, got); diff == "" {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("after %q (-want +got):\n%s", step.commands, diff)
			}
		}
	}
}

// changeRoutes adds or deletes count host routes from 10.0.0.0 on through the link, as fast as it can.
func changeRoutes(t testing.TB, ns *netns.NS, typ uint16, ifindex, count int) {
	t.Helper()
	fd, err := openNetlink(ns, unix.NETLINK_ROUTE, 0)
	if err != nil {
		t.Error(err)
		return
	}
	defer unix.Close(fd)
	var batch []byte
	for i := range count {
		msg := make([]byte, 0, 64)
		flags := uint16(unix.NLM_F_REQUEST)
		if typ == unix.RTM_NEWROUTE {
			flags |= unix.NLM_F_CREATE
		}
		msg = binary.NativeEndian.AppendUint32(msg, 16+12+8+8)
		msg = binary.NativeEndian.AppendUint16(msg, typ)
		msg = binary.NativeEndian.AppendUint16(msg, flags)
		msg = append(msg, 0, 0, 0, 0, 0, 0, 0, 0) // sequence number, port
		msg = append(msg, unix.AF_INET, 32, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, unix.RT_SCOPE_LINK, unix.RTN_UNICAST, 0, 0, 0, 0)
		msg = append(msg, 8, 0, unix.RTA_DST, 0, 10, byte(i>>16), byte(i>>8), byte(i))
		msg = append(msg, 8, 0, unix.RTA_OIF, 0, byte(ifindex), 0, 0, 0)
		batch = append(batch, msg...)
		if len(batch) > 30_000 || i == count-1 {
			if err := unix.Sendto(fd, batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
				t.Error(err)
				return
			}
			batch = batch[:0]
		}
	}
}

// TestRoutesBurst: a hundred thousand changes at once take time in proportion to their number.
func TestRoutesBurst(t *testing.T) {
	const count = 100_000
	n := newRouteNet(t)
	r := followRoutes(t, n.ns)
	index := n.links[0].Attrs().Index
	for _, step := range []struct {
		name string
		do   func()
		want int
	}{
		{"add", func() { changeRoutes(t, n.ns, unix.RTM_NEWROUTE, index, count) }, count},
		{"delete", func() { changeRoutes(t, n.ns, unix.RTM_DELROUTE, index, count-10) }, 10},
		{"add again", func() { changeRoutes(t, n.ns, unix.RTM_NEWROUTE, index, count) }, count},
		{"link down", func() {
			if err := n.h.LinkSetDown(n.links[0]); err != nil {
				t.Fatal(err)
			}
		}, 0},
	} {
		start := time.Now()
		step.do()
		changed := time.Now()
		hosts := func() (hosts int) {
			for prefix := range r.current.Load().tables[tableMain].All4() {
				if prefix.Bits() == 32 && prefix.Addr().As4()[0] == 10 {
					hosts++
				}
			}
			return hosts
		}
		end := time.Now().Add(30 * time.Second)
		for hosts() != step.want {
			if time.Now().After(end) {
				t.Fatalf("%s: %d host routes, want %d", step.name, hosts(), step.want)
			}
			time.Sleep(5 * time.Millisecond)
		}
		t.Logf("%s: the kernel took %v, the mirror %v more", step.name, changed.Sub(start), time.Since(changed))
	}
}

// TestRoutesManyReaders: look-ups run while everything changes.
func TestRoutesManyReaders(t *testing.T) {
	n := newRouteNet(t)
	r := followRoutes(t, n.ns)
	index := n.links[0].Attrs().Index
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			dst := netip.MustParseAddr("10.0.0.7")
			for {
				select {
				case <-stop:
					return
				default:
				}
				if hop := r.NextHop(dst, index); hop != dst {
					t.Errorf("NextHop = %v", hop)
					return
				}
				r.SourceHop(dst)
				runtime.Gosched()
			}
		})
	}
	for range 20 {
		changeRoutes(t, n.ns, unix.RTM_NEWROUTE, index, 100)
		changeRoutes(t, n.ns, unix.RTM_DELROUTE, index, 100)
	}
	close(stop)
	readers.Wait()
}

func TestRoutesCloseLeavesNothing(t *testing.T) {
	ns := freshNS(t)
	descriptorsBefore, goroutinesBefore := descriptors(t), runtime.NumGoroutine()
	for range 10 {
		r, err := NewRoutes(ns, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
		if got := r.SourceHop(netip.MustParseAddr("192.0.2.1")); got != netip.MustParseAddr("192.0.2.1") {
			t.Errorf("SourceHop after Close = %v", got)
		}
	}
	if got := descriptors(t); got > descriptorsBefore {
		t.Errorf("descriptors = %d, want %d", got, descriptorsBefore)
	}
	eventually(t, "the goroutines have ended", func() bool { return runtime.NumGoroutine() <= goroutinesBefore })
}
