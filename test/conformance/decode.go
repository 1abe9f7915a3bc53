package conformance

import (
	"bytes"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"ovpn-go/test/conformance/script"
)

// commands names the family's commands.
var commands = map[uint8]string{
	peerNew: "PEER_NEW", peerSet: "PEER_SET", peerGet: "PEER_GET", peerDel: "PEER_DEL", peerDelNtf: "PEER_DEL_NTF",
	keyNew: "KEY_NEW", keyGet: "KEY_GET", keySwap: "KEY_SWAP", keySwapNtf: "KEY_SWAP_NTF", keyDel: "KEY_DEL",
	peerFloatNtf: "PEER_FLOAT_NTF",
}

// describe puts a masked datagram into words, a line for each message and each attribute of a link. The words tell
// all there is: datagrams with the same words are the same, but for the order of a link's attributes.
func describe(d script.Datagram) []string {
	if d.Error != 0 {
		return []string{fmt.Sprintf("%s: read fails: %v", d.On, unix.Errno(d.Error))}
	}
	var lines []string
	rest := eachMessage(d.Data, func(msg []byte) {
		text := describeMessage(d.On, msg)
		text[0] = d.On + ": " + text[0]
		if d.SenderLength != unix.SizeofSockaddrNetlink || d.SenderPort != 0 {
			text[0] += fmt.Sprintf(" sender{length %d, port %d}", d.SenderLength, d.SenderPort)
		}
		lines = append(lines, text...)
	})
	if len(rest) > 0 {
		lines = append(lines, fmt.Sprintf("%s: %d bytes that are no message: %x", d.On, len(rest), rest))
	}
	return lines
}

// describePacket puts what was received in place of a netlink datagram into words.
func describePacket(d script.Datagram) string {
	text := fmt.Sprintf("%s: from %s: ", d.On, d.From)
	if d.Error != 0 {
		return text + unix.Errno(d.Error).Error()
	}
	return text + fmt.Sprintf("%d bytes %x", len(d.Data), d.Data)
}

func describeMessage(on string, msg []byte) []string {
	kind, flags := ne.Uint16(msg[4:]), ne.Uint16(msg[6:])
	head := fmt.Sprintf("flags %#x, seq %d, port %#x", flags, ne.Uint32(msg[8:]), ne.Uint32(msg[12:]))
	body := msg[headerSize:]
	switch {
	case kind == unix.NLMSG_ERROR && len(body) >= 4+headerSize:
		return []string{describeError(flags, head, body)}
	case kind == unix.NLMSG_DONE && len(body) >= 4:
		return []string{fmt.Sprintf("DONE %s %s%s", errnoText(ne.Uint32(body)), head, describeAck(body[4:], flags))}
	case kind == maskedFamily && len(body) >= genericSize:
		name := commands[body[0]]
		return []string{fmt.Sprintf("%s version %d reserved %x %s%s", name, body[1], body[2:4], head, describeNest(body[4:]))}
	case isRoute(on) && kind >= unix.RTM_NEWLINK && kind <= unix.RTM_SETLINK && len(body) >= unix.SizeofIfInfomsg:
		return describeLink(kind, head, body)
	case kind == unix.GENL_ID_CTRL && len(body) >= genericSize:
		return []string{fmt.Sprintf("nlctrl command %d version %d reserved %x %s%s", body[0], body[1], body[2:4], head, describeNest(body[4:]))}
	}
	return []string{fmt.Sprintf("type %#x %s %x", kind, head, body)}
}

func errnoText(code uint32) string {
	if code == 0 {
		return "0"
	}
	if name := unix.ErrnoName(unix.Errno(-int32(code))); name != "" {
		return name
	}
	return fmt.Sprint(int32(code))
}

func describeError(flags uint16, head string, body []byte) string {
	code, request := ne.Uint32(body), body[4:4+headerSize]
	text := "ERROR " + errnoText(code)
	if code == 0 {
		text = "ACK"
	}
	rest := body[4+headerSize:]
	text += fmt.Sprintf(" %s, echo %x", head, request)
	const capped = 0x100
	if n := int(ne.Uint32(request)) - headerSize; flags&capped == 0 && n >= 0 && n <= len(rest) {
		text += fmt.Sprintf(" %x", rest[:n])
		rest = rest[min((n+3)&^3, len(rest)):]
	}
	return text + describeAck(rest, flags)
}

// describeAck puts the attributes of an extended acknowledgement into words.
func describeAck(data []byte, flags uint16) string {
	const tlvs = 0x200
	if flags&tlvs == 0 {
		if len(data) == 0 {
			return ""
		}
		return fmt.Sprintf(" rest %x", data)
	}
	names := map[uint16]string{1: "MSG", 2: "OFFS", 3: "COOKIE", 4: "POLICY", 5: "MISS_TYPE", 6: "MISS_NEST"}
	var b strings.Builder
	rest := eachAttribute(data, func(kind uint16, value []byte) {
		switch {
		case kind == 1:
			fmt.Fprintf(&b, " MSG %q", value)
		case len(value) == 4:
			fmt.Fprintf(&b, " %s %d", names[kind], ne.Uint32(value))
		default:
			fmt.Fprintf(&b, " %s%s", names[kind], describeNest(value))
		}
	})
	if len(rest) > 0 {
		fmt.Fprintf(&b, " rest %x", rest)
	}
	return b.String()
}

// describeNest writes attributes with their flags. What looks like a nest is taken for one.
func describeNest(data []byte) string {
	var b strings.Builder
	b.WriteString(" {")
	for len(data) >= 4 {
		n := int(ne.Uint16(data))
		if n < 4 || n > len(data) {
			break
		}
		kind, value := ne.Uint16(data[2:]), data[4:n]
		fmt.Fprintf(&b, " %#x:", kind)
		if kind&nested != 0 {
			b.WriteString(describeNest(value))
		} else {
			fmt.Fprintf(&b, "%x", value)
		}
		padded := min((n+3)&^3, len(data))
		if padding := data[n:padded]; bytes.Count(padding, []byte{0}) != len(padding) {
			fmt.Fprintf(&b, "(padding %x)", padding)
		}
		data = data[padded:]
	}
	if len(data) > 0 {
		fmt.Fprintf(&b, " rest %x", data)
	}
	b.WriteString(" }")
	return b.String()
}

// linkLine begins the lines about a link that follow the first.
const linkLine = "link "

func describeLink(kind uint16, head string, body []byte) []string {
	names := map[uint16]string{unix.RTM_NEWLINK: "RTM_NEWLINK", unix.RTM_DELLINK: "RTM_DELLINK", unix.RTM_GETLINK: "RTM_GETLINK"}
	info := body[:unix.SizeofIfInfomsg]
	lines := []string{fmt.Sprintf("%s %s", names[kind], head)}
	add := func(name string, value any) { lines = append(lines, fmt.Sprintf("%s%s = %v", linkLine, name, value)) }
	add("family", info[0])
	add("type", ne.Uint16(info[2:]))
	add("index", fmt.Sprintf("%#x", ne.Uint32(info[4:])))
	add("flags", fmt.Sprintf("%#x", ne.Uint32(info[8:])))
	add("change", fmt.Sprintf("%#x", ne.Uint32(info[12:])))
	rest := eachAttribute(body[unix.SizeofIfInfomsg:], func(kind uint16, value []byte) {
		add(fmt.Sprintf("attribute %d", kind), fmt.Sprintf("%x", value))
	})
	if len(rest) > 0 {
		add("rest", fmt.Sprintf("%x", rest))
	}
	return lines
}
