package netlinksrv

import (
	"bytes"

	"golang.org/x/sys/unix"
)

// linkAttributes is where the attributes of a link message begin: behind nlmsghdr and ifinfomsg.
const linkAttributes = headerSize + unix.SizeofIfInfomsg

// linkMessage is an RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK or RTM_SETLINK message.
type linkMessage struct {
	header header
	raw    []byte
	// Of struct ifinfomsg.
	index         uint32 // as unsigned: a negative one is no index either
	flags, change uint32
	// attrs are the attributes by number, the last of each.
	attrs map[uint16]attribute
}

func parseLinkMessage(msg []byte) (*linkMessage, bool) {
	if len(msg) < linkAttributes {
		return nil, false
	}
	m := &linkMessage{
		header: parseHeader(msg),
		raw:    msg,
		index:  nativeEndian.Uint32(msg[headerSize+4:]),
		flags:  nativeEndian.Uint32(msg[headerSize+8:]),
		change: nativeEndian.Uint32(msg[headerSize+12:]),
		attrs:  map[uint16]attribute{},
	}
	each(msg, linkAttributes, func(a attribute) { m.attrs[a.number()] = a })
	return m, true
}

// text returns a string attribute up to its NUL, if it has one.
func (m *linkMessage) text(number uint16) string {
	return textOf(m.attrs[number])
}

// u32 returns the number that an attribute begins with, and false if it is missing or too short.
func (m *linkMessage) u32(number uint16) (uint32, bool) {
	a, ok := m.attrs[number]
	if !ok || len(a.payload) < 4 {
		return 0, false
	}
	return a.u32(), true
}

func textOf(a attribute) string {
	text, _, _ := bytes.Cut(a.payload, []byte{0})
	return string(text)
}

// info returns an attribute of IFLA_LINKINFO.
func (m *linkMessage) info(number uint16) (found attribute) {
	if a, ok := m.attrs[unix.IFLA_LINKINFO]; ok {
		eachInside(a, func(a attribute) {
			if a.number() == number {
				found = a
			}
		})
	}
	return found
}
