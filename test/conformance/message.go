package conformance

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"ovpn-go/test/conformance/script"
)

// The family's numbers are written down here once more, from include/uapi/linux/ovpn.h, because a test that takes
// them from the code under test would repeat its mistakes.
const (
	peerNew, peerSet, peerGet, peerDel      = 1, 2, 3, 4
	keyNew, keyGet, keySwap, keyDel         = 6, 7, 8, 10
	peerDelNtf, keySwapNtf, peerFloatNtf    = 5, 9, 11
	attrIfindex, attrPeer, attrKeyconf      = 1, 2, 3
	nested                                  = unix.NLA_F_NESTED
	netByteOrder                            = unix.NLA_F_NET_BYTEORDER
	headerSize, genericSize, attributeStart = 16, 4, 20
)

// Attributes of a peer.
const (
	peerID = iota + 1
	peerRemote4
	peerRemote6
	peerScope
	peerPort
	peerSocket
	peerNetNSID
	peerVPN4
	peerVPN6
	peerLocal4
	peerLocal6
	peerLocalPort
	peerInterval
	peerTimeout
	peerReason
	peerVPNRxBytes
	_
	_
	_
	_
	_
	_
	peerLinkTxPackets
	peerTxID
)

// Attributes of a key, and of one of its directions.
const (
	keyPeerID = iota + 1
	keySlot
	keyID
	keyCipher
	keyEncrypt
	keyDecrypt

	dirKey  = 1
	dirTail = 2
)

// attr is an attribute of a request, well-formed or not.
type attr struct {
	kind  uint16
	value []byte
	kids  []attr
	// size replaces the length in the header, if it is not 0.
	size uint16
	// bare leaves the header out: value is what stands there.
	bare bool
	// tight leaves the padding out.
	tight bool
	patch script.Patch
}

func data(kind uint16, value ...byte) attr { return attr{kind: kind, value: value} }

func bytesOf(kind uint16, n int) attr { return attr{kind: kind, value: make([]byte, n)} }

func u8(kind uint16, v uint8) attr { return data(kind, v) }

func u16(kind uint16, v uint16) attr {
	return attr{kind: kind, value: binary.NativeEndian.AppendUint16(nil, v)}
}

func u32(kind uint16, v uint32) attr {
	return attr{kind: kind, value: binary.NativeEndian.AppendUint32(nil, v)}
}

func be16(kind uint16, v uint16) attr {
	return attr{kind: kind, value: binary.BigEndian.AppendUint16(nil, v)}
}

func text(kind uint16, s string) attr { return attr{kind: kind, value: append([]byte(s), 0)} }

func addr(kind uint16, s string) attr {
	return attr{kind: kind, value: netip.MustParseAddr(s).AsSlice()}
}

func nest(kind uint16, kids ...attr) attr {
	if kids == nil {
		kids = []attr{}
	}
	return attr{kind: kind | nested, kids: kids}
}

func junk(bytes ...byte) attr { return attr{value: bytes, bare: true} }

func ifindexOf(name string) attr {
	return attr{kind: attrIfindex, value: make([]byte, 4), patch: script.Patch{What: script.Ifindex, Of: name}}
}

func fdOf(kind uint16, name string) attr {
	return attr{kind: kind, value: make([]byte, 4), patch: script.Patch{What: script.FD, Of: name}}
}

func peer(kids ...attr) attr { return nest(attrPeer, kids...) }

func keyconf(kids ...attr) attr { return nest(attrKeyconf, kids...) }

// message is one netlink message. A kind of 0 is the id of the ovpn family.
type message struct {
	kind  uint16
	flags uint16
	port  uint32
	body  []byte // what stands between nlmsghdr and attributes
	attrs []attr
	// length replaces nlmsg_len, if it is not 0.
	length uint32
	// patches are those of the body, with offsets in the message.
	patches []script.Patch
}

// request is a message for the family, to be acknowledged.
func request(cmd uint8, attrs ...attr) message {
	return message{flags: unix.NLM_F_REQUEST | unix.NLM_F_ACK, body: []byte{cmd, 1, 0, 0}, attrs: attrs}
}

func (m message) with(flags uint16) message {
	m.flags = flags
	return m
}

// encoder collects a datagram and the places in it that are known only when it is sent.
type encoder struct {
	data    []byte
	patches []script.Patch
}

func (e *encoder) message(m message, seq uint32) {
	for len(e.data)%4 != 0 {
		e.data = append(e.data, 0)
	}
	start := len(e.data)
	e.data = append(e.data, make([]byte, headerSize)...)
	header := e.data[start:]
	binary.NativeEndian.PutUint16(header[4:], m.kind)
	binary.NativeEndian.PutUint16(header[6:], m.flags)
	binary.NativeEndian.PutUint32(header[8:], seq)
	binary.NativeEndian.PutUint32(header[12:], m.port)
	if m.kind == 0 {
		e.patches = append(e.patches, script.Patch{Offset: start + 4, What: script.FamilyID})
	}
	for _, p := range m.patches {
		p.Offset += start
		e.patches = append(e.patches, p)
	}
	e.data = append(e.data, m.body...)
	e.attrs(m.attrs)
	length := m.length
	if length == 0 {
		length = uint32(len(e.data) - start)
	}
	binary.NativeEndian.PutUint32(e.data[start:], length)
}

func (e *encoder) attrs(attrs []attr) {
	for _, a := range attrs {
		if a.bare {
			e.data = append(e.data, a.value...)
			continue
		}
		start := len(e.data)
		e.data = binary.NativeEndian.AppendUint16(e.data, 0)
		e.data = binary.NativeEndian.AppendUint16(e.data, a.kind)
		if a.patch.What != "" {
			p := a.patch
			p.Offset = len(e.data)
			e.patches = append(e.patches, p)
		}
		e.data = append(e.data, a.value...)
		e.attrs(a.kids)
		size := a.size
		if size == 0 {
			size = uint16(len(e.data) - start)
		}
		binary.NativeEndian.PutUint16(e.data[start:], size)
		for !a.tight && len(e.data)%4 != 0 {
			e.data = append(e.data, 0)
		}
	}
}
