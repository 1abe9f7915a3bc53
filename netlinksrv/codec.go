package netlinksrv

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Sizes of the fixed headers (struct nlmsghdr, genlmsghdr and nlattr), each a multiple of the alignment.
const (
	headerSize        = unix.NLMSG_HDRLEN
	genericHeaderSize = 4
	attributeHeader   = 4
	firstAttribute    = headerSize + genericHeaderSize
)

// typeMask leaves an attribute's number; the bits above it are NLA_F_NESTED and NLA_F_NET_BYTEORDER.
const typeMask = 0x3fff

// nativeEndian is the byte order of everything in netlink that is not an IP address or a port.
var nativeEndian = binary.NativeEndian

// align rounds up to NLMSG_ALIGNTO, which is also NLA_ALIGNTO.
func align(n int) int { return (n + 3) &^ 3 }

// header is struct nlmsghdr.
type header struct {
	length uint32
	kind   uint16 // nlmsg_type
	flags  uint16
	seq    uint32
	port   uint32 // nlmsg_pid
}

func parseHeader(b []byte) header {
	_ = b[headerSize-1]
	return header{
		length: nativeEndian.Uint32(b),
		kind:   nativeEndian.Uint16(b[4:]),
		flags:  nativeEndian.Uint16(b[6:]),
		seq:    nativeEndian.Uint32(b[8:]),
		port:   nativeEndian.Uint32(b[12:]),
	}
}

// isDump reports whether both bits of NLM_F_DUMP are set; one alone does not ask for a dump.
func (h header) isDump() bool { return h.flags&unix.NLM_F_DUMP == unix.NLM_F_DUMP }

// cutMessage takes the first message off a datagram. It returns false at the end and at a message whose length
// is impossible: nothing behind such a message is looked at.
func cutMessage(datagram []byte) (msg, rest []byte, ok bool) {
	if len(datagram) < headerSize {
		return nil, nil, false
	}
	n := nativeEndian.Uint32(datagram)
	if n < headerSize || uint64(n) > uint64(len(datagram)) {
		return nil, nil, false
	}
	return datagram[:n:n], datagram[min(align(int(n)), len(datagram)):], true
}

// attribute is one attribute as it lies in a message. The zero attribute is one that is not there.
type attribute struct {
	kind    uint16 // nla_type with its flag bits
	offset  int    // of the attribute's header, from the start of the message
	payload []byte
}

func (a attribute) present() bool  { return a.offset != 0 }
func (a attribute) number() uint16 { return a.kind & typeMask }
func (a attribute) nested() bool   { return a.kind&unix.NLA_F_NESTED != 0 }

// u32 and be16 are for attributes whose length has been checked.
func (a attribute) u32() uint32  { return nativeEndian.Uint32(a.payload) }
func (a attribute) be16() uint16 { return binary.BigEndian.Uint16(a.payload) }

// attributeReader walks over attributes that follow one another.
type attributeReader struct {
	rest   []byte
	offset int // of rest, from the start of the message
}

// next returns the next attribute, or false where no further one fits. What is left then (see leftover) is
// nothing, or bytes that do not form an attribute.
func (r *attributeReader) next() (attribute, bool) {
	if len(r.rest) < attributeHeader {
		return attribute{}, false
	}
	n := int(nativeEndian.Uint16(r.rest))
	if n < attributeHeader || n > len(r.rest) {
		return attribute{}, false
	}
	a := attribute{kind: nativeEndian.Uint16(r.rest[2:]), offset: r.offset, payload: r.rest[attributeHeader:n:n]}
	// The last attribute may come without its padding.
	step := min(align(n), len(r.rest))
	r.rest = r.rest[step:]
	r.offset += step
	return a, true
}

// leftover returns how many bytes no attribute was made of, once next has returned false.
func (r *attributeReader) leftover() int { return len(r.rest) }

// builder appends messages and attributes to a datagram.
type builder struct{ buf []byte }

// message starts a message and returns its position, for endMessage. Its length is set there.
func (b *builder) message(h header) int {
	start := len(b.buf)
	b.buf = nativeEndian.AppendUint32(b.buf, 0)
	b.buf = nativeEndian.AppendUint16(b.buf, h.kind)
	b.buf = nativeEndian.AppendUint16(b.buf, h.flags)
	b.buf = nativeEndian.AppendUint32(b.buf, h.seq)
	b.buf = nativeEndian.AppendUint32(b.buf, h.port)
	return start
}

// generic starts a generic netlink message.
func (b *builder) generic(h header, cmd, version uint8) int {
	start := b.message(h)
	b.buf = append(b.buf, cmd, version, 0, 0)
	return start
}

func (b *builder) endMessage(start int) {
	nativeEndian.PutUint32(b.buf[start:], uint32(len(b.buf)-start))
}

// raw appends an attribute and its padding.
func (b *builder) raw(kind uint16, payload []byte) {
	start := b.nest(kind)
	b.buf = append(b.buf, payload...)
	b.endNest(start)
}

func (b *builder) u8(kind uint16, v uint8)   { b.raw(kind, []byte{v}) }
func (b *builder) u16(kind uint16, v uint16) { b.raw(kind, nativeEndian.AppendUint16(nil, v)) }
func (b *builder) u32(kind uint16, v uint32) { b.raw(kind, nativeEndian.AppendUint32(nil, v)) }
func (b *builder) u64(kind uint16, v uint64) { b.raw(kind, nativeEndian.AppendUint64(nil, v)) }
func (b *builder) be16(kind uint16, v uint16) {
	b.raw(kind, binary.BigEndian.AppendUint16(nil, v))
}

// uint appends a value of type NLA_UINT: 4 bytes if it fits, 8 otherwise.
func (b *builder) uint(kind uint16, v uint64) {
	if v <= 0xffffffff {
		b.u32(kind, uint32(v))
		return
	}
	b.u64(kind, v)
}

// text appends a NUL-terminated string.
func (b *builder) text(kind uint16, s string) { b.raw(kind, append([]byte(s), 0)) }

// nest starts an attribute that holds what is appended until endNest. The caller adds NLA_F_NESTED to the kind
// where the kernel does.
func (b *builder) nest(kind uint16) int {
	start := len(b.buf)
	b.buf = nativeEndian.AppendUint16(b.buf, 0)
	b.buf = nativeEndian.AppendUint16(b.buf, kind)
	return start
}

// endNest sets the length of the attribute that nest started, which includes the padding of attributes inside
// but not its own.
func (b *builder) endNest(start int) {
	nativeEndian.PutUint16(b.buf[start:], uint16(len(b.buf)-start))
	b.pad()
}

func (b *builder) pad() {
	for len(b.buf)%4 != 0 {
		b.buf = append(b.buf, 0)
	}
}
