package conformance

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"ovpn-go/test/conformance/script"
)

// getFamily is CTRL_CMD_GETFAMILY.
func getFamily(flags uint16, attrs ...attr) message {
	return message{kind: unix.GENL_ID_CTRL, flags: flags, body: []byte{unix.CTRL_CMD_GETFAMILY, 2, 0, 0}, attrs: attrs}
}

// getPolicy is CTRL_CMD_GETPOLICY.
func getPolicy(flags uint16, attrs ...attr) message {
	return message{kind: unix.GENL_ID_CTRL, flags: flags, body: []byte{unix.CTRL_CMD_GETPOLICY, 2, 0, 0}, attrs: attrs}
}

// familyID is CTRL_ATTR_FAMILY_ID with the id of our family.
func familyID() attr {
	return attr{kind: unix.CTRL_ATTR_FAMILY_ID, value: make([]byte, 2), patch: script.Patch{What: script.FamilyID}}
}

func familyName(name string) attr { return text(unix.CTRL_ATTR_FAMILY_NAME, name) }

// controllerSequences are about what nlctrl says of the family.
func controllerSequences(p profile) []*writer {
	w := newSequence("controller", p)
	ask := func(name string, attrs ...attr) {
		w.send("GETFAMILY "+name, control, getFamily(unix.NLM_F_REQUEST, attrs...))
		w.send("GETFAMILY, NLM_F_ACK, "+name, control, getFamily(do, attrs...))
	}
	ask("by name", familyName("ovpn"))
	ask("by id", familyID())
	ask("by name and id", familyName("ovpn"), familyID())
	ask("by id and another name", familyName("nlctrl"), familyID())
	ask("by name and another id", u16(unix.CTRL_ATTR_FAMILY_ID, unix.GENL_ID_CTRL), familyName("ovpn"))
	ask("by an unknown name", familyName("ovpn-dco-v9"))
	ask("by a longer name", familyName("ovpnx"))
	ask("by a shorter name", familyName("ovp"))
	ask("by an empty name", familyName(""))
	ask("without NUL", attr{kind: unix.CTRL_ATTR_FAMILY_NAME, value: []byte("ovpn")})
	ask("with bytes behind the NUL", attr{kind: unix.CTRL_ATTR_FAMILY_NAME, value: []byte("ovpn\x00xyz")})
	ask("with a long name", familyName("ovpn"+strings.Repeat("x", 20)))
	ask("with two names", familyName("nlctrl"), familyName("ovpn"))
	ask("by an unknown id", u16(unix.CTRL_ATTR_FAMILY_ID, unusedFamily))
	ask("by a short id", u8(unix.CTRL_ATTR_FAMILY_ID, 1))
	ask("by a long id", u32(unix.CTRL_ATTR_FAMILY_ID, unusedFamily))
	ask("by nothing")
	ask("with an unknown attribute", familyName("ovpn"), u32(60, 1))
	ask("with another attribute", familyName("ovpn"), u32(unix.CTRL_ATTR_VERSION, 1))
	ask("with bytes behind", familyName("ovpn"), junk(0, 0, 0))
	ask("with a nested name", attr{kind: unix.CTRL_ATTR_FAMILY_NAME | nested, value: []byte("ovpn\x00")})
	for _, version := range []uint8{0, 1, 255} {
		m := getFamily(do, familyName("ovpn"))
		m.body = []byte{unix.CTRL_CMD_GETFAMILY, version, 0, 0}
		w.send(fmt.Sprintf("GETFAMILY version %d", version), control, m)
	}
	m := getFamily(do, familyName("ovpn"))
	m.body = []byte{unix.CTRL_CMD_GETFAMILY, 1, 1, 0}
	w.send("GETFAMILY with reserved byte", control, m)
	for _, flag := range []uint16{unix.NLM_F_ROOT, unix.NLM_F_MATCH, unix.NLM_F_ATOMIC, unix.NLM_F_ECHO, unix.NLM_F_MULTI} {
		w.send(fmt.Sprintf("GETFAMILY flag %#x", flag), control, getFamily(do|flag, familyName("ovpn")))
	}
	w.send("GETFAMILY without NLM_F_REQUEST", control, getFamily(unix.NLM_F_ACK, familyName("ovpn")))
	w.send("GETFAMILY twice", control, getFamily(do, familyName("ovpn")), getFamily(unix.NLM_F_REQUEST, familyID()))
	w.send("GETFAMILY dump", control, getFamily(dumping))
	w.send("GETFAMILY dump with a name", control, getFamily(dumping, familyName("ovpn")))
	for _, cmd := range []uint8{0, unix.CTRL_CMD_NEWFAMILY, unix.CTRL_CMD_DELFAMILY, 99} {
		m := getFamily(do, familyName("ovpn"))
		m.body = []byte{cmd, 2, 0, 0}
		w.send(fmt.Sprintf("controller command %d", cmd), control, m)
	}

	policy := func(name string, attrs ...attr) {
		w.send("GETPOLICY "+name, control, getPolicy(dumping, attrs...))
	}
	policy("by id", familyID())
	policy("by name", familyName("ovpn"))
	policy("by id and another name", familyID(), familyName("nlctrl"))
	for op := range uint32(13) {
		policy(fmt.Sprintf("of operation %d", op), familyID(), u32(unix.CTRL_ATTR_OP, op))
	}
	policy("of an operation by name", familyName("ovpn"), u32(unix.CTRL_ATTR_OP, peerSet))
	policy("of an operation of no family", u32(unix.CTRL_ATTR_OP, peerSet))
	policy("of nothing")
	policy("of an unknown id", u16(unix.CTRL_ATTR_FAMILY_ID, unusedFamily))
	policy("of an unknown name", familyName("nosuch"))
	policy("with a short id", u8(unix.CTRL_ATTR_FAMILY_ID, 1))
	policy("with a nested id", u16(unix.CTRL_ATTR_FAMILY_ID|nested, 1))
	policy("with a short operation", familyID(), u16(unix.CTRL_ATTR_OP, 1))
	policy("with an unknown attribute", familyID(), u32(60, 1))
	policy("with a name without NUL", attr{kind: unix.CTRL_ATTR_FAMILY_NAME, value: []byte("ovpn")})
	policy("with bytes behind", familyID(), junk(0))
	w.send("GETPOLICY, not as a dump", control, getPolicy(do, familyID()))
	w.send("GETPOLICY, NLM_F_ACK", control, getPolicy(dumping|unix.NLM_F_ACK, familyID()))
	w.send("GETPOLICY, then GETFAMILY", control, getPolicy(dumping, familyID()), getFamily(do, familyName("ovpn")))
	return []*writer{w}
}
