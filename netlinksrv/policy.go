package netlinksrv

import "golang.org/x/sys/unix"

// attributeKind is the type an attribute must have.
type attributeKind uint8

const (
	kindAbsent attributeKind = iota // the number exists, but not in this set
	kindU8
	kindU16
	kindU32
	kindS32
	kindUint // 4 or 8 bytes
	kindBE16
	kindBE32
	kindBinary
	kindNest
)

// kinds says of each attributeKind how long the payload is (0: not fixed by the kind) and how the kernel names
// it in a description (enum netlink_attribute_type; 0: it does not describe it).
var kinds = [...]struct {
	size int
	wire uint32
}{
	kindAbsent: {},
	kindU8:     {size: 1, wire: 2},
	kindU16:    {size: 2, wire: 3},
	kindU32:    {size: 4, wire: 4},
	kindS32:    {size: 4, wire: 8},
	kindUint:   {wire: 17},
	kindBE16:   {size: 2},
	kindBE32:   {size: 4},
	kindBinary: {wire: 10},
	kindNest:   {wire: 13},
}

// attributePolicy is what one attribute of a set must satisfy. The zero value refuses it.
type attributePolicy struct {
	name string
	kind attributeKind
	// min and max bound the value of a kindU8, kindU16, kindU32 or kindBE16 and the length of a kindBinary.
	min, max uint64
	// atMost marks a kindBinary with an upper bound only, which the kernel enforces but does not describe.
	atMost bool
	nest   *attributeSet // kindNest only
}

// attributeSet is the attributes that may stand next to one another; the index is the attribute's number.
type attributeSet struct {
	name  string
	attrs []attributePolicy
}

func (s *attributeSet) highest() uint16 { return uint16(len(s.attrs) - 1) }

// policyCheck is one reason to refuse an attribute whose number is within its set.
type policyCheck struct {
	name  string
	fails func(*attributePolicy, attribute) bool
	errno unix.Errno
	text  string
}

// policyChecks are made in this order, the kernel's; the first that fails counts.
var policyChecks = []policyCheck{
	{"V2", func(p *attributePolicy, a attribute) bool {
		size := kinds[p.kind].size
		return size != 0 && len(a.payload) != size
	}, unix.EINVAL, "invalid attribute length"},
	{"V3", func(p *attributePolicy, a attribute) bool {
		return p.kind == kindNest && !a.nested()
	}, unix.EINVAL, "NLA_F_NESTED is missing"},
	{"V4", func(p *attributePolicy, a attribute) bool {
		return p.kind != kindNest && p.kind != kindAbsent && a.nested()
	}, unix.EINVAL, "NLA_F_NESTED not expected"},
	{"V5", func(p *attributePolicy, a attribute) bool {
		return p.kind == kindUint && len(a.payload) != 4 && len(a.payload) != 8
	}, unix.EINVAL, "invalid attribute length"},
	{"V6", func(p *attributePolicy, a attribute) bool {
		return p.kind == kindNest && len(a.payload) > 0 && len(a.payload) < attributeHeader
	}, unix.ERANGE, "Attribute failed policy validation"},
	{"V7", func(p *attributePolicy, _ attribute) bool {
		return p.kind == kindAbsent
	}, unix.EINVAL, "Unsupported attribute"},
	{"V8", func(p *attributePolicy, a attribute) bool {
		switch p.kind {
		case kindU8:
			return outside(uint64(a.payload[0]), p)
		case kindU16:
			return outside(uint64(nativeEndian.Uint16(a.payload)), p)
		case kindU32:
			return outside(uint64(a.u32()), p)
		case kindBE16:
			return outside(uint64(a.be16()), p)
		}
		return false
	}, unix.ERANGE, "integer out of range"},
	{"V9", func(p *attributePolicy, a attribute) bool {
		return p.kind == kindBinary && outside(uint64(len(a.payload)), p)
	}, unix.ERANGE, "binary attribute size out of range"},
}

func outside(v uint64, p *attributePolicy) bool { return v < p.min || v > p.max }

