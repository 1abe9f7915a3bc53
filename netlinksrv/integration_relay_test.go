package netlinksrv

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv/uapi"
	"ovpn-go/tun/netns"
)

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
