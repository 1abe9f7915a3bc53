package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/test/conformance/script"
)

// Of the ovpn family: the requests that only ask, and the attributes that a watch looks at.
const (
	peerGet = 3
	keyGet  = 7

	attrIfindex = 1
	attrPeer    = 2
	attrKeyConf = 3

	peerID        = 1
	peerRxBytes   = 15 // the first of the counters, which are the last attributes of a peer
	keyConfPeerID = 1
	keyConfSlot   = 2
)

// watchedKeys is of how many peers of a device the keys are looked at.
const watchedKeys = 8

// watchPort is the port id of the sockets that ask.
const watchPort = 0x7f000001

// watch compares the state before and after each request that is refused. What it knows of the state holds until
// something may have changed it, so that refusals one after the other cost one look each.
type watch struct {
	on    bool
	known string // the state as it is, empty if that is not known
	// The sockets that ask, in the namespace of the thread; 0 if there are none yet.
	generic, route int
}

// before is called before each step.
func (w *watch) before(s *state, step *script.Step, sent []byte) {
	if w.on && w.known == "" && s.mayChange(step, sent) {
		w.known = s.snapshot()
	}
}

// after is called after each step, and notes what a request that was refused has changed.
func (w *watch) after(s *state, step *script.Step, out *script.Outcome) {
	if step.Action == script.Namespace {
		w.generic, w.route = 0, 0
	}
	if !w.on || w.known == "" {
		return
	}
	switch step.Action {
	case script.Netlink, script.Option, script.Join, script.Interface, script.Stats:
		return
	case script.Send:
	default:
		w.known = ""
		return
	}
	if !s.mayChange(step, out.Sent) {
		if step.Kind != "" || other(out.Sent) {
			w.known = ""
		}
		return
	}
	if !refused(step.On, out.Received) {
		w.known = ""
		return
	}
	s.results.Refusals++
	before, after := w.known, ""
	// What was on its way out before may be gone only now, and what a refusal had to build goes a moment after it.
	const attempts, pause = 50, 20 * time.Millisecond
	for range attempts {
		if after = s.snapshot(); after == before {
			return
		}
		time.Sleep(pause)
	}
	s.results.Changes = append(s.results.Changes, fmt.Sprintf("step %d (%s) was refused, but changed\n%s\nto\n%s",
		len(s.results.Outcomes), step.Name, without(before, after), without(after, before)))
	w.known = after
}

// without returns the lines of a that b has not.
func without(a, b string) string {
	other := strings.Split(b, "\n")
	return strings.Join(slices.DeleteFunc(strings.Split(a, "\n"), func(line string) bool { return slices.Contains(other, line) }), "\n")
}

// mayChange says whether a step sends one request that is carried out by the family or changes links.
func (s *state) mayChange(step *script.Step, sent []byte) bool {
	if step.Action != script.Send || step.Kind != "" || len(sent) < 20 || other(sent) {
		return false
	}
	switch binary.NativeEndian.Uint16(sent[4:]) {
	case s.ids.family:
		return sent[16] != peerGet && sent[16] != keyGet
	case unix.RTM_NEWLINK, unix.RTM_DELLINK, unix.RTM_SETLINK:
		return true
	}
	return false
}

// other says whether a datagram is something else than one message, of which nothing is said here.
func other(sent []byte) bool {
	return len(sent) < 16 || int(binary.NativeEndian.Uint32(sent))+3 < len(sent)
}

// refused says whether all that was said on the socket of a request is that it is refused.
func refused(on string, answers []script.Datagram) bool {
	found := false
	for _, a := range answers {
		if a.On != on {
			continue
		}
		if len(a.Data) < 20 || binary.NativeEndian.Uint16(a.Data[4:]) != unix.NLMSG_ERROR || binary.NativeEndian.Uint32(a.Data[16:]) == 0 {
			return false
		}
		found = true
	}
	return found
}

// snapshot describes the links, peers, keys and numbers of sockets of the namespace, without what moves by itself.
func (s *state) snapshot() string {
	if s.noRights {
		// Asking needs the rights that the sequence is without.
		if err := setAdmin(true); err != nil {
			return err.Error()
		}
		defer setAdmin(false)
	}
	var b strings.Builder
	if s.watch.generic == 0 {
		for fd, protocol := range map[*int]int{&s.watch.generic: unix.NETLINK_GENERIC, &s.watch.route: unix.NETLINK_ROUTE} {
			opened, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
			if err != nil {
				return err.Error()
			}
			*fd = opened
			s.extra = append(s.extra, opened)
			// Not the port that the kernel would choose: the sequence's own sockets are to get that.
			if err := unix.Bind(opened, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: watchPort}); err != nil {
				return err.Error()
			}
		}
	}
	links, err := linkList(&b, s.watch.route)
	if err != nil {
		return err.Error()
	}
	for _, index := range links {
		s.describeDevice(&b, s.watch.generic, index)
	}
	// The tables of sockets themselves take the kernel as long to list as it has room for sockets.
	for _, table := range []string{"sockstat", "sockstat6"} {
		content, err := os.ReadFile("/proc/thread-self/net/" + table)
		if err != nil {
			return err.Error()
		}
		for line := range strings.Lines(string(content)) {
			// "UDP: inuse 1 mem 0". What comes after the number in use is of the whole machine.
			if fields := strings.Fields(line); len(fields) >= 3 && fields[1] == "inuse" {
				fmt.Fprintf(&b, "%s %s\n", fields[0], fields[2])
			}
		}
	}
	return b.String()
}

