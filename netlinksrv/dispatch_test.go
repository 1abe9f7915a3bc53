package netlinksrv

import (
	"bytes"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ovpn-go/crypto"
	"ovpn-go/netlinksrv/uapi"
	"ovpn-go/peers"
)

// outcome is the answer to one request: what a refusal says, or how long the reply is.
func (c *client) outcome(req []byte) refusal {
	c.t.Helper()
	got := c.ask(req)
	if len(got) != 1 {
		c.t.Fatalf("%d datagrams, want one:\n%s", len(got), hexLines(got))
	}
	if h := parseHeader(got[0]); h.seq != parseHeader(req).seq || h.port != c.Port() || int(h.length) != len(got[0]) {
		c.t.Errorf("header %+v of an answer to port %d", h, c.Port())
	}
	return readRefusal(c.t, got[0])
}

func newExplainedClient(t *testing.T, s *Server) *client {
	t.Helper()
	c := newClient(t, s)
	c.set(unix.NETLINK_EXT_ACK)
	return c
}

// TestCoreChecks goes through the checks that come before any handler, numbered in the kernel's order.
func TestCoreChecks(t *testing.T) {
	const (
		flags    = "ambiguous or reserved bits set in nlmsg_flags"
		reserved = "genlmsghdr.reserved field is not 0"
		notOvpn  = "ovpn: specified interface is not ovpn"
		noDevice = "ovpn: ifindex does not match any interface"
	)
	withReserved := func(msg []byte) []byte {
		msg = slices.Clone(msg)
		msg[headerSize+3] = 1
		return msg
	}
	short := message(uapi.CmdPeerGet, requestFlags)
	short = short[:headerSize+3]
	nativeEndian.PutUint32(short, uint32(len(short)))
	get := fnest(uapi.AttrPeer, f32(uapi.PeerID, 1))
	for _, tt := range []struct {
		name      string
		req       []byte
		powerless bool
		want      refusal
	}{
		{"4 no room for genlmsghdr", short, false, refusal{Errno: unix.EINVAL}},
		{"5 reserved bits", withReserved(message(uapi.CmdPeerGet, requestFlags)), false, refusal{Errno: unix.EINVAL, Text: reserved}},
		{"5 before 6", withReserved(message(uapi.CmdPeerGet, requestFlags|unix.NLM_F_CREATE)), false,
			refusal{Errno: unix.EINVAL, Text: reserved}},
		{"6 one bit of DUMP", message(uapi.CmdPeerGet, requestFlags|unix.NLM_F_ROOT), false, refusal{Errno: unix.EINVAL, Text: flags}},
		{"6 other bit of DUMP", message(uapi.CmdPeerGet, requestFlags|unix.NLM_F_MATCH), false, refusal{Errno: unix.EINVAL, Text: flags}},
		{"6 CREATE", message(uapi.CmdPeerNew, requestFlags|unix.NLM_F_CREATE), false, refusal{Errno: unix.EINVAL, Text: flags}},
		{"6 MULTI", message(uapi.CmdPeerNew, requestFlags|unix.NLM_F_MULTI), false, refusal{Errno: unix.EINVAL, Text: flags}},
		{"6 before 7", message(99, requestFlags|unix.NLM_F_EXCL), false, refusal{Errno: unix.EINVAL, Text: flags}},
		{"6 ECHO passes", message(99, requestFlags|unix.NLM_F_ECHO), false, refusal{Errno: unix.EOPNOTSUPP}},
		{"7 command 0", message(0, requestFlags), false, refusal{Errno: unix.EOPNOTSUPP}},
		{"7 PEER_DEL_NTF", message(uapi.CmdPeerDelNtf, requestFlags), false, refusal{Errno: unix.EOPNOTSUPP}},
		{"7 KEY_SWAP_NTF", message(uapi.CmdKeySwapNtf, requestFlags), false, refusal{Errno: unix.EOPNOTSUPP}},
		{"7 PEER_FLOAT_NTF", message(uapi.CmdPeerFloatNtf, requestFlags), false, refusal{Errno: unix.EOPNOTSUPP}},
		{"7 command 12", message(12, requestFlags), false, refusal{Errno: unix.EOPNOTSUPP}},
		{"7 dump of PEER_NEW", message(uapi.CmdPeerNew, requestFlags|unix.NLM_F_DUMP), false, refusal{Errno: unix.EOPNOTSUPP}},
		{"7 before 8", message(99, requestFlags), true, refusal{Errno: unix.EOPNOTSUPP}},
		{"8 capability", ask(uapi.CmdPeerGet, get), true, refusal{Errno: unix.EPERM}},
		{"8 before 10", message(uapi.CmdPeerGet, requestFlags, fraw(99)), true, refusal{Errno: unix.EPERM}},
		{"8 dump", message(uapi.CmdPeerGet, unix.NLM_F_REQUEST|unix.NLM_F_DUMP), true, refusal{Errno: unix.EPERM}},
		{"10 before 11", message(uapi.CmdPeerGet, requestFlags, fraw(99)), false,
			refusal{Errno: unix.EINVAL, Text: "Unknown attribute type", Offset: firstAttribute}},
		{"I1", message(uapi.CmdPeerGet, requestFlags, get), false, refusal{Errno: unix.EINVAL, MissType: uapi.AttrIfindex}},
		{"I1 before N1", message(uapi.CmdPeerGet, requestFlags), false, refusal{Errno: unix.EINVAL, MissType: uapi.AttrIfindex}},
		{"I2", message(uapi.CmdPeerGet, requestFlags, f32(uapi.AttrIfindex, 1234), get), false,
			refusal{Errno: unix.ENODEV, Text: noDevice}},
		{"I2 index 0", message(uapi.CmdPeerGet, requestFlags, f32(uapi.AttrIfindex, 0)), false,
			refusal{Errno: unix.ENODEV, Text: noDevice}},
		{"I2 negative index", message(uapi.CmdPeerGet, requestFlags, f32(uapi.AttrIfindex, 0xffffffff)), false,
			refusal{Errno: unix.ENODEV, Text: noDevice}},
		{"I3", message(uapi.CmdPeerGet, requestFlags, get, f32(uapi.AttrIfindex, otherLink)), false,
			refusal{Errno: unix.EINVAL, Text: notOvpn, Offset: firstAttribute + 12}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := testServer(t)
			d := addDevice(t, s, testIfindex, peers.P2P)
			c := newExplainedClient(t, s)
			c.task.powerless = tt.powerless
			if diff := cmp.Diff(tt.want, c.outcome(tt.req)); diff != "" {
				t.Errorf("refusal (-want +got):\n%s", diff)
			}
			if len(d.calls) > 0 {
				t.Errorf("the device was asked: %v", d.calls)
			}
		})
	}
}

