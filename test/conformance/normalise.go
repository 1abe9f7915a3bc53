package conformance

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"ovpn-go/test/conformance/script"
)

// Numbers that stand for those that are given out as it comes. A number that is not the expected one is not
// replaced, and so shows as a difference.
const (
	maskedFamily  = 0xfafa
	maskedGroup   = 0xfafafafa
	maskedPort    = 0xf0f00000 // plus the number of the step that opens the socket
	maskedIfindex = 0xfdfd0000 // plus the number of the last step that finds the interface
)

// masker replaces numbers in the datagrams of one sequence of a run.
type masker struct {
	family uint16
	group  uint32
	ports  map[uint32]uint32
	links  map[uint32]uint32
}

// newMasker makes the masker for the results of s in a run. Sockets and interfaces are numbered as they come in the
// sequence, which is the same on both sides even where one side lacks some.
func newMasker(s *script.Sequence, run *script.Transcript, r *script.Results) *masker {
	m := &masker{family: run.Family, group: run.Group, ports: map[uint32]uint32{}, links: map[uint32]uint32{}}
	for i, step := range s.Steps {
		switch step.Action {
		case script.Netlink:
			m.ports[r.Ports[step.On]] = maskedPort + uint32(i)
		case script.Interface:
			for _, index := range r.Interfaces[step.On] {
				m.links[index] = maskedIfindex + uint32(i)
			}
		}
	}
	return m
}

var ne = binary.NativeEndian

// eachMessage calls fn with every message of a datagram, without padding, and returns what is left.
func eachMessage(datagram []byte, fn func(msg []byte)) []byte {
	for len(datagram) >= headerSize {
		n := int(ne.Uint32(datagram))
		if n < headerSize || n > len(datagram) {
			break
		}
		fn(datagram[:n])
		datagram = datagram[min((n+3)&^3, len(datagram)):]
	}
	return datagram
}

// eachAttribute calls fn with every attribute of data, and returns what is left. Types are without their flags.
func eachAttribute(data []byte, fn func(kind uint16, value []byte)) []byte {
	for len(data) >= 4 {
		n := int(ne.Uint16(data))
		if n < 4 || n > len(data) {
			break
		}
		fn(ne.Uint16(data[2:])&^(nested|netByteOrder), data[4:n])
		data = data[min((n+3)&^3, len(data)):]
	}
	return data
}

// mask returns a copy of a received datagram with its numbers replaced. step is the one that it answers, and sent
// the datagram that the step sent.
func (m *masker) mask(d script.Datagram, step *script.Step, sent []byte) []byte {
	out := slices.Clone(d.Data)
	eachMessage(out, func(msg []byte) {
		kind := ne.Uint16(msg[4:])
		if masked, ok := m.ports[ne.Uint32(msg[12:])]; ok {
			ne.PutUint32(msg[12:], masked)
		}
		switch {
		case kind == m.family && kind != 0:
			ne.PutUint16(msg[4:], maskedFamily)
			m.maskFamily(msg)
		case kind == unix.NLMSG_ERROR && len(msg) >= headerSize+4+headerSize:
			m.maskEcho(msg, step, sent)
		case isRoute(d.On) && kind >= unix.RTM_NEWLINK && kind <= unix.RTM_SETLINK:
			m.maskLink(msg)
		case kind == unix.GENL_ID_CTRL:
			m.maskController(msg)
		}
	})
	return out
}

// maskFamily replaces the interface that a notification is about.
func (m *masker) maskFamily(msg []byte) {
	if len(msg) < attributeStart {
		return
	}
	eachAttribute(msg[attributeStart:], func(kind uint16, value []byte) {
		if kind == attrIfindex && len(value) == 4 {
			m.replaceLink(value)
		}
	})
}

func (m *masker) replaceLink(value []byte) {
	if masked, ok := m.links[ne.Uint32(value)]; ok {
		ne.PutUint32(value, masked)
	}
}

