package netlinksrv

import (
	"bytes"
	"context"
	"log/slog"
	"slices"

	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv/uapi"
)

// Send is sendmsg of one datagram by task. The answers have been delivered when it returns, except what the
// client's queue has no room for. It never fails: what is wrong with a message is said in an answer.
//
// A datagram may hold several messages, which are executed in order. Send wipes datagram where that holds keys.
func (g *GenericSocket) Send(task Task, datagram []byte) {
	g.sendMu.Lock()
	defer g.sendMu.Unlock()
	if g.closed {
		return
	}
	if g.Port() == 0 {
		if err := g.Bind(task, 0, 0); err != nil {
			g.server.log.Warn("bind netlink socket", "error", err)
		}
	}
	if !g.server.concerns(datagram) {
		g.relay(task, datagram)
		return
	}
	for {
		msg, rest, ok := cutMessage(datagram)
		if !ok {
			break
		}
		h := parseHeader(msg)
		if f, ours := g.server.familyWith(h.kind); ours {
			g.serve(task, f, msg)
		} else if h.kind == unix.GENL_ID_CTRL && g.server.concerns(msg) {
			g.serveController(task, msg)
		} else {
			g.relay(task, msg)
		}
		datagram = rest
	}
	g.continueDump()
}

// concerns reports whether any message of a datagram is not for the real kernel alone.
func (s *Server) concerns(datagram []byte) bool {
	for {
		msg, rest, ok := cutMessage(datagram)
		if !ok {
			return false
		}
		kind := parseHeader(msg).kind
		if _, ours := s.familyWith(kind); ours {
			return true
		}
		if kind == unix.GENL_ID_CTRL {
			if asked, _ := s.controllerQuestion(msg); asked != questionForeign {
				return true
			}
		}
		datagram = rest
	}
}

// familyWith returns the family that has an id, as an index into families.
func (s *Server) familyWith(id uint16) (family int, ok bool) {
	for i := range s.ids {
		if s.ids[i].family == id {
			return i, true
		}
	}
	return 0, false
}

// request is one do or dump request of a family while it is executed.
type request struct {
	family int // in families
	server *Server
	socket *GenericSocket
	task   Task
	header header
	port   uint32 // of the requester
	raw    []byte // the whole message
	op     *operation

	attrs  parsed // of the message
	inner  parsed // of the operation's nest
	device device
}

// serve executes one message for a family and acknowledges it.
func (g *GenericSocket) serve(task Task, family int, msg []byte) {
	r := &request{
		family: family,
		server: g.server, socket: g, task: task,
		header: parseHeader(msg), port: g.Port(), raw: msg,
	}
	debug := g.server.log.Enabled(context.Background(), slog.LevelDebug)
	if debug {
		g.server.log.Debug("netlink request", "port", r.port, "message", families[family].decode(msg))
	}
	if r.header.flags&unix.NLM_F_REQUEST == 0 {
		if r.header.flags&unix.NLM_F_ACK != 0 {
			g.post(acknowledge(msg, r.port, nil, g.ackOptions()))
		}
		return
	}
	reply, started, err := r.execute()
	if debug {
		g.server.log.Debug("netlink answer", "port", r.port, "seq", r.header.seq, "reply", families[family].decode(reply), "error", err)
	}
	switch {
	case err != nil:
		g.post(acknowledge(msg, r.port, asRequestError(err, unix.EINVAL), g.ackOptions()))
	case started:
		// A dump is not acknowledged, even when that was asked for.
	default:
		if reply != nil {
			g.post(reply)
		}
		if r.header.flags&unix.NLM_F_ACK != 0 {
			g.post(acknowledge(msg, r.port, nil, g.ackOptions()))
		}
	}
	if r.op != nil && r.op.secret && len(msg) > firstAttribute {
		clear(msg[firstAttribute:])
	}
}