// TestNotExecuted has the messages that are acknowledged, or not even that, and never executed.
func TestNotExecuted(t *testing.T) {
	s := testServer(t)
	d := addDevice(t, s, testIfindex, peers.P2P)
	c := newClient(t, s)
	del := ask(uapi.CmdPeerDel, fnest(uapi.AttrPeer, f32(uapi.PeerID, 1)))
	with := func(change func([]byte)) []byte {
		msg := slices.Clone(del)
		change(msg)
		return msg
	}
	for _, tt := range []struct {
		name string
		data []byte
		acks int
	}{
		{"1 empty", nil, 0},
		{"1 less than a header", del[:15], 0},
		{"1 length below a header", with(func(m []byte) { nativeEndian.PutUint32(m, 15) }), 0},
		{"1 length beyond the datagram", with(func(m []byte) { nativeEndian.PutUint32(m, uint32(len(m)+1)) }), 0},
		{"1 huge length", with(func(m []byte) { nativeEndian.PutUint32(m, 0xffffffff) }), 0},
		{"2 no REQUEST", with(func(m []byte) { nativeEndian.PutUint16(m[6:], unix.NLM_F_ACK) }), 1},
		{"2 no REQUEST, no ACK", with(func(m []byte) { nativeEndian.PutUint16(m[6:], 0) }), 0},
		{"2 control message", with(func(m []byte) { nativeEndian.PutUint16(m[4:], unix.NLMSG_NOOP) }), 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := c.ask(tt.data)
			if len(got) != tt.acks {
				t.Errorf("%d answers, want %d:\n%s", len(got), tt.acks, hexLines(got))
			}
			for _, msg := range got {
				if diff := cmp.Diff(refusal{}, readRefusal(t, msg)); diff != "" {
					t.Errorf("answer (-want +got):\n%s", diff)
				}
			}
			if len(d.calls) > 0 {
				t.Errorf("the device was asked: %v", d.calls)
			}
		})
	}
}

