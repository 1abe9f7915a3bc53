package netlinksrv

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv/uapi"
	"ovpn-go/peers"
)

// control builds a message to the controller.
func control(cmd uint8, flags uint16, fields ...field) []byte {
	var b builder
	start := b.generic(header{kind: unix.GENL_ID_CTRL, flags: flags, seq: testSeq}, cmd, 1)
	for _, f := range fields {
		f(&b)
	}
	b.endMessage(start)
	return b.buf
}

func fname(name string) field {
	return func(b *builder) { b.text(unix.CTRL_ATTR_FAMILY_NAME, name) }
}

func fid(id uint16) field {
	return func(b *builder) { b.u16(unix.CTRL_ATTR_FAMILY_ID, id) }
}

// TestGetFamily asks for our family in each way, and for others, which the kernel of this machine answers.
func TestGetFamily(t *testing.T) {
	s := testServer(t)
	c := newClient(t, s)
	ours := s.describeFamily(ovpnFamily, header{seq: testSeq}, c.Port(), 0)
	const unterminated = "ovpn" // no NUL: EINVAL from the kernel
	for _, tt := range []struct {
		name  string
		req   []byte
		ours  bool
		errno unix.Errno
	}{
		{"name", control(unix.CTRL_CMD_GETFAMILY, requestFlags, fname("ovpn")), true, 0},
		{"id", control(unix.CTRL_CMD_GETFAMILY, requestFlags, fid(testFamily)), true, 0},
		{"name decides", control(unix.CTRL_CMD_GETFAMILY, requestFlags, fname("ovpn"), fid(unix.GENL_ID_CTRL)), true, 0},
		{"last name decides", control(unix.CTRL_CMD_GETFAMILY, requestFlags, fname("nlctrl"), fname("ovpn")), true, 0},
		{"bytes behind the name", control(unix.CTRL_CMD_GETFAMILY, requestFlags, fname("ovpn\x00more")), true, 0},
		{"unknown attribute", control(unix.CTRL_CMD_GETFAMILY, requestFlags, fname("ovpn"), f32(77, 1)), true, 0},
		{"other flags", control(unix.CTRL_CMD_GETFAMILY, requestFlags|unix.NLM_F_CREATE, fname("ovpn")), true, 0},
		{"no name", control(unix.CTRL_CMD_GETFAMILY, requestFlags), false, unix.EINVAL},
		{"no NUL", control(unix.CTRL_CMD_GETFAMILY, requestFlags, fraw(unix.CTRL_ATTR_FAMILY_NAME, []byte(unterminated)...)), false, unix.EINVAL},
		{"name too long", control(unix.CTRL_CMD_GETFAMILY, requestFlags, fname("ovpn\x00 with much behind it")), false, unix.ERANGE},
		{"id too short", control(unix.CTRL_CMD_GETFAMILY, requestFlags, fname("ovpn"), fraw(unix.CTRL_ATTR_FAMILY_ID, 1)), false, unix.ERANGE},
		{"unknown name", control(unix.CTRL_CMD_GETFAMILY, requestFlags, fname("no-such-family")), false, unix.ENOENT},
		{"unknown id", control(unix.CTRL_CMD_GETFAMILY, requestFlags, fid(1022)), false, unix.ENOENT},
		{"unknown command", control(77, requestFlags, fname("ovpn")), false, unix.EOPNOTSUPP},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := c.ask(tt.req)
			if tt.ours {
				want := [][]byte{ours, acknowledge(tt.req, c.Port(), nil, ackOptions{})}
				if diff := cmp.Diff(hexLines(want), hexLines(got)); diff != "" {
					t.Errorf("answers (-want +got):\n%s", diff)
				}
				return
			}
			if len(got) != 1 {
				t.Fatalf("%d datagrams, want one:\n%s", len(got), hexLines(got))
			}
			// The kernel's own error message is what ours would be.
			want := acknowledge(tt.req, c.Port(), &requestError{errno: tt.errno}, ackOptions{})
			if diff := cmp.Diff(hexLines([][]byte{want}), hexLines(got)); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("nlctrl", func(t *testing.T) {
		req := control(unix.CTRL_CMD_GETFAMILY, requestFlags, fname("nlctrl"))
		got := c.ask(req)
		if len(got) != 2 || parseHeader(got[0]).port != c.Port() {
			t.Fatalf("answers, want a family and an acknowledgement for port %d:\n%s", c.Port(), hexLines(got))
		}
		if diff := cmp.Diff(acknowledge(req, c.Port(), nil, ackOptions{}), got[1]); diff != "" {
			t.Errorf("the kernel's acknowledgement (-ours +its):\n%s", diff)
		}
	})
	t.Run("no ACK", func(t *testing.T) {
		got := c.ask(control(unix.CTRL_CMD_GETFAMILY, unix.NLM_F_REQUEST, fname("ovpn")))
		if diff := cmp.Diff(hexLines([][]byte{ours}), hexLines(got)); diff != "" {
			t.Errorf("answers (-want +got):\n%s", diff)
		}
	})
}

// familyNames lists the families in the datagrams of a dump.
func familyNames(datagrams [][]byte) (names []string) {
	for _, d := range datagrams {
		for {
			msg, rest, ok := cutMessage(d)
			if !ok {
				break
			}
			if parseHeader(msg).kind == unix.GENL_ID_CTRL {
				each(msg, firstAttribute, func(a attribute) {
					if a.number() == unix.CTRL_ATTR_FAMILY_NAME {
						names = append(names, textOf(a))
					}
				})
			}
			d = rest
		}
	}
	return names
}

// TestDumpFamilies: a dump has the kernel's families and ours, once.
func TestDumpFamilies(t *testing.T) {
	s := testServer(t)
	c := newClient(t, s)
	for _, flags := range []uint16{dumpFlags, dumpFlags | unix.NLM_F_ACK} {
		got := c.ask(control(unix.CTRL_CMD_GETFAMILY, flags))
		names := familyNames(got)
		if n := len(slices.DeleteFunc(slices.Clone(names), func(s string) bool { return s != "ovpn" })); n != 1 {
			t.Errorf("ovpn is there %d times in %q", n, names)
		}
		if !slices.Contains(names, "nlctrl") {
			t.Errorf("no nlctrl in %q", names)
		}
		if last := got[len(got)-1]; parseHeader(last).kind != unix.NLMSG_DONE {
			t.Errorf("the dump does not end:\n%s", hexLines(got))
		}
		ours := s.describeFamilies(header{seq: testSeq}, c.Port())
		if diff := cmp.Diff(ours, got[len(got)-2]); diff != "" {
			t.Errorf("our family in the dump (-want +got):\n%s", diff)
		}
	}
}

// TestDumpFamiliesWaits: a dump of families is not lost on a client that does not read, and not mixed up by what
// it asks meanwhile.
func TestDumpFamiliesWaits(t *testing.T) {
	s := testServer(t)
	c := newClient(t, s)
	c.in.makeRoom(0)
	c.ask(control(unix.CTRL_CMD_GETFAMILY, dumpFlags))
	c.in.makeRoom(1)
	// EBUSY, unless the one place in the queue goes to a part of the first dump.
	got := c.ask(control(unix.CTRL_CMD_GETFAMILY, dumpFlags))
	c.in.makeRoom(-1)
	for len(got) == 0 || parseHeader(got[len(got)-1]).kind != unix.NLMSG_DONE {
		<-c.in.arrived
		got = append(got, c.in.take()...)
	}
	if names := familyNames(got); !slices.Contains(names, "ovpn") || !slices.Contains(names, "nlctrl") {
		t.Errorf("families %q", names)
	}
}

// TestMergeFamilies has the kernel answer with a family of our name.
func TestMergeFamilies(t *testing.T) {
	family := func(name string) []byte {
		return control(unix.CTRL_CMD_NEWFAMILY, unix.NLM_F_MULTI, fid(0x30), fname(name))
	}
	end := done(header{seq: testSeq}, 1, nil, ackOptions{})
	late := done(header{seq: testSeq + 1}, 1, nil, ackOptions{})
	failed := done(header{seq: testSeq}, 1, &requestError{errno: unix.ENOMEM}, ackOptions{})
	busy := acknowledge(control(3, 0), 1, &requestError{errno: unix.EBUSY}, ackOptions{})
	join := slices.Concat[[]byte]
	for _, tt := range []struct {
		name          string
		in, out       []byte
		ended, failed bool
	}{
		{"others stay", join(family("a"), family("b")), join(family("a"), family("b")), false, false},
		{"namesake goes", join(family("a"), family("ovpn"), family("b")), join(family("a"), family("b")), false, false},
		{"longer name stays", family("ovpn-dco"), family("ovpn-dco"), false, false},
		{"nothing remains", family("ovpn"), nil, false, false},
		{"end", end, end, true, false},
		{"end with families", join(family("a"), end), join(family("a"), end), true, false},
		{"end of another dump", late, late, false, false},
		{"end with an error", failed, failed, false, true},
		{"error", busy, busy, false, true},
		{"rubbish", []byte{1, 2, 3}, []byte{1, 2, 3}, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, ended, failed := (&Server{}).mergeFamilies(tt.in, testSeq)
			if diff := cmp.Diff(hexLines([][]byte{tt.out}), hexLines([][]byte{out})); diff != "" {
				t.Errorf("datagram (-want +got):\n%s", diff)
			}
			if ended != tt.ended || failed != tt.failed {
				t.Errorf("ended %v, failed %v, want %v and %v", ended, failed, tt.ended, tt.failed)
			}
		})
	}
}

