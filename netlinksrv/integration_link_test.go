package netlinksrv

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv/uapi"
	"ovpn-go/peers"
	"ovpn-go/tun/netns"
)

// linkNamed asks the kernel for a link as a client would see it.
func linkNamed(t *testing.T, s *Server, ns *netns.NS, name string) *linkMessage {
	t.Helper()
	c, err := dialNetlink(ns, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	answers, err := c.ask(unix.RTM_GETLINK, 0, routeMessage(0, 0, ifinfo{}, ftext(unix.IFLA_IFNAME, name))[headerSize:])
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	m, ok := parseLinkMessage(s.RewriteRoute(ns.ID(), &LinkDumps{}, answers[0]))
	if !ok {
		t.Fatal("no link in the answer")
	}
	return m
}

// routeAsk sends a request as a door does whose verdict was Native.
func routeAsk(t *testing.T, ns *netns.NS, req []byte) error {
	t.Helper()
	c, err := dialNetlink(ns, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	h := parseHeader(req)
	_, err = c.ask(h.kind, h.flags, req[headerSize:])
	return err
}

func requireTUN(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		skip(t, "no interface can be made: %v", err)
	}
	f.Close()
}

// TestIntegrationLink takes a link from its creation to its end, on real interfaces.
func TestIntegrationLink(t *testing.T) {
	requireTUN(t)
	ns, elsewhere := newNamespace(t), newNamespace(t)
	s := liveServer(t)
	task := newTask(t)
	create := func(name string, fields ...field) []byte {
		return routeMessage(unix.RTM_NEWLINK, createFlags, ifinfo{0, unix.IFF_UP, unix.IFF_UP},
			append([]field{ftext(unix.IFLA_IFNAME, name)}, fields...)...)
	}
	if v := s.Route(task, ns, create("vpn0", fkind("ovpn", fmode(1)), f32(unix.IFLA_MTU, 1300), f32(unix.IFLA_TXQLEN, 77))); v != Acknowledge {
		t.Fatalf("verdict %v, want Acknowledge", v)
	}
	link := linkNamed(t, s, ns, "vpn0")
	if link == nil {
		t.Fatal("the interface is not there")
	}
	if got := textOf(link.info(unix.IFLA_INFO_KIND)); got != "ovpn" {
		t.Errorf("kind %q", got)
	}
	if mode, errno := modeOf(link); mode != peers.MP || errno != 0 {
		t.Errorf("mode %v, %v", mode, errno)
	}
	if mtu, queue := link.attrs[unix.IFLA_MTU], link.attrs[unix.IFLA_TXQLEN]; mtu.u32() != 1300 || queue.u32() != 77 {
		t.Errorf("MTU %d, queue length %d, want 1300 and 77", mtu.u32(), queue.u32())
	}
	if link.flags&unix.IFF_UP == 0 {
		t.Error("the interface is down")
	}

	if v := s.Route(task, ns, create("vpn0", fkind("ovpn"))); v != Native {
		t.Errorf("verdict %v for a name that is taken, want Native", v)
	}
	if err := routeAsk(t, ns, create("vpn0", fkind("ovpn"))); !errors.Is(err, unix.EEXIST) {
		t.Errorf("the kernel says %v to a name that is taken, want EEXIST", err)
	}
	if v := s.Route(task, ns, create("vpn1", fkind("ovpn"), f32(unix.IFLA_MASTER, 1))); v.Refused() == 0 {
		t.Errorf("verdict %v for a master that can't be one", v)
	}
	if linkNamed(t, s, ns, "vpn1") != nil {
		t.Error("an interface remains of a request that failed")
	}

	task.files[20] = elsewhere.File()
	defer delete(task.files, 20)
	there := create("vpn0", fkind("ovpn"), f32(unix.IFLA_NET_NS_FD, 20))
	if v := s.Route(task, ns, there); v != Acknowledge {
		t.Fatalf("verdict %v in another namespace, want Acknowledge", v)
	}
	if link := linkNamed(t, s, elsewhere, "vpn0"); link == nil || textOf(link.info(unix.IFLA_INFO_KIND)) != "ovpn" {
		t.Error("no interface of kind ovpn in the other namespace")
	}
	if v := s.Route(task, ns, there); v != Refuse(unix.EEXIST) {
		t.Errorf("verdict %v for a name that is taken there, want EEXIST", v)
	}
	if v := s.Route(task, ns, create("v%d", fkind("ovpn"))); v != Acknowledge || linkNamed(t, s, ns, "v0") == nil {
		t.Errorf("verdict %v for a pattern", v)
	}

	del := routeMessage(unix.RTM_DELLINK, requestFlags, ifinfo{index: link.index})
	if v := s.Route(task, ns, del); v != Native {
		t.Errorf("verdict %v for deletion, want Native", v)
	}
	l := s.linkAt(ns.ID(), link.index)
	if l == nil {
		t.Fatal("the link is not known any more")
	}
	if err := routeAsk(t, ns, del); err != nil {
		t.Fatalf("delete link: %v", err)
	}
	if linkNamed(t, s, ns, "vpn0") != nil {
		t.Error("the interface is still there")
	}
	c := clientIn(t, s, ns, newTask(t))
	req := message(uapi.CmdPeerGet, requestFlags, f32(uapi.AttrIfindex, link.index))
	nativeEndian.PutUint16(req[4:], s.ids[ovpnFamily].family)
	if got := c.outcome(req); got.Errno != unix.ENODEV {
		t.Errorf("request for a deleted link: %v, want ENODEV", got.Errno)
	}
	select {
	case <-l.dev.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the device did not notice its interface's end")
	}
	if looks, ok := s.looksAt(ns.ID(), link.index); !ok || looks.mode != peers.MP {
		t.Errorf("looks %v, %v after the end", looks, ok)
	}
}

// TestIntegrationPeers gives a real device real sockets, one of them in another namespace.
func TestIntegrationPeers(t *testing.T) {
	requireTUN(t)
	ns, elsewhere := newNamespace(t), newNamespace(t)
	s := liveServer(t)
	task := newTask(t)
	here := netip.MustParseAddrPort("0.0.0.0:1194")
	task.files[20] = socketIn(t, ns, unix.AF_INET, unix.SOCK_DGRAM, here)
	task.files[21] = socketIn(t, elsewhere, unix.AF_INET, unix.SOCK_DGRAM, here)
	if v := s.Route(task, ns, routeMessage(unix.RTM_NEWLINK, createFlags, ifinfo{}, ftext(unix.IFLA_IFNAME, "vpn0"), fkind("ovpn", fmode(1)))); v != Acknowledge {
		t.Fatalf("verdict %v", v)
	}
	ifindex := linkNamed(t, s, ns, "vpn0").index
	c := clientIn(t, s, ns, task)
	listener, stranger := clientIn(t, s, elsewhere, task), clientIn(t, s, ns, task)
	for _, l := range []*client{listener, stranger} {
		if err := l.SetOption(task, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, number(s.ids[ovpnFamily].group)); err != nil {
			t.Fatal(err)
		}
	}
	do := func(cmd uint8, fields ...field) [][]byte {
		msg := message(cmd, requestFlags, append([]field{f32(uapi.AttrIfindex, ifindex)}, fields...)...)
		nativeEndian.PutUint16(msg[4:], s.ids[ovpnFamily].family)
		return c.ask(msg)
	}
	succeed := func(cmd uint8, fields ...field) {
		t.Helper()
		got := do(cmd, fields...)
		if diff := cmp.Diff(refusal{}, readRefusal(t, got[len(got)-1])); diff != "" {
			t.Fatalf("command %d (-want +got):\n%s", cmd, diff)
		}
	}
	for id, fd := range map[uint32]uint32{1: 20, 2: 21} {
		succeed(uapi.CmdPeerNew, fnest(uapi.AttrPeer, f32(uapi.PeerID, id), f32(uapi.PeerSocket, fd), faddr(uapi.PeerRemoteIPv4, "192.0.2.1"),
			f16(uapi.PeerRemotePort, 1194), faddr(uapi.PeerVPNIPv4, fmt.Sprintf("10.8.0.%d", id))))
	}
	succeed(uapi.CmdKeyNew, fnest(uapi.AttrKeyconf, f32(uapi.KeyPeerID, 1), f32(uapi.KeySlot, 0), f32(uapi.KeyKeyID, 3), f32(uapi.KeyCipher, 1),
		direction(uapi.KeyEncryptDir, make([]byte, 32)), direction(uapi.KeyDecryptDir, make([]byte, 32))))
	attrs := func(id uint32) map[uint16]attribute {
		found := map[uint16]attribute{}
		each(do(uapi.CmdPeerGet, fnest(uapi.AttrPeer, f32(uapi.PeerID, id)))[0], firstAttribute, func(a attribute) {
			eachInside(a, func(a attribute) { found[a.number()] = a })
		})
		return found
	}
	one, two := attrs(1), attrs(2)
	if a := one[uapi.PeerSocketNetNSID]; a.present() {
		t.Error("a socket in the requester's namespace has a namespace id")
	}
	if a := two[uapi.PeerSocketNetNSID]; !a.present() || int32(a.u32()) < 0 {
		t.Errorf("namespace id of a socket elsewhere: %+v", a)
	}
	if got := one[uapi.PeerLocalPort].be16(); got != 1194 {
		t.Errorf("local port %d", got)
	}
	// The listener is where peer 2's socket is, and the stranger where the device is.
	succeed(uapi.CmdPeerDel, fnest(uapi.AttrPeer, f32(uapi.PeerID, 2)))
	if got := listener.in.take(); len(got) != 1 || got[0][headerSize] != uapi.CmdPeerDelNtf {
		t.Errorf("notifications in the socket's namespace:\n%s", hexLines(got))
	}
	if got := stranger.in.take(); len(got) != 0 {
		t.Errorf("notifications in the device's namespace:\n%s", hexLines(got))
	}
	// Deleting the link announces peer 1 before the kernel has even seen the request.
	s.Route(task, ns, routeMessage(unix.RTM_DELLINK, requestFlags, ifinfo{index: ifindex}))
	if got := stranger.in.take(); len(got) != 1 || got[0][headerSize] != uapi.CmdPeerDelNtf {
		t.Errorf("notifications when the link is deleted:\n%s", hexLines(got))
	}
}
