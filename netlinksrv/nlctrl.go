package netlinksrv

import (
	"bytes"

	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv/uapi"
)

// The generic netlink controller, "nlctrl", tells clients which families there are. The kernel's answers for all
// families but ours; what is below makes it look as if it did for ours too.

const (
	ctrlVersion = 2 // of the controller family

	maxFamilyName = unix.GENL_NAMSIZ - 1
)

// Flags of an operation as the controller shows them (GENL_ADMIN_PERM and so on).
const (
	ctrlOpAdmin     = 0x01
	ctrlOpDo        = 0x02
	ctrlOpDump      = 0x04
	ctrlOpHasPolicy = 0x08
)

// question is what a message to the controller asks.
type question uint8

const (
	questionForeign  question = iota // nothing that concerns a family of ours
	questionFamily                   // for one of them
	questionFamilies                 // for all families
	questionPolicy                   // for the policies of one of ours
)

// controllerQuestion looks at a message to the controller, and says which family it is about. What the controller would
// refuse is foreign: it shall say so itself.
func (s *Server) controllerQuestion(msg []byte) (asked question, family int) {
	h := parseHeader(msg)
	if h.flags&unix.NLM_F_REQUEST == 0 || len(msg) < firstAttribute {
		return questionForeign, 0
	}
	switch cmd := msg[headerSize]; {
	case cmd == unix.CTRL_CMD_GETFAMILY && h.isDump():
		return questionFamilies, 0
	case cmd == unix.CTRL_CMD_GETFAMILY:
		if f, ours := s.namedFamily(msg); ours {
			return questionFamily, f
		}
	case cmd == unix.CTRL_CMD_GETPOLICY && h.isDump():
		if f, ours := s.policyWanted(msg); ours {
			return questionPolicy, f
		}
	}
	return questionForeign, 0
}

// namedFamily returns the family of ours that a well-formed CTRL_CMD_GETFAMILY is for. The name decides if there
// are a name and an id. Attributes are parsed as leniently as by the kernel.
func (s *Server) namedFamily(msg []byte) (family int, ours bool) {
	var name, id attribute
	each(msg, firstAttribute, func(a attribute) {
		switch a.number() {
		case unix.CTRL_ATTR_FAMILY_ID:
			id = a
		case unix.CTRL_ATTR_FAMILY_NAME:
			name = a
		}
	})
	if id.present() && len(id.payload) < 2 {
		return 0, false
	}
	if name.present() {
		return familyNamed(name.payload)
	}
	if id.present() {
		return s.familyWith(nativeEndian.Uint16(id.payload))
	}
	return 0, false
}

// policyWanted returns the family of ours that a well-formed CTRL_CMD_GETPOLICY is for. The id decides if there are
// a name and an id. Attributes are parsed as strictly as by the kernel.
func (s *Server) policyWanted(msg []byte) (family int, ours bool) {
	var name, id attribute
	r := attributeReader{rest: msg[firstAttribute:], offset: firstAttribute}
	for a, ok := r.next(); ok; a, ok = r.next() {
		valid := false
		switch a.number() {
		case unix.CTRL_ATTR_FAMILY_ID:
			valid, id = len(a.payload) == 2, a
		case unix.CTRL_ATTR_FAMILY_NAME:
			end := bytes.IndexByte(a.payload, 0)
			valid, name = end >= 0 && end <= maxFamilyName && len(a.payload) <= maxFamilyName+1, a
		case unix.CTRL_ATTR_OP:
			valid = len(a.payload) == 4
		}
		if !valid || a.nested() {
			return 0, false
		}
	}
	switch {
	case r.leftover() > 0:
		return 0, false
	case id.present():
		return s.familyWith(nativeEndian.Uint16(id.payload))
	case name.present():
		return familyNamed(name.payload)
	}
	return 0, false
}

// familyNamed looks for a NUL-terminated name, which may have bytes behind its end.
func familyNamed(name []byte) (family int, ours bool) {
	end := bytes.IndexByte(name, 0)
	if end < 0 || len(name) > maxFamilyName+1 {
		return 0, false
	}
	for i := range families {
		if string(name[:end]) == families[i].name {
			return i, true
		}
	}
	return 0, false
}

// serveController answers a message to the controller that is not foreign.
func (g *GenericSocket) serveController(task Task, msg []byte) {
	asked, family := g.server.controllerQuestion(msg)
	switch asked {
	case questionFamily:
		h := parseHeader(msg)
		g.post(g.server.describeFamily(family, h, g.Port(), 0))
		if h.flags&unix.NLM_F_ACK != 0 {
			g.post(acknowledge(msg, g.Port(), leftoverWarning(msg), g.ackOptions()))
		}
	case questionFamilies:
		if g.dumping() || g.merge.Load() != nil {
			g.post(acknowledge(msg, g.Port(), &requestError{errno: unix.EBUSY}, g.ackOptions()))
			return
		}
		g.merge.Store(&familyMerge{header: parseHeader(msg)})
		if err := g.relay(task, msg); err != nil {
			g.merge.Store(nil)
		}
	case questionPolicy:
		d, err := g.server.policyDump(family, msg, g.Port())
		if err == nil && g.dumping() {
			err = &requestError{errno: unix.EBUSY}
		}
		if err != nil {
			g.post(acknowledge(msg, g.Port(), err, g.ackOptions()))
			return
		}
		g.startDump(d)
	}
}

