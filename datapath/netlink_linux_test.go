package datapath

import (
	"encoding/binary"
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"ovpn-go/tun/netns"
)

// freshNS makes a network namespace that nothing else refers to, with its loopback device up.
func freshNS(t testing.TB) *netns.NS {
	t.Helper()
	ns, err := netns.Create()
	if errors.Is(err, unix.EPERM) {
		if os.Getenv("OVPN_GO_REQUIRE") != "" {
			t.Fatalf("OVPN_GO_REQUIRE is set, but creating a network namespace is not permitted: %v", err)
		}
		t.Skip("creating a network namespace needs CAP_SYS_ADMIN")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	h := nlHandle(t, ns)
	lo, err := h.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	return ns
}

// nlHandle returns an independent rtnetlink implementation, for tests to change a namespace with.
func nlHandle(t testing.TB, ns *netns.NS) *netlink.Handle {
	t.Helper()
	var h *netlink.Handle
	err := ns.Do(func() (err error) {
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

// addAddr gives an address in CIDR notation to a link; an IPv6 address is usable at once.
func addAddr(t testing.TB, h *netlink.Handle, link, cidr string) {
	t.Helper()
	l, err := h.LinkByName(link)
	if err != nil {
		t.Fatal(err)
	}
	addr, err := netlink.ParseAddr(cidr)
	if err != nil {
		t.Fatal(err)
	}
	addr.Flags = unix.IFA_F_NODAD
	if err := h.AddrAdd(l, addr); err != nil {
		t.Fatalf("add %s to %s: %v", cidr, link, err)
	}
	// The kernel makes an IPv6 address reachable from a work queue.
	eventually(t, cidr+" is a local address", func() bool {
		routes, err := h.RouteGet(addr.IP)
		return err == nil && len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL
	})
}

// addVeth makes a pair of virtual Ethernet devices, both up, one end in each namespace.
func addVeth(t testing.TB, a *netns.NS, nameA string, b *netns.NS, nameB string) {
	t.Helper()
	ha, hb := nlHandle(t, a), nlHandle(t, b)
	err := ha.LinkAdd(&netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: nameA},
		PeerName:      nameB,
		PeerNamespace: netlink.NsFd(int(b.File().Fd())),
	})
	if err != nil {
		t.Fatalf("add veth: %v", err)
	}
	for h, name := range map[*netlink.Handle]string{ha: nameA, hb: nameB} {
		l, err := h.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := h.LinkSetUp(l); err != nil {
			t.Fatal(err)
		}
	}
}

// eventually fails the test unless cond becomes true soon.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still not: %s", what)
		}
	}
}

func TestEachMessageStopsAtBadLengths(t *testing.T) {
	msg := func(size uint32, typ uint16, payload ...byte) []byte {
		b := make([]byte, 16, 16+len(payload))
		binary.NativeEndian.PutUint32(b, size)
		binary.NativeEndian.PutUint16(b[4:], typ)
		return append(b, payload...)
	}
	for _, tt := range []struct {
		name string
		in   []byte
		want int
	}{
		{"empty datagram", nil, 0},
		{"short header", msg(16, 3)[:15], 0},
		{"one message", msg(17, 3, 1), 1},
		{"two messages with padding between", append(msg(17, 3, 1, 0, 0, 0), msg(16, 3)...), 2},
		{"length shorter than the header", msg(15, 3), 0},
		{"length beyond the datagram", msg(21, 3, 1, 2, 3, 4), 0},
		{"good message before a bad one", append(msg(16, 3), msg(99, 3)...), 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := 0
			eachMessage(tt.in, func(nlMessage) { got++ })
			if got != tt.want {
				t.Errorf("messages = %d, want %d", got, tt.want)
			}
		})
	}
}

// shorten makes a listener's queue as short as it can be: a message or two.
func shorten(t testing.TB, l *nlListener) {
	t.Helper()
	if err := netns.Control(l.file, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1)
	}); err != nil {
		t.Error(err)
	}
}

// dropped returns how many messages the kernel had no room for in the queue of a listener in ns.
func dropped(t testing.TB, ns *netns.NS, l *nlListener) (n int) {
	t.Helper()
	var st unix.Stat_t
	var table []byte
	if err := errors.Join(
		netns.Control(l.file, func(fd int) error { return unix.Fstat(fd, &st) }),
		ns.Do(func() (err error) { table, err = os.ReadFile("/proc/thread-self/net/netlink"); return err }),
	); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		const drops, inode = 8, 9 // columns
		if f := strings.Fields(line); len(f) > inode && f[inode] == strconv.FormatUint(st.Ino, 10) {
			n, _ = strconv.Atoi(f[drops])
			return n
		}
	}
	t.Fatalf("the listener is not among\n%s", table)
	return 0
}

func TestListenerReportsAnOverrun(t *testing.T) {
	ns := freshNS(t)
	l, err := listenNetlink(ns, unix.NETLINK_ROUTE, unix.RTNLGRP_LINK)
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	shorten(t, l)
	h := nlHandle(t, ns)
	lo, err := h.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		if err := h.LinkSetMTU(lo, 1500+i); err != nil {
			t.Fatal(err)
		}
	}
	lost := false
	eventually(t, "an overrun is reported", func() bool {
		l, err := l.receive(time.Millisecond, func(nlMessage) {})
		if err != nil {
			t.Fatal(err)
		}
		lost = lost || l
		return lost
	})
}

func TestListenerCloseEndsReceive(t *testing.T) {
	l, err := listenNetlink(freshNS(t), unix.NETLINK_ROUTE, unix.RTNLGRP_LINK)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() {
		_, err := l.receive(time.Millisecond, func(nlMessage) {})
		ended <- err
	}()
	l.close()
	if err := <-ended; !errors.Is(err, os.ErrClosed) {
		t.Errorf("receive returned %v when closed, want %v", err, os.ErrClosed)
	}
	if _, err := l.receive(time.Millisecond, func(nlMessage) {}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("receive returned %v after close, want %v", err, os.ErrClosed)
	}
}