// TestSeveralMessages sends datagrams of more than one message, which are executed in order up to one that is
// malformed.
func TestSeveralMessages(t *testing.T) {
	s := testServer(t)
	d := addDevice(t, s, testIfindex, peers.P2P)
	c := newClient(t, s)
	swap := func(seq uint32, id uint32, flags uint16) []byte {
		msg := message(uapi.CmdKeySwap, flags, f32(uapi.AttrIfindex, testIfindex), fnest(uapi.AttrKeyconf, f32(uapi.KeyPeerID, id)))
		nativeEndian.PutUint32(msg[8:], seq)
		return msg
	}
	noop := make([]byte, headerSize)
	nativeEndian.PutUint32(noop, headerSize)
	nativeEndian.PutUint16(noop[4:], unix.NLMSG_NOOP)
	nativeEndian.PutUint16(noop[6:], requestFlags)
	nativeEndian.PutUint32(noop[8:], 77)
	// Length 37: the next message begins at the aligned offset.
	odd := append(swap(3, 1, requestFlags), 0)
	nativeEndian.PutUint32(odd, uint32(len(odd)))
	odd = append(odd, 0, 0, 0)
	broken := swap(5, 1, requestFlags)
	nativeEndian.PutUint32(broken, 4)

	type answer struct {
		Seq uint32
		Err unix.Errno
	}
	for _, tt := range []struct {
		name string
		data []byte
		want []answer
	}{
		{"two of ours", slices.Concat(swap(1, 1, requestFlags), swap(2, 2, requestFlags)), []answer{{1, 0}, {2, unix.ENOENT}}},
		{"without ACK only errors", slices.Concat(swap(1, 1, unix.NLM_F_REQUEST), swap(2, 2, unix.NLM_F_REQUEST)),
			[]answer{{2, unix.ENOENT}}},
		{"the kernel's between ours", slices.Concat(swap(1, 1, requestFlags), noop, swap(2, 1, requestFlags)),
			[]answer{{1, 0}, {77, 0}, {2, 0}}},
		{"padding", slices.Concat(odd, swap(4, 1, requestFlags)), []answer{{3, unix.EINVAL}, {4, 0}}},
		{"nothing behind a malformed one", slices.Concat(swap(1, 1, requestFlags), broken, swap(2, 1, requestFlags)),
			[]answer{{1, 0}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d.mu.Lock()
			d.peers = []*fakePeer{{}}
			d.peers[0].info.ID = 1
			d.mu.Unlock()
			var got []answer
			for _, msg := range c.ask(tt.data) {
				got = append(got, answer{parseHeader(msg).seq, readRefusal(t, msg).Errno})
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("answers (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSendBindsAnUnboundSocket(t *testing.T) {
	s := testServer(t)
	c := newClient(t, s)
	ns, _ := c.task.NetNS()
	defer ns.Close()
	g, err := s.OpenGeneric(ns, c.in.deliver)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if g.Port() != 0 {
		t.Fatalf("a new socket has port %d", g.Port())
	}
	g.Send(c.task, message(uapi.CmdPeerGet, requestFlags))
	if g.Port() == 0 || g.Port() == c.Port() {
		t.Errorf("port %d after sending, beside %d", g.Port(), c.Port())
	}
	if got := parseHeader(c.in.take()[0]).port; got != g.Port() {
		t.Errorf("answer to port %d, want %d", got, g.Port())
	}
}

func TestSendWipesKeys(t *testing.T) {
	s := testServer(t)
	d := addDevice(t, s, testIfindex, peers.P2P)
	d.peers = []*fakePeer{{}}
	c := newClient(t, s)
	secret := bytes.Repeat([]byte{0x5a}, 32)
	for name, cipher := range map[string]crypto.Cipher{"accepted": crypto.AESGCM, "refused": crypto.CipherNone} {
		datagram := ask(uapi.CmdKeyNew, keyFields(cipher, secret))
		c.Send(c.task, datagram)
		if bytes.Contains(datagram, secret[:8]) {
			t.Errorf("%s: the request still holds the key", name)
		}
	}
}

func TestSendAfterClose(t *testing.T) {
	s := testServer(t)
	c := newClient(t, s)
	c.GenericSocket.Close()
	if got := c.ask(message(uapi.CmdPeerGet, requestFlags)); len(got) > 0 {
		t.Errorf("a closed socket answers:\n%s", hexLines(got))
	}
	if err := c.Bind(c.task, 0, 0); err == nil {
		t.Error("a closed socket can be bound")
	}
}
