package netlinksrv

import (
	"slices"

	"golang.org/x/sys/unix"
)

// policyDump prepares the answer to a well-formed CTRL_CMD_GETPOLICY: for each operation the numbers of its
// policies, then each policy attribute by attribute, a message for each of these.
func (s *Server) policyDump(family int, msg []byte, port uint32) (*dump, *requestError) {
	described := families[family].operations
	var only attribute
	each(msg, firstAttribute, func(a attribute) {
		if a.number() == unix.CTRL_ATTR_OP {
			only = a
		}
	})
	if only.present() {
		i := slices.IndexFunc(described, func(op operation) bool { return uint32(op.cmd) == only.u32() })
		if i < 0 {
			return nil, &requestError{errno: unix.ENOENT, bad: only.offset}
		}
		described = described[i : i+1]
	}

	var sets policyIndex
	for _, op := range described {
		sets.add(op.do)
		sets.add(op.dump)
	}
	req := parseHeader(msg)
	var messages [][]byte
	message := func(fill func(*builder)) {
		var b builder
		start := b.generic(header{kind: unix.GENL_ID_CTRL, flags: unix.NLM_F_MULTI, seq: req.seq, port: port},
			unix.CTRL_CMD_GETPOLICY, ctrlVersion)
		b.u16(unix.CTRL_ATTR_FAMILY_ID, s.ids[family].family)
		fill(&b)
		b.endMessage(start)
		messages = append(messages, b.buf)
	}
	for _, op := range described {
		message(func(b *builder) {
			outer := b.nest(unix.CTRL_ATTR_OP_POLICY | unix.NLA_F_NESTED)
			inner := b.nest(uint16(op.cmd) | unix.NLA_F_NESTED)
			if op.do != nil {
				b.u32(unix.CTRL_ATTR_POLICY_DO, sets.index(op.do))
			}
			if op.dump != nil {
				b.u32(unix.CTRL_ATTR_POLICY_DUMP, sets.index(op.dump))
			}
			b.endNest(inner)
			b.endNest(outer)
		})
	}
	for i, set := range sets.sets {
		for number := range set.attrs {
			p := &set.attrs[number]
			if kinds[p.kind].wire == 0 {
				continue
			}
			message(func(b *builder) {
				outer := b.nest(unix.CTRL_ATTR_POLICY | unix.NLA_F_NESTED)
				inner := b.nest(uint16(i) | unix.NLA_F_NESTED)
				b.describe(uint16(number)|unix.NLA_F_NESTED, p, sets.index)
				b.endNest(inner)
				b.endNest(outer)
			})
		}
	}
	return &dump{
		req: req, port: port, count: len(messages),
		build: func(i int) []byte { return messages[i] },
	}, nil
}

// policyIndex numbers attribute sets in the order in which the kernel comes across them.
type policyIndex struct{ sets []*attributeSet }

// add numbers a set unless it has a number, and then all sets nested in numbered ones.
func (x *policyIndex) add(set *attributeSet) {
	if set == nil {
		return
	}
	if !slices.Contains(x.sets, set) {
		x.sets = append(x.sets, set)
	}
	for i := 0; i < len(x.sets); i++ { // grows meanwhile
		for _, p := range x.sets[i].attrs {
			if p.kind == kindNest && !slices.Contains(x.sets, p.nest) {
				x.sets = append(x.sets, p.nest)
			}
		}
	}
}

func (x *policyIndex) index(set *attributeSet) uint32 { return uint32(slices.Index(x.sets, set)) }