// leftoverText is what the kernel says of bytes that form no attribute.
const leftoverText = "bytes leftover after parsing attributes"

// validate checks data, which starts offset bytes into its message, against a set and the sets nested in it. It
// does so attribute by attribute, and the first that fails counts, whether or not it is overridden later on.
func (s *attributeSet) validate(data []byte, offset int) *requestError {
	r := attributeReader{rest: data, offset: offset}
	for {
		a, ok := r.next()
		if !ok {
			break
		}
		// V1
		if a.number() == 0 || a.number() > s.highest() {
			return &requestError{errno: unix.EINVAL, text: "Unknown attribute type", bad: a.offset}
		}
		p := &s.attrs[a.number()]
		for i := range policyChecks {
			c := &policyChecks[i]
			if !c.fails(p, a) {
				continue
			}
			return &requestError{errno: c.errno, text: c.text, bad: a.offset, policy: p}
		}
		if p.kind == kindNest {
			if err := p.nest.validate(a.payload, a.offset+attributeHeader); err != nil {
				return err
			}
		}
	}
	// V10
	if r.leftover() > 0 {
		return &requestError{errno: unix.EINVAL, text: leftoverText}
	}
	return nil
}

// parsed is a set of attributes found in a message, after it has been validated.
type parsed struct {
	set  *attributeSet
	at   []attribute // by number
	nest attribute   // that they are in; not present for those of the message itself
}

// parse collects validated attributes by number. Of several with one number the last one is used.
func (s *attributeSet) parse(data []byte, offset int, nest attribute) parsed {
	p := parsed{set: s, at: make([]attribute, len(s.attrs)), nest: nest}
	r := attributeReader{rest: data, offset: offset}
	for {
		a, ok := r.next()
		if !ok {
			return p
		}
		p.at[a.number()] = a
	}
}

// inside collects the attributes of a nest that is present.
func (p *parsed) inside(number uint16) parsed {
	a := p.at[number]
	return p.set.attrs[number].nest.parse(a.payload, a.offset+attributeHeader, a)
}

func (p *parsed) has(number uint16) bool { return p.get(number).present() }

// get returns an attribute, the zero one if it is not there or not in the set.
func (p *parsed) get(number uint16) attribute {
	if int(number) >= len(p.at) {
		return attribute{}
	}
	return p.at[number]
}

func (p *parsed) u32(number uint16) uint32 { return p.at[number].u32() }

// Numbers of a policy description's attributes (enum netlink_policy_type_attr).
const (
	describeType      = 1
	describeMinSigned = 2
	describeMaxSigned = 3
	describeMin       = 4
	describeMax       = 5
	describeMinLength = 6
	describeMaxLength = 7
	describeIndex     = 8
	describeHighest   = 9
)

// describe appends a policy as the kernel tells it to clients, or nothing if the kernel can't tell it. index,
// unless nil, gives the number under which a nested set is described.
func (b *builder) describe(kind uint16, p *attributePolicy, index func(*attributeSet) uint32) bool {
	wire := kinds[p.kind].wire
	if wire == 0 {
		return false
	}
	start := b.nest(kind)
	switch p.kind {
	case kindU8, kindU16, kindU32:
		b.u64(describeMin, p.min)
		b.u64(describeMax, p.max)
	case kindS32:
		const minInt32, maxInt32 = -1 << 31, 1<<31 - 1
		low := int64(minInt32)
		b.u64(describeMinSigned, uint64(low))
		b.u64(describeMaxSigned, maxInt32)
	case kindUint:
		b.u64(describeMin, 0)
		b.u64(describeMax, 1<<64-1)
	case kindBinary:
		if !p.atMost {
			b.u32(describeMinLength, uint32(p.min))
			b.u32(describeMaxLength, uint32(p.max))
		}
	case kindNest:
		if index != nil {
			b.u32(describeIndex, index(p.nest))
			b.u32(describeHighest, uint32(p.nest.highest()))
		}
	}
	b.u32(describeType, wire)
	b.endNest(start)
	return true
}
