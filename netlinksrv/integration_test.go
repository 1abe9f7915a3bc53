package netlinksrv

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv/uapi"
	"ovpn-go/peers"
	"ovpn-go/tun/netns"
)

// skip says why a test can't run here, which is a failure where OVPN_GO_REQUIRE promises that it can.
func skip(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("OVPN_GO_REQUIRE") != "" {
		t.Fatalf("OVPN_GO_REQUIRE is set, but "+format, args...)
	}
	t.Skipf(format, args...)
}

// newNamespace makes a namespace that lives as long as the test.
func newNamespace(t *testing.T) *netns.NS {
	t.Helper()
	ns, err := netns.Create()
	if err != nil {
		skip(t, "no network namespace can be made: %v", err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// liveServer is a server as it runs outside of tests.
func liveServer(t *testing.T) *Server {
	t.Helper()
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// clientIn opens a bound socket in a namespace.
func clientIn(t *testing.T, s *Server, ns *netns.NS, task *fakeTask) *client {
	t.Helper()
	c := &client{t: t, task: task, in: newInbox()}
	var err error
	if c.GenericSocket, err = s.OpenGeneric(ns, c.in.deliver); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	if err := c.Bind(task, 0, 0); err != nil {
		t.Fatal(err)
	}
	return c
}

// socketIn opens a socket in a namespace and binds it if addr is valid.
func socketIn(t *testing.T, ns *netns.NS, family, kind int, addr netip.AddrPort) *os.File {
	t.Helper()
	var file *os.File
	err := ns.Do(func() error {
		fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		file = os.NewFile(uintptr(fd), "socket")
		if addr.IsValid() {
			return unix.Bind(fd, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()})
		}
		return nil
	})
	if file != nil {
		t.Cleanup(func() { file.Close() })
	}
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// native asks the kernel on a socket that is nobody's twin, and returns its datagrams with the port put in.
func native(t *testing.T, ns *netns.NS, port uint32, options []int, req []byte) [][]byte {
	t.Helper()
	in := newInbox()
	tw, err := openTwin(ns, in.deliver)
	if err != nil {
		t.Fatal(err)
	}
	defer tw.close()
	for _, o := range options {
		if err := tw.setOption(unix.SOL_NETLINK, o, number(1)); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.send(req); err != nil {
		t.Fatal(err)
	}
	tw.drain()
	got := in.take()
	for _, d := range got {
		for {
			msg, rest, ok := cutMessage(d)
			if !ok {
				break
			}
			nativeEndian.PutUint32(msg[12:], port)
			d = rest
		}
	}
	return got
}

// familyID resolves a family of the kernel's.
func familyID(t *testing.T, ns *netns.NS, name string) (id uint16) {
	t.Helper()
	for _, d := range native(t, ns, 0, nil, control(unix.CTRL_CMD_GETFAMILY, unix.NLM_F_REQUEST, fname(name))) {
		each(d, firstAttribute, func(a attribute) {
			if a.number() == unix.CTRL_ATTR_FAMILY_ID {
				id = nativeEndian.Uint16(a.payload)
			}
		})
	}
	if id == 0 {
		skip(t, "this kernel has no family %q", name)
	}
	return id
}

// Of the ethtool family (include/uapi/linux/ethtool_netlink.h): two requests without and one with GENL_UNS_ADMIN_PERM.
const (
	ethtoolLinkStateGet = 6
	ethtoolStringsGet   = 1
	ethtoolPauseSet     = 22
)

func ethtool(family uint16, cmd uint8, flags uint16, fields ...field) []byte {
	msg := control(cmd, flags, fields...)
	nativeEndian.PutUint16(msg[4:], family)
	return msg
}

// TestIntegrationRelay: for other families the client sees what it would see without us, byte for byte.
func TestIntegrationRelay(t *testing.T) {
	ns := newNamespace(t)
	s := liveServer(t)
	family := familyID(t, ns, "ethtool")
	loopback := fnest(1, f32(1, 1)) // ETHTOOL_A_*_HEADER{ETHTOOL_A_HEADER_DEV_INDEX}
	for _, options := range [][]int{nil, {unix.NETLINK_EXT_ACK}, {unix.NETLINK_CAP_ACK, unix.NETLINK_EXT_ACK}} {
		c := clientIn(t, s, ns, newTask(t))
		for _, o := range options {
			c.set(o)
		}
		for _, tt := range []struct {
			name string
			req  []byte
		}{
			{"nlctrl", control(unix.CTRL_CMD_GETFAMILY, requestFlags, fname("nlctrl"))},
			{"get", ethtool(family, ethtoolLinkStateGet, requestFlags, loopback)},
			{"get without ACK", ethtool(family, ethtoolLinkStateGet, unix.NLM_F_REQUEST, loopback)},
			{"dump", ethtool(family, ethtoolLinkStateGet, requestFlags|unix.NLM_F_DUMP, fnest(1))},
			{"dump of several datagrams", control(unix.CTRL_CMD_GETPOLICY, dumpFlags, fid(family))},
			{"large dump", ethtool(family, ethtoolStringsGet, dumpFlags)},
			{"error", ethtool(family, ethtoolLinkStateGet, requestFlags)},
			{"error with text", ethtool(family, ethtoolLinkStateGet, requestFlags, f32(99, 1))},
			{"unknown family", ethtool(1000, 1, requestFlags)},
			{"no request", ethtool(family, ethtoolLinkStateGet, unix.NLM_F_ACK)},
			{"several messages", slices.Concat(
				ethtool(family, ethtoolLinkStateGet, requestFlags, loopback),
				control(unix.CTRL_CMD_GETFAMILY, requestFlags, fname("nlctrl")),
				ethtool(family, 99, requestFlags))},
			{"malformed", []byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}},
		} {
			t.Run(fmt.Sprint(tt.name, options), func(t *testing.T) {
				want := native(t, ns, c.Port(), options, tt.req)
				if diff := cmp.Diff(hexLines(want), hexLines(c.ask(tt.req))); diff != "" {
					t.Errorf("answers (-native +relayed):\n%s", diff)
				}
			})
		}
	}
	t.Run("dump of families", func(t *testing.T) {
		c := clientIn(t, s, ns, newTask(t))
		req := control(unix.CTRL_CMD_GETFAMILY, dumpFlags)
		want := native(t, ns, c.Port(), nil, req)
		if slices.Contains(familyNames(want), uapi.FamilyName) {
			skip(t, "this kernel has the module")
		}
		want = slices.Insert(want, len(want)-1, s.describeFamilies(header{seq: testSeq}, c.Port()))
		if diff := cmp.Diff(hexLines(want), hexLines(c.ask(req))); diff != "" {
			t.Errorf("answers (-native and ours +relayed):\n%s", diff)
		}
	})
}

// TestIntegrationNoRightsGained: who has no rights of its own gets none through us.
func TestIntegrationNoRightsGained(t *testing.T) {
	ns := newNamespace(t)
	s := liveServer(t)
	family := familyID(t, ns, "ethtool")
	set := ethtool(family, ethtoolPauseSet, requestFlags)
	get := ethtool(family, ethtoolLinkStateGet, requestFlags, fnest(1, f32(1, 1)))
	errno := func(c *client, req []byte) unix.Errno {
		t.Helper()
		got := c.ask(req)
		return readRefusal(t, got[len(got)-1]).Errno
	}
	able, unable := clientIn(t, s, ns, newTask(t)), clientIn(t, s, ns, newTask(t))
	unable.task.powerless = true
	if got := errno(able, set); got == 0 || got == unix.EPERM {
		t.Fatalf("privileged request with rights: %v, want a complaint about its content", got)
	}
	if got := errno(unable, set); got != unix.EPERM {
		t.Errorf("privileged request without rights: %v, want EPERM", got)
	}
	if got := errno(unable, get); got != 0 {
		t.Errorf("unprivileged request without rights: %v", got)
	}
	if got := errno(able, set); got == unix.EPERM {
		t.Error("our own rights did not come back")
	}
	if err := unable.SetOption(unable.task, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, number(1<<20)); !errors.Is(err, unix.EPERM) {
		t.Errorf("SO_RCVBUFFORCE without rights: %v, want EPERM", err)
	}
	if err := able.SetOption(able.task, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, number(1<<20)); err != nil {
		t.Errorf("SO_RCVBUFFORCE with rights: %v", err)
	}
	// CAP_NET_BROADCAST, which a sender with CAP_NET_ADMIN need not have.
	if err := able.SetOption(able.task, unix.SOL_NETLINK, unix.NETLINK_LISTEN_ALL_NSID, number(1)); !errors.Is(err, unix.EPERM) {
		t.Errorf("NETLINK_LISTEN_ALL_NSID with CAP_NET_ADMIN only: %v, want EPERM", err)
	}
}

// TestIntegrationOwnedNamespace: in the namespaces of a user namespace that we made we are capable even without
// capabilities, so only the controller is asked on behalf of others.
func TestIntegrationOwnedNamespace(t *testing.T) {
	if os.Geteuid() != 0 {
		skip(t, "entering another namespace needs root")
	}
	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	if err := cmd.Start(); err != nil {
		skip(t, "no user namespace can be made: %v", err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	theirs, err := netns.OfThread(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	s := liveServer(t)
	if ownedByUs(s.home) {
		t.Error("our own namespace counts as owned")
	}
	if !ownedByUs(theirs) {
		t.Fatal("the namespace of our child does not count as owned")
	}
	c := clientIn(t, s, theirs, &fakeTask{})
	family := familyID(t, theirs, "ethtool")
	c.task.powerless = true
	set := ethtool(family, ethtoolPauseSet, requestFlags)
	if got := c.outcome(set); got.Errno != unix.EPERM {
		t.Errorf("privileged request: %v, want EPERM", got.Errno)
	}
	got := c.ask(control(unix.CTRL_CMD_GETFAMILY, requestFlags, fname("nlctrl")))
	if len(got) != 2 {
		t.Errorf("the controller does not answer:\n%s", hexLines(got))
	}
	if got := c.ask(control(unix.CTRL_CMD_GETFAMILY, requestFlags, fname("ovpn"))); len(got) != 2 {
		t.Errorf("our family is not there:\n%s", hexLines(got))
	}
}

// TestIntegrationMulticast: what the kernel multicasts by itself reaches the client.
func TestIntegrationMulticast(t *testing.T) {
	ns := newNamespace(t)
	s := liveServer(t)
	family := familyID(t, ns, "ethtool")
	var monitor uint32
	for _, d := range native(t, ns, 0, nil, control(unix.CTRL_CMD_GETFAMILY, unix.NLM_F_REQUEST, fid(family))) {
		each(d, firstAttribute, func(a attribute) {
			if a.number() == unix.CTRL_ATTR_MCAST_GROUPS {
				eachInside(a, func(a attribute) {
					eachInside(a, func(a attribute) {
						if a.number() == unix.CTRL_ATTR_MCAST_GRP_ID {
							monitor = a.u32()
						}
					})
				})
			}
		})
	}
	c := clientIn(t, s, ns, newTask(t))
	if err := c.SetOption(c.task, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, number(monitor)); err != nil {
		t.Fatal(err)
	}
	// ETHTOOL_MSG_FEATURES_SET{HEADER{DEV_INDEX}, WANTED{NOMASK, BITS{BIT{NAME}}}}: switch loopback's GRO on.
	const featuresSet, name = 12, "rx-gro-list"
	bits := fnest(3, fnest(3, fnest(1, ftext(2, name), fraw(3))))
	if got := c.ask(ethtool(family, featuresSet, requestFlags, fnest(1, f32(1, 1)), bits)); len(got) == 0 {
		t.Fatal("no answer")
	}
	select {
	case <-c.in.arrived:
	case <-time.After(10 * time.Second):
		t.Error("no notification")
	}
}

// TestIntegrationNamespaceIDs: a peer whose socket is in another namespace is reported with that namespace's id as
// the requester's namespace knows it.
func TestIntegrationNamespaceIDs(t *testing.T) {
	from, of := newNamespace(t), newNamespace(t)
	ids := newNamespaceIDs(from)
	id := ids.of(of)
	if id < 0 {
		t.Fatalf("id %d", id)
	}
	if again := newNamespaceIDs(from).of(of); again != id {
		t.Errorf("id %d when asked again, %d at first", again, id)
	}
	if other := newNamespaceIDs(from).of(newNamespace(t)); other == id {
		t.Errorf("two namespaces with id %d", id)
	}
	gone := newNamespace(t)
	gone.Close()
	if id := newNamespaceIDs(from).of(gone); id != nsidUnknown {
		t.Errorf("id %d of a namespace that can't be named, want -1", id)
	}
}

// TestIntegrationNamespaceOfID: a namespace is found by the number that another knows it under.
func TestIntegrationNamespaceOfID(t *testing.T) {
	from := newNamespace(t)
	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if err := cmd.Start(); err != nil {
		skip(t, "no process in a namespace of its own: %v", err)
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
	}()
	want, err := netns.OfThread(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer want.Close()
	id := newNamespaceIDs(from).of(want)
	got, err := namespaceOfID(from, uint32(id))
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	if got.ID() != want.ID() {
		t.Errorf("namespace %v has the id %d, want %v", got.ID(), id, want.ID())
	}
	if _, err := namespaceOfID(from, uint32(id)+1); !errors.Is(err, unix.EINVAL) {
		t.Errorf("an id that is not in use: %v, want EINVAL", err)
	}
	hidden := newNamespace(t)
	if _, err := namespaceOfID(from, uint32(newNamespaceIDs(from).of(hidden))); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("a namespace without name and process: %v, want EOPNOTSUPP", err)
	}
}

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