// maskEcho replaces the echoed part of the request by what the request was before it got its numbers. That is
// possible only if the echo is exact.
func (m *masker) maskEcho(msg []byte, step *script.Step, sent []byte) {
	const at = headerSize + 4
	offset := 0
	rest := sent
	for len(rest) >= headerSize {
		n := int(ne.Uint32(rest))
		if n < headerSize || n > len(rest) {
			return
		}
		template := step.Data[offset:min(offset+n, len(step.Data))]
		for _, n := range []int{n, headerSize} {
			if len(msg) >= at+n && bytes.Equal(msg[at:at+n], rest[:n]) {
				copy(msg[at:at+n], template[:n])
				return
			}
		}
		aligned := min((n+3)&^3, len(rest))
		offset += aligned
		rest = rest[aligned:]
	}
}

// maskController replaces the ids of our family and its group.
func (m *masker) maskController(msg []byte) {
	if len(msg) < attributeStart {
		return
	}
	eachAttribute(msg[attributeStart:], func(kind uint16, value []byte) {
		switch {
		case kind == unix.CTRL_ATTR_FAMILY_ID && len(value) == 2 && ne.Uint16(value) == m.family:
			ne.PutUint16(value, maskedFamily)
		case kind == unix.CTRL_ATTR_MCAST_GROUPS:
			eachAttribute(value, func(_ uint16, group []byte) {
				eachAttribute(group, func(kind uint16, value []byte) {
					if kind == unix.CTRL_ATTR_MCAST_GRP_ID && len(value) == 4 && ne.Uint32(value) == m.group {
						ne.PutUint32(value, maskedGroup)
					}
				})
			})
		}
	})
}

// maskLink replaces the index of an interface, and what was measured or drawn by lot when it was made.
func (m *masker) maskLink(msg []byte) {
	if len(msg) < headerSize+unix.SizeofIfInfomsg {
		return
	}
	m.replaceLink(msg[headerSize+4 : headerSize+8])
	const cacheInfo = 5 // IFLA_INET6_CACHEINFO: max_reasm_len, tstamp, reachable_time, retrans_time
	eachAttribute(msg[headerSize+unix.SizeofIfInfomsg:], func(kind uint16, value []byte) {
		if kind != unix.IFLA_AF_SPEC {
			return
		}
		eachAttribute(value, func(kind uint16, value []byte) {
			if kind != unix.AF_INET6 {
				return
			}
			eachAttribute(value, func(kind uint16, value []byte) {
				if kind == cacheInfo && len(value) == 16 {
					clear(value[4:12])
				}
			})
		})
	})
}

// listsLinks says whether a step asks for a list of links, of which this program, too, keeps only a part.
func listsLinks(step *script.Step) bool {
	return step.Action == script.Send && typeOf(step.Data) == unix.RTM_GETLINK && isDump(step.Data)
}

// isRoute says whether a socket of that name is a route socket.
func isRoute(on string) bool { return strings.HasPrefix(on, route) }

// ofOtherFamilies says whether a message is part of a list of families, and not about ours.
func ofOtherFamilies(msg []byte) bool {
	if ne.Uint16(msg[4:]) != unix.GENL_ID_CTRL || len(msg) < attributeStart ||
		msg[headerSize] != unix.CTRL_CMD_NEWFAMILY || ne.Uint16(msg[6:])&unix.NLM_F_MULTI == 0 {
		return false
	}
	ours := false
	eachAttribute(msg[attributeStart:], func(kind uint16, value []byte) {
		if kind == unix.CTRL_ATTR_FAMILY_NAME && string(value) == "ovpn\x00" {
			ours = true
		}
	})
	return !ours
}

// ofOtherLinks says whether a message is about a link that the sequence has not made: every namespace has lo, and
// some kernels put more there.
func ofOtherLinks(on string, msg []byte) bool {
	kind := ne.Uint16(msg[4:])
	if !isRoute(on) || kind != unix.RTM_NEWLINK && kind != unix.RTM_DELLINK || len(msg) < headerSize+unix.SizeofIfInfomsg {
		return false
	}
	return ne.Uint32(msg[headerSize+4:])&0xffff0000 != maskedIfindex
}