// leftoverWarning is what the kernel has to say about a request that it parses leniently: nil, or that bytes behind
// the attributes were ignored.
func leftoverWarning(msg []byte) *requestError {
	r := attributeReader{rest: msg[firstAttribute:], offset: firstAttribute}
	for _, ok := r.next(); ok; _, ok = r.next() {
	}
	if r.leftover() == 0 {
		return nil
	}
	return &requestError{text: leftoverText}
}

// describeFamily builds the controller's CTRL_CMD_NEWFAMILY message for a family of ours.
func (s *Server) describeFamily(family int, req header, port uint32, flags uint16) []byte {
	var b builder
	f, ids := &families[family], s.ids[family]
	start := b.generic(header{kind: unix.GENL_ID_CTRL, flags: flags, seq: req.seq, port: port},
		unix.CTRL_CMD_NEWFAMILY, ctrlVersion)
	b.text(unix.CTRL_ATTR_FAMILY_NAME, f.name)
	b.u16(unix.CTRL_ATTR_FAMILY_ID, ids.family)
	b.u32(unix.CTRL_ATTR_VERSION, uapi.FamilyVersion)
	b.u32(unix.CTRL_ATTR_HDRSIZE, 0)
	b.u32(unix.CTRL_ATTR_MAXATTR, 0)
	// These nests are older than NLA_F_NESTED and do not have it. They count their members from 1.
	ops := b.nest(unix.CTRL_ATTR_OPS)
	for i, op := range f.operations {
		one := b.nest(uint16(i + 1))
		b.u32(unix.CTRL_ATTR_OP_ID, uint32(op.cmd))
		b.u32(unix.CTRL_ATTR_OP_FLAGS, op.flags())
		b.endNest(one)
	}
	b.endNest(ops)
	groups := b.nest(unix.CTRL_ATTR_MCAST_GROUPS)
	one := b.nest(1)
	b.u32(unix.CTRL_ATTR_MCAST_GRP_ID, ids.group)
	b.text(unix.CTRL_ATTR_MCAST_GRP_NAME, uapi.GroupName)
	b.endNest(one)
	b.endNest(groups)
	b.endMessage(start)
	return b.buf
}

// describeFamilies builds the part of a dump of families that is ours.
func (s *Server) describeFamilies(req header, port uint32) (messages []byte) {
	for i := range families {
		messages = append(messages, s.describeFamily(i, req, port, unix.NLM_F_MULTI)...)
	}
	return messages
}

func (op *operation) flags() uint32 {
	flags := uint32(ctrlOpAdmin | ctrlOpHasPolicy)
	if op.do != nil {
		flags |= ctrlOpDo
	}
	if op.dump != nil {
		flags |= ctrlOpDump
	}
	return flags
}

// familyMerge is a dump of families that the kernel is giving and our families are put into.
type familyMerge struct{ header header }

// postRelayed delivers what the kernel sent to the twin.
func (g *GenericSocket) postRelayed(datagram []byte) error {
	merge := g.merge.Load()
	if merge == nil {
		return g.tryPost(datagram)
	}
	out, ended, failed := g.server.mergeFamilies(datagram, merge.header.seq)
	if ended {
		// In a datagram of their own, before the one that ends the dump.
		if err := g.tryPost(g.server.describeFamilies(merge.header, g.Port())); err != nil {
			return err
		}
	}
	if ended || failed {
		g.merge.Store(nil)
	}
	if len(out) == 0 {
		return nil
	}
	return g.tryPost(out)
}

// mergeFamilies looks at one datagram of a dump of families: it takes out the kernel's own families of our names, if
// there are any, and finds the end of the dump.
func (s *Server) mergeFamilies(datagram []byte, seq uint32) (out []byte, ended, failed bool) {
	for rest := datagram; ; {
		msg, after, ok := cutMessage(rest)
		if !ok {
			return append(out, rest...), ended, failed
		}
		size := len(rest) - len(after)
		h := parseHeader(msg)
		switch {
		case h.seq != seq:
		case h.kind == unix.NLMSG_ERROR:
			failed = true
		case h.kind == unix.NLMSG_DONE:
			failed = len(msg) >= headerSize+errorCodeSize && nativeEndian.Uint32(msg[headerSize:]) != 0
			ended = !failed
		case h.kind == unix.GENL_ID_CTRL && isNamesake(msg):
			rest = after
			continue
		}
		out = append(out, rest[:size]...)
		rest = after
	}
}

// isNamesake reports whether a CTRL_CMD_NEWFAMILY message is about a family of the kernel's with the name of one of ours.
func isNamesake(msg []byte) (found bool) {
	each(msg, firstAttribute, func(a attribute) {
		if a.number() == unix.CTRL_ATTR_FAMILY_NAME {
			if _, ours := familyNamed(a.payload); ours {
				found = true
			}
		}
	})
	return found
}