// TestGetPolicy asks for the policies of one operation, and of all.
func TestGetPolicy(t *testing.T) {
	littleEndian(t)
	s := testServer(t)
	c := newClient(t, s)
	join := func(datagrams [][]byte) (all []byte) {
		for _, d := range datagrams {
			if len(d) > maxDumpDatagram {
				t.Errorf("a datagram of %d bytes", len(d))
			}
			all = append(all, d...)
		}
		for d := all; ; {
			msg, rest, ok := cutMessage(d)
			if !ok {
				return all
			}
			clear(msg[8:16]) // sequence number and port
			d = rest
		}
	}
	t.Run("PEER_DEL", func(t *testing.T) {
		got := join(c.ask(control(unix.CTRL_CMD_GETPOLICY, dumpFlags, fname("ovpn"), f32(unix.CTRL_ATTR_OP, uapi.CmdPeerDel))))
		want := unhex(t, `
			2c000000 1000 0200 00000000 00000000  0a 02 0000
			0600 0100 2400 0000
			1000 0980
			  0c00 0480
			    0800 0100 00000000
			48000000 1000 0200 00000000 00000000  0a 02 0000
			0600 0100 2400 0000
			2c00 0880
			  2800 0080
			    2400 0180
			      0c00 0400 0000000000000000
			      0c00 0500 ffffffff00000000
			      0800 0100 04000000
			40000000 1000 0200 00000000 00000000  0a 02 0000
			0600 0100 2400 0000
			2400 0880
			  2000 0080
			    1c00 0280
			      0800 0800 01000000
			      0800 0900 01000000
			      0800 0100 0d000000
			48000000 1000 0200 00000000 00000000  0a 02 0000
			0600 0100 2400 0000
			2c00 0880
			  2800 0180
			    2400 0180
			      0c00 0400 0000000000000000
			      0c00 0500 ffffff0000000000
			      0800 0100 04000000
			14000000 0300 0200 00000000 00000000 00000000`)
		if diff := cmp.Diff(hexLines([][]byte{want}), hexLines([][]byte{got})); diff != "" {
			t.Errorf("policies (-want +got):\n%s", diff)
		}
	})
	t.Run("all", func(t *testing.T) {
		all := c.ask(control(unix.CTRL_CMD_GETPOLICY, dumpFlags, fid(testFamily)))
		byOp := map[uint16][]uint32{}
		described := map[[2]uint16]int{} // set and attribute
		for d := join(all); ; {
			msg, rest, ok := cutMessage(d)
			if !ok {
				break
			}
			d = rest
			if parseHeader(msg).kind != unix.GENL_ID_CTRL {
				continue
			}
			each(msg, firstAttribute, func(outer attribute) {
				switch outer.number() {
				case unix.CTRL_ATTR_OP_POLICY:
					eachInside(outer, func(op attribute) {
						eachInside(op, func(a attribute) { byOp[op.number()] = append(byOp[op.number()], a.u32()) })
					})
				case unix.CTRL_ATTR_POLICY:
					eachInside(outer, func(set attribute) {
						eachInside(set, func(a attribute) { described[[2]uint16{set.number(), a.number()}]++ })
					})
				}
			})
		}
		// Each operation brings two sets, PEER_GET a third for its dump, and KEY_NEW that of a direction.
		want := map[uint16][]uint32{1: {0}, 2: {2}, 3: {4, 6}, 4: {7}, 6: {9}, 7: {12}, 8: {14}, 10: {16}}
		if diff := cmp.Diff(want, byOp); diff != "" {
			t.Errorf("policies of the operations (-want +got):\n%s", diff)
		}
		for key, n := range described {
			if n != 1 {
				t.Errorf("attribute %d of policy %d is described %d times", key[1], key[0], n)
			}
		}
		for _, absent := range [][2]uint16{{1, uapi.PeerRemoteIPv4}, {1, uapi.PeerRemotePort}, {1, uapi.PeerLocalPort}, {6, uapi.AttrPeer}} {
			if described[absent] != 0 {
				t.Errorf("attribute %d of policy %d is described", absent[1], absent[0])
			}
		}
		for _, present := range [][2]uint16{{1, uapi.PeerTxID}, {5, uapi.PeerLinkTxPackets}, {11, uapi.DirCipherKey}, {17, uapi.KeySlot}} {
			if described[present] != 1 {
				t.Errorf("attribute %d of policy %d is not described", present[1], present[0])
			}
		}
	})
	t.Run("unknown operation", func(t *testing.T) {
		c := newExplainedClient(t, s)
		req := control(unix.CTRL_CMD_GETPOLICY, dumpFlags, fname("ovpn"), f32(unix.CTRL_ATTR_OP, uapi.CmdPeerDelNtf))
		want := refusal{Errno: unix.ENOENT, Offset: firstAttribute + 12}
		if diff := cmp.Diff(want, c.outcome(req)); diff != "" {
			t.Errorf("refusal (-want +got):\n%s", diff)
		}
	})
	t.Run("the kernel's", func(t *testing.T) {
		got := c.ask(control(unix.CTRL_CMD_GETPOLICY, dumpFlags, fname("nlctrl")))
		if len(got) < 2 || parseHeader(got[0]).kind != unix.GENL_ID_CTRL {
			t.Errorf("no policies of nlctrl:\n%s", hexLines(got))
		}
	})
	t.Run("malformed", func(t *testing.T) {
		got := c.ask(control(unix.CTRL_CMD_GETPOLICY, dumpFlags, fname("ovpn"), f32(77, 1)))
		if len(got) != 1 || readRefusal(t, got[0]).Errno != unix.EINVAL {
			t.Errorf("answers, want EINVAL:\n%s", hexLines(got))
		}
	})
}

