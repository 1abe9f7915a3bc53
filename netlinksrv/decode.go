package netlinksrv

import (
	"fmt"
	"net/netip"
	"strings"
)

// decode puts a message of a family into words, for the log. Key material is left out.
func (f *family) decode(msg []byte) string {
	if len(msg) < firstAttribute {
		return ""
	}
	h := parseHeader(msg)
	var b strings.Builder
	fmt.Fprintf(&b, "%s flags=%#x seq=%d", f.commandName(msg[headerSize]), h.flags, h.seq)
	decodeSet(&b, f.messages, msg[firstAttribute:])
	return b.String()
}

func (f *family) commandName(cmd uint8) string {
	if name, ok := f.notifications[cmd]; ok {
		return name
	}
	if op := f.operation(cmd); op != nil {
		return op.name
	}
	return fmt.Sprintf("command(%d)", cmd)
}

// decodeSet writes the attributes in data, valid or not.
func decodeSet(b *strings.Builder, set *attributeSet, data []byte) {
	r := attributeReader{rest: data}
	for a, ok := r.next(); ok; a, ok = r.next() {
		if a.number() > set.highest() || set.attrs[a.number()].kind == kindAbsent {
			fmt.Fprintf(b, " attribute(%d)=(%d bytes)", a.number(), len(a.payload))
			continue
		}
		p := &set.attrs[a.number()]
		b.WriteString(" " + p.name)
		if p.kind == kindNest {
			b.WriteString("{")
			decodeSet(b, p.nest, a.payload)
			b.WriteString(" }")
			continue
		}
		b.WriteString("=" + decodeValue(set, p, a))
	}
	if n := r.leftover(); n > 0 {
		fmt.Fprintf(b, " (%d bytes left)", n)
	}
}

func decodeValue(set *attributeSet, p *attributePolicy, a attribute) string {
	switch size := len(a.payload); {
	case set == keyDirection:
		// Never the value.
	case p.kind == kindBE16 && size == 2:
		return fmt.Sprint(a.be16())
	case p.kind == kindBE32 && size == 4, p.kind == kindBinary && size == 16:
		addr, _ := netip.AddrFromSlice(a.payload)
		return addr.String()
	case p.kind == kindS32 && size == 4:
		return fmt.Sprint(int32(a.u32()))
	case size == 2:
		return fmt.Sprint(nativeEndian.Uint16(a.payload))
	case size == 4:
		return fmt.Sprint(a.u32())
	case size == 8:
		return fmt.Sprint(nativeEndian.Uint64(a.payload))
	}
	return fmt.Sprintf("(%d bytes)", len(a.payload))
}
