package netlinksrv

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"ovpn-go/peers"
)

func number(v uint32) []byte { return nativeEndian.AppendUint32(nil, v) }

// TestOptions sets and reads options that the kernel's socket behind ours has.
func TestOptions(t *testing.T) {
	s := testServer(t)
	addDevice(t, s, testIfindex, peers.P2P)
	c := newClient(t, s)
	for _, tt := range []struct {
		name          string
		level, option int
		value         []byte
		err           unix.Errno
		read          uint32
	}{
		{"NETLINK_EXT_ACK", unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, number(1), 0, 1},
		{"NETLINK_CAP_ACK", unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, number(7), 0, 1},
		{"NETLINK_GET_STRICT_CHK", unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, number(1), 0, 1},
		{"off", unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, number(0), 0, 0},
		{"too short is off", unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, []byte{1}, 0, 0},
		{"unknown", unix.SOL_NETLINK, 99, number(1), unix.ENOPROTOOPT, 0},
		{"group 0", unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, number(0), unix.EINVAL, 0},
		{"group that is not there", unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, number(1 << 30), unix.EINVAL, 0},
		{"SO_RCVBUF", unix.SOL_SOCKET, unix.SO_RCVBUF, number(32768), 0, 65536},
		{"filter", unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, make([]byte, 16), unix.ENOPROTOOPT, 0},
		{"program", unix.SOL_SOCKET, unix.SO_ATTACH_BPF, number(0), unix.ENOPROTOOPT, 0},
		{"another level", unix.SOL_TCP, 1, number(1), unix.ENOPROTOOPT, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := c.SetOption(c.task, tt.level, tt.option, tt.value)
			if !errors.Is(err, tt.err) && (err != nil || tt.err != 0) {
				t.Fatalf("set: %v, want %v", err, tt.err)
			}
			if err != nil {
				return
			}
			got, err := c.GetOption(tt.level, tt.option, 4)
			if err != nil || len(got) != 4 || nativeEndian.Uint32(got) != tt.read {
				t.Errorf("get: %x, %v, want %d", got, err, tt.read)
			}
		})
	}
	t.Run("no room", func(t *testing.T) {
		if _, err := c.GetOption(unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 3); !errors.Is(err, unix.EINVAL) {
			t.Errorf("get into 3 bytes: %v, want EINVAL", err)
		}
		if _, err := c.GetOption(unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, -1); !errors.Is(err, unix.EINVAL) {
			t.Errorf("get into -1 bytes: %v, want EINVAL", err)
		}
	})
}

func TestListMemberships(t *testing.T) {
	s := testServer(t)
	c := newClient(t, s)
	isMember := func(group uint32) bool {
		list, err := c.GetOption(unix.SOL_NETLINK, unix.NETLINK_LIST_MEMBERSHIPS, 0)
		if err != nil || len(list)%4 != 0 {
			t.Fatalf("list of %d bytes, %v", len(list), err)
		}
		word := int(group-1) / 32 * 4
		return len(list) >= word+4 && nativeEndian.Uint32(list[word:])&(1<<((group-1)%32)) != 0
	}
	if isMember(testGroup) || c.Groups() != 0 {
		t.Error("a new socket is a member")
	}
	c.join()
	if !isMember(testGroup) || c.Groups() != 1<<(testGroup-1) {
		t.Errorf("groups %#x after joining", c.Groups())
	}
	s.ids[ovpnFamily].group = maxGroupID
	if !isMember(maxGroupID) {
		t.Error("a high group is not in the list")
	}
}

func TestBind(t *testing.T) {
	s := testServer(t)
	c := newClient(t, s) // Has taken the first choice, most likely.
	ns, err := c.task.NetNS()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	open := func() *GenericSocket {
		g, err := s.OpenGeneric(ns, c.in.deliver)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(g.Close)
		return g
	}
	const port = 0x7ffff123
	g := open()
	if err := g.Bind(c.task, port, 0); err != nil || g.Port() != port {
		t.Fatalf("bind: %v, port %#x", err, g.Port())
	}
	if err := g.Bind(c.task, port, 0); err != nil {
		t.Errorf("bind to the same port again: %v", err)
	}
	if err := g.Bind(c.task, port+1, 0); !errors.Is(err, unix.EINVAL) {
		t.Errorf("bind to another port: %v, want EINVAL", err)
	}
	if err := open().Bind(c.task, port, 0); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("bind to a port in use: %v, want EADDRINUSE", err)
	}
	free := open()
	if err := free.Bind(c.task, 0, 0); err != nil || free.Port() == 0 || free.Port() == c.Port() {
		t.Errorf("bind to any port: %v, port %d beside %d", err, free.Port(), c.Port())
	}
	g.Close()
	if err := open().Bind(c.task, port, 0); err != nil {
		t.Errorf("bind to the port of a closed socket: %v", err)
	}
}