// TestUnusedIDs picks ids beside those of a dump.
func TestUnusedIDs(t *testing.T) {
	group := func(id uint32) field {
		return func(b *builder) {
			groups := b.nest(unix.CTRL_ATTR_MCAST_GROUPS)
			one := b.nest(1)
			b.u32(unix.CTRL_ATTR_MCAST_GRP_ID, id)
			b.endNest(one)
			b.endNest(groups)
		}
	}
	families := [][]byte{
		control(unix.CTRL_CMD_NEWFAMILY, 0, fid(maxFamilyID), group(5)),
		control(unix.CTRL_CMD_NEWFAMILY, 0, fid(maxFamilyID-1), group(maxGroupID)),
		control(unix.CTRL_CMD_NEWFAMILY, 0, fid(20)),
		{}, {1, 2, 3},
	}
	got, err := unusedIDs(families)
	if want := ([familyCount]familyIDs{{maxFamilyID - 2, maxGroupID - 1}, {maxFamilyID - 3, maxGroupID - 2}}); err != nil || got != want {
		t.Errorf("unusedIDs = %+v, %v, want %+v", got, err, want)
	}
}

// TestRelayedErrorEqualsOurs compares the kernel's error messages with ours, for the same socket options.
func TestRelayedErrorEqualsOurs(t *testing.T) {
	s := testServer(t)
	addDevice(t, s, testIfindex, peers.P2P)
	for _, opts := range [][]int{{}, {unix.NETLINK_CAP_ACK}, {unix.NETLINK_EXT_ACK}, {unix.NETLINK_CAP_ACK, unix.NETLINK_EXT_ACK}} {
		c := newClient(t, s)
		for _, o := range opts {
			c.set(o)
		}
		// An attribute of odd length, so that the echo is padded; then a bad one, so that there is something to say.
		req := control(unix.CTRL_CMD_GETPOLICY, dumpFlags, fname("ovpn"), f32(77, 1), fraw(1, 1))
		req = req[:len(req)-3]
		nativeEndian.PutUint32(req, uint32(len(req)))
		want := acknowledge(req, c.Port(), &requestError{
			errno: unix.EINVAL, text: "Unknown attribute type", bad: firstAttribute + 12,
		}, c.ackOptions())
		if diff := cmp.Diff(hexLines([][]byte{want}), hexLines(c.ask(req))); diff != "" {
			t.Errorf("options %v (-ours +the kernel's):\n%s", opts, diff)
		}
	}
}

func TestLeftoverWarning(t *testing.T) {
	req := control(unix.CTRL_CMD_GETFAMILY, requestFlags, fname("ovpn"))
	if got := leftoverWarning(req); got != nil {
		t.Errorf("warning about nothing: %v", got)
	}
	got := leftoverWarning(append(req, 0, 0, 0))
	if got == nil || got.refuses() || got.text != "bytes leftover after parsing attributes" {
		t.Errorf("warning is %v", got)
	}
}
