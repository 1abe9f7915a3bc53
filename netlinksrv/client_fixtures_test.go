package netlinksrv

import (
	"encoding/hex"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv/uapi"
	"ovpn-go/tun/netns"
)

// inbox is a client's receive queue.
type inbox struct {
	mu        sync.Mutex
	datagrams [][]byte
	room      int // how many more fit; negative: any number
	arrived   chan struct{}
}

func newInbox() *inbox { return &inbox{room: -1, arrived: make(chan struct{}, 1)} }

func (in *inbox) deliver(datagram []byte) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.room == 0 {
		return unix.EAGAIN
	}
	in.room--
	in.datagrams = append(in.datagrams, datagram)
	select {
	case in.arrived <- struct{}{}:
	default:
	}
	return nil
}

// take empties the queue.
func (in *inbox) take() [][]byte {
	in.mu.Lock()
	defer in.mu.Unlock()
	taken := in.datagrams
	in.datagrams = nil
	return taken
}

func (in *inbox) makeRoom(n int) {
	in.mu.Lock()
	in.room = n
	in.mu.Unlock()
}

// client is a socket with its queue and its sender.
type client struct {
	t    testing.TB
	task *fakeTask
	*GenericSocket
	in *inbox
}

// newClient opens a bound socket in our own namespace.
func newClient(t *testing.T, s *Server) *client {
	t.Helper()
	ns, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	c := &client{t: t, task: newTask(t), in: newInbox()}
	if c.GenericSocket, err = s.OpenGeneric(ns, c.in.deliver); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	if err := c.Bind(c.task, 0, 0); err != nil {
		t.Fatal(err)
	}
	return c
}

// ask sends a datagram and returns what is in the queue then.
func (c *client) ask(datagram []byte) [][]byte {
	c.Send(c.task, slices.Clone(datagram))
	return c.in.take()
}

// set switches a SOL_NETLINK option on.
func (c *client) set(name int) {
	c.t.Helper()
	if err := c.SetOption(c.task, unix.SOL_NETLINK, name, nativeEndian.AppendUint32(nil, 1)); err != nil {
		c.t.Fatal(err)
	}
}

// join makes the client a member of our multicast group.
func (c *client) join() {
	c.t.Helper()
	err := c.SetOption(c.task, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, nativeEndian.AppendUint32(nil, testGroup))
	if err != nil {
		c.t.Fatal(err)
	}
}

// field is an attribute of a request under construction.
type field func(*builder)

func f32(number uint16, v uint32) field {
	return func(b *builder) { b.u32(number, v) }
}

func f16(number uint16, v uint16) field {
	return func(b *builder) { b.be16(number, v) }
}

func fraw(kind uint16, payload ...byte) field {
	return func(b *builder) { b.raw(kind, payload) }
}

func faddr(number uint16, addr string) field {
	return fraw(number, netip.MustParseAddr(addr).AsSlice()...)
}

// fmapped is an IPv4 address in its IPv6 form.
func fmapped(number uint16, addr string) field {
	return fraw(number, net.ParseIP(addr).To16()...)
}

func fnest(number uint16, fields ...field) field {
	return func(b *builder) {
		start := b.nest(number | unix.NLA_F_NESTED)
		for _, f := range fields {
			f(b)
		}
		b.endNest(start)
	}
}

const (
	requestFlags = unix.NLM_F_REQUEST | unix.NLM_F_ACK
	testSeq      = 0x11
)

// message builds a message for the family.
func message(cmd uint8, flags uint16, fields ...field) []byte {
	var b builder
	start := b.generic(header{kind: testFamily, flags: flags, seq: testSeq}, cmd, 0)
	for _, f := range fields {
		f(&b)
	}
	b.endMessage(start)
	return b.buf
}

// ask builds a request about the fake device.
func ask(cmd uint8, fields ...field) []byte {
	return message(cmd, requestFlags, append([]field{f32(uapi.AttrIfindex, testIfindex)}, fields...)...)
}

// refusal is what a client learns from an NLMSG_ERROR or NLMSG_DONE message; the zero value is a success.
type refusal struct {
	Errno    unix.Errno
	Text     string
	Offset   uint32
	Policy   string // hex, without the attribute's header
	MissType uint32
	MissNest uint32
}

// readRefusal takes an NLMSG_ERROR or NLMSG_DONE message apart, as a client library does.
func readRefusal(t testing.TB, msg []byte) refusal {
	t.Helper()
	h := parseHeader(msg)
	var tlvs []byte
	switch h.kind {
	case unix.NLMSG_ERROR:
		skip := headerSize + errorCodeSize
		echoed := headerSize
		if h.flags&flagCapped == 0 {
			echoed = align(int(nativeEndian.Uint32(msg[skip:])))
		}
		tlvs = msg[skip+echoed:]
	case unix.NLMSG_DONE:
		tlvs = msg[headerSize+errorCodeSize:]
	default:
		t.Fatalf("message of type %#x is neither error nor end of dump:\n%s", h.kind, hex.Dump(msg))
	}
	if len(tlvs) > 0 != (h.flags&flagAckTLVs != 0) {
		t.Errorf("%d bytes of extended acknowledgement, flags %#x", len(tlvs), h.flags)
	}
	out := refusal{Errno: unix.Errno(-int32(nativeEndian.Uint32(msg[headerSize:])))}
	r := attributeReader{rest: tlvs, offset: len(msg) - len(tlvs)}
	for a, ok := r.next(); ok; a, ok = r.next() {
		switch a.number() {
		case ackText:
			out.Text = textOf(a)
		case ackOffset:
			out.Offset = a.u32()
		case ackPolicy:
			out.Policy = hex.EncodeToString(a.payload)
		case ackMissType:
			out.MissType = a.u32()
		case ackMissNest:
			out.MissNest = a.u32()
		default:
			t.Errorf("attribute %d in an acknowledgement", a.number())
		}
	}
	if r.leftover() > 0 {
		t.Errorf("%d bytes left in an acknowledgement", r.leftover())
	}
	return out
}

// unhex reads bytes that are written in groups, over several lines.
func unhex(t testing.TB, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(text), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// hexLines shows datagrams so that a difference can be found.
func hexLines(datagrams [][]byte) string {
	var b strings.Builder
	for _, d := range datagrams {
		b.WriteString(hex.Dump(d) + "\n")
	}
	return b.String()
}