// execute makes the kernel's core checks in the kernel's order, then runs the handler or starts the dump.
func (r *request) execute() (reply []byte, started bool, err error) {
	if len(r.raw) < firstAttribute {
		return nil, false, unix.EINVAL
	}
	cmd, reserved := r.raw[headerSize], r.raw[headerSize+2:firstAttribute]
	if !bytes.Equal(reserved, []byte{0, 0}) {
		return nil, false, &requestError{errno: unix.EINVAL, text: "genlmsghdr.reserved field is not 0"}
	}
	flags := r.header.flags
	if r.header.isDump() {
		flags &^= unix.NLM_F_DUMP
	}
	if flags&^(unix.NLM_F_REQUEST|unix.NLM_F_ACK|unix.NLM_F_ECHO) != 0 {
		return nil, false, &requestError{
			errno: unix.EINVAL,
			text:  "ambiguous or reserved bits set in nlmsg_flags",
		}
	}
	r.op = families[r.family].operation(cmd)
	if r.op == nil || r.header.isDump() && r.op.dump == nil {
		return nil, false, unix.EOPNOTSUPP
	}
	if err := r.task.MayAdmin(r.socket.ns); err != nil {
		return nil, false, err
	}
	set := r.op.do
	if r.header.isDump() {
		if r.socket.dumping() {
			return nil, false, unix.EBUSY
		}
		set = r.op.dump
	}
	if invalid := set.validate(r.raw[firstAttribute:], firstAttribute); invalid != nil {
		return nil, false, invalid
	}
	r.attrs = set.parse(r.raw[firstAttribute:], firstAttribute, attribute{})
	if r.header.isDump() {
		r.socket.startDump(r.peerDump())
		return nil, true, nil
	}
	if err := r.findInterface(); err != nil {
		return nil, false, err
	}
	if err := r.openNest(); err != nil {
		return nil, false, err
	}
	if r.op.translate != nil {
		if r.inner, err = r.op.translate(r); err != nil {
			return nil, false, err
		}
	}
	reply, err = r.op.handle(r)
	return reply, false, err
}

// findInterface sets r.device to the device that the request names.
func (r *request) findInterface() error {
	// I1
	if !r.attrs.has(uapi.AttrIfindex) {
		return missing(&r.attrs, uapi.AttrIfindex)
	}
	ifindex := r.attrs.u32(uapi.AttrIfindex)
	// I2. The kernel is asked even where the server knows the link: it may have been deleted a moment ago.
	if !r.server.linkExists(r.socket, ifindex) {
		return refuse(unix.ENODEV, "ifindex does not match any interface")
	}
	// I3
	l := r.server.linkAt(r.socket.ns.ID(), ifindex)
	if l == nil {
		return &requestError{
			errno: unix.EINVAL,
			text:  textPrefix + "specified interface is not ovpn",
			bad:   r.attrs.get(uapi.AttrIfindex).offset,
		}
	}
	r.device = l.dev
	return nil
}

// openNest sets r.inner and checks that it holds what the operation requires (N1, P1, S1, G1 to G3, D1, D2, K1
// and K2).
func (r *request) openNest() error {
	if !r.attrs.has(r.op.nest) {
		return missing(&r.attrs, r.op.nest)
	}
	r.inner = r.attrs.inside(r.op.nest)
	for _, number := range r.op.required {
		if !r.inner.has(number) {
			return missing(&r.inner, number)
		}
	}
	if !r.op.exclusive {
		return nil
	}
	for number := range r.inner.at {
		if r.inner.has(uint16(number)) && !slices.Contains(r.op.required, uint16(number)) {
			return refuse(unix.EINVAL, "unexpected attribute %d", number)
		}
	}
	return nil
}

// reply starts the message that answers r, with cmd and extra flags.
func (r *request) reply(b *builder, cmd uint8, flags uint16) int {
	return b.generic(header{kind: r.server.ids[r.family].family, flags: flags, seq: r.header.seq, port: r.port}, cmd, uapi.FamilyVersion)
}

// interfaceExists is the production value of Server.linkExists.
func (g *GenericSocket) interfaceExists(ifindex uint32) bool { return g.twin.interfaceExists(ifindex) }