// linkList describes the links and returns the indexes of those of kind ovpn.
func linkList(b *strings.Builder, fd int) (ours [][]byte, err error) {
	err = ask(fd, unix.RTM_GETLINK, unix.NLM_F_DUMP, make([]byte, unix.SizeofIfInfomsg), func(msg []byte) {
		if len(msg) < 16+unix.SizeofIfInfomsg || binary.NativeEndian.Uint16(msg[4:]) != unix.RTM_NEWLINK {
			return
		}
		up := binary.NativeEndian.Uint32(msg[24:])&unix.IFF_UP != 0
		fmt.Fprintf(b, "link %x, up %v:", msg[20:24], up)
		attributes(msg[16+unix.SizeofIfInfomsg:], func(kind uint16, value []byte) {
			switch kind {
			case unix.IFLA_IFNAME, unix.IFLA_ADDRESS, unix.IFLA_MTU, unix.IFLA_IFALIAS, unix.IFLA_GROUP, unix.IFLA_TXQLEN, unix.IFLA_MASTER:
				fmt.Fprintf(b, " %d=%x", kind, value)
			case unix.IFLA_LINKINFO:
				fmt.Fprintf(b, " %d=%x", kind, value)
				if strings.Contains(string(value), "ovpn\x00") {
					ours = append(ours, msg[20:24])
				}
			}
		})
		b.WriteString("\n")
	})
	return ours, err
}

// describeDevice describes the peers of a device and the keys of the first ones.
func (s *state) describeDevice(b *strings.Builder, fd int, index []byte) {
	device := attribute(attrIfindex, index)
	var ids [][]byte
	s.askFamily(b, fd, peerGet, unix.NLM_F_DUMP, device, func(kind uint16, value []byte) {
		if kind != attrPeer {
			return
		}
		fmt.Fprintf(b, "device %x, peer:", index)
		attributes(value, func(kind uint16, value []byte) {
			if kind == peerID {
				ids = append(ids, value)
			}
			if kind < peerRxBytes {
				fmt.Fprintf(b, " %d=%x", kind, value)
			}
		})
		b.WriteString("\n")
	})
	for _, id := range ids[:min(len(ids), watchedKeys)] {
		for slot := range uint32(2) {
			conf := slices.Concat(attribute(keyConfPeerID, id), attribute(keyConfSlot, binary.NativeEndian.AppendUint32(nil, slot)))
			request := slices.Concat(device, attribute(attrKeyConf|unix.NLA_F_NESTED, conf))
			fmt.Fprintf(b, "device %x, peer %x, slot %d:", index, id, slot)
			s.askFamily(b, fd, keyGet, 0, request, func(kind uint16, value []byte) { fmt.Fprintf(b, " %d=%x", kind, value) })
			b.WriteString("\n")
		}
	}
}

// askFamily sends a request of the family, calls fn for each attribute of the answers and writes down errors.
func (s *state) askFamily(b *strings.Builder, fd int, cmd uint8, flags uint16, attrs []byte, fn func(kind uint16, value []byte)) {
	err := ask(fd, s.ids.family, flags, append([]byte{cmd, 1, 0, 0}, attrs...), func(msg []byte) {
		switch kind := binary.NativeEndian.Uint16(msg[4:]); {
		case kind == s.ids.family && len(msg) >= 20:
			attributes(msg[20:], fn)
		case len(msg) >= 20:
			if number := int32(binary.NativeEndian.Uint32(msg[16:])); number != 0 {
				fmt.Fprintf(b, " %s", unix.ErrnoName(unix.Errno(-number)))
			}
		}
	})
	if err != nil {
		fmt.Fprintf(b, " %v", err)
	}
}

// ask sends a request and calls fn for each message that answers it.
func ask(fd int, kind, flags uint16, body []byte, fn func(msg []byte)) error {
	msg := binary.NativeEndian.AppendUint32(nil, uint32(16+len(body)))
	msg = binary.NativeEndian.AppendUint16(msg, kind)
	msg = binary.NativeEndian.AppendUint16(msg, unix.NLM_F_REQUEST|flags)
	msg = append(msg, make([]byte, 8)...)
	if err := unix.Sendto(fd, append(msg, body...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	for more := true; more; {
		data := make([]byte, longest)
		n, _, err := unix.Recvfrom(fd, data, unix.MSG_DONTWAIT)
		if err != nil {
			return err
		}
		for data = data[:n]; len(data) >= 16; {
			n := int(binary.NativeEndian.Uint32(data))
			if n < 16 || n > len(data) {
				break
			}
			fn(data[:n])
			more = binary.NativeEndian.Uint16(data[6:])&unix.NLM_F_MULTI != 0 && binary.NativeEndian.Uint16(data[4:]) != unix.NLMSG_DONE
			data = data[min((n+3)&^3, len(data)):]
		}
	}
	return nil
}

// attribute makes a netlink attribute.
func attribute(kind uint16, value []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	return append(b, make([]byte, (4-len(b)%4)%4)...)
}
