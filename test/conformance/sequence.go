package conformance

import (
	"fmt"

	"golang.org/x/sys/unix"

	"ovpn-go/test/conformance/script"
)

// Names that most sequences use.
const (
	control = "control" // the generic netlink socket that requests are sent on
	events  = "events"  // a generic netlink socket that is a member of the family's group
	route   = "route"   // a route socket
)

// Modes of a device (enum ovpn_mode).
const (
	modeP2P = 0
	modeMP  = 1
)

// profile is a set of socket options that shape acknowledgements.
type profile struct {
	name    string
	options []int
}

var (
	plain    = profile{"plain", nil}
	extended = profile{"EXT_ACK", []int{unix.NETLINK_EXT_ACK}}
	capped   = profile{"CAP_ACK", []int{unix.NETLINK_CAP_ACK}}
	both     = profile{"EXT_ACK+CAP_ACK", []int{unix.NETLINK_EXT_ACK, unix.NETLINK_CAP_ACK}}
	strict   = profile{"EXT_ACK+STRICT_CHK", []int{unix.NETLINK_EXT_ACK, unix.NETLINK_GET_STRICT_CHK}}
	profiles = []profile{plain, extended, capped, both, strict}
)

// writer writes a sequence.
type writer struct {
	script.Sequence
	seq uint32
}

// newSequence starts a sequence with the sockets control, with the options of p, and route.
func newSequence(name string, p profile) *writer {
	w := &writer{Sequence: script.Sequence{Name: name + " (" + p.name + ")"}}
	w.netlink(control, unix.NETLINK_GENERIC, p.options...)
	w.netlink(route, unix.NETLINK_ROUTE, unix.NETLINK_EXT_ACK)
	return w
}

func (w *writer) add(s script.Step) { w.Steps = append(w.Steps, s) }

func (w *writer) netlink(name string, protocol int, options ...int) {
	w.add(script.Step{
		Name: "open netlink socket", Action: script.Netlink, On: name, Value: protocol, Options: options,
	})
}

// listen opens the socket events.
func (w *writer) listen() {
	w.netlink(events, unix.NETLINK_GENERIC)
	w.add(script.Step{Name: "join the group", Action: script.Join, On: events})
}

// socket opens a descriptor. A port of 0 leaves it to the kernel, or unbound.
func (w *writer) socket(kind, name string, port int) {
	w.add(script.Step{Name: "open " + kind, Action: script.Socket, On: name, Kind: kind, Number: port})
}

func (w *writer) close(name string) {
	w.add(script.Step{Name: "close " + name, Action: script.Close, On: name})
}

// closeAndAwait closes a descriptor and waits for what is announced about that on the socket events.
func (w *writer) closeAndAwait(name string, notices int) {
	w.add(script.Step{Name: "close " + name, Action: script.Close, On: name, Await: []script.Await{{On: events, Count: notices}}})
}

func (w *writer) namespace(name string) {
	w.add(script.Step{Name: "go to namespace " + name, Action: script.Namespace, On: name})
}

func (w *writer) rights(on bool) {
	value := 0
	if on {
		value = 1
	}
	w.add(script.Step{Name: "change rights", Action: script.Rights, Value: value})
}

// send sends messages as one datagram.
func (w *writer) send(name, on string, messages ...message) {
	var e encoder
	for _, m := range messages {
		w.seq++
		e.message(m, w.seq)
	}
	w.raw(name, on, e)
}

func (w *writer) raw(name, on string, e encoder) {
	w.add(script.Step{Name: name, Action: script.Send, On: on, Data: e.data, Patches: e.patches})
}

// sendAs is send of one message, in a special way.
func (w *writer) sendAs(kind, name, on string, m message) {
	w.send(name, on, m)
	w.Steps[len(w.Steps)-1].Kind = kind
}

// do sends a request of the family on control.
func (w *writer) do(name string, cmd uint8, attrs ...attr) {
	w.send(name, control, request(cmd, attrs...))
}

// on sends a request about an interface on control.
func (w *writer) on(device, name string, cmd uint8, attrs ...attr) {
	w.do(name, cmd, append([]attr{ifindexOf(device)}, attrs...)...)
}

// dump asks for all peers of an interface.
func (w *writer) dump(name, device string) {
	w.send(name, control, request(peerGet, ifindexOf(device)).with(unix.NLM_F_REQUEST|unix.NLM_F_DUMP))
}

// link makes an interface and finds out its index.
func (w *writer) link(name string, mode uint8) {
	w.send("RTM_NEWLINK "+name, route, newLink(name, info(mode)))
	w.find(name)
}

func (w *writer) find(name string) {
	w.add(script.Step{Name: "find " + name, Action: script.Interface, On: name})
}

// udpPeer makes a peer over a UDP socket with the remote address 127.0.0.1:9 or ::1:9.
func (w *writer) udpPeer(device, socket string, id uint32, more ...attr) {
	w.on(device, fmt.Sprintf("PEER_NEW %d", id), peerNew, peer(append([]attr{
		u32(peerID, id), addr(peerRemote4, "127.0.0.1"), be16(peerPort, 9), fdOf(peerSocket, socket),
	}, more...)...))
}

// Link messages.

func linkMessage(kind uint16, flags uint16, device string, attrs ...attr) message {
	m := message{kind: kind, flags: flags, body: make([]byte, unix.SizeofIfInfomsg), attrs: attrs}
	if device != "" {
		m.patches = []script.Patch{{Offset: headerSize + 4, What: script.Ifindex, Of: device}}
	}
	return m
}

const create = unix.NLM_F_REQUEST | unix.NLM_F_ACK | unix.NLM_F_CREATE | unix.NLM_F_EXCL

func newLink(name string, more ...attr) message {
	return linkMessage(unix.RTM_NEWLINK, create, "", append([]attr{text(unix.IFLA_IFNAME, name)}, more...)...)
}

// info is IFLA_LINKINFO of kind ovpn with a mode.
func info(mode uint8) attr { return infoWith(u8(1, mode)) }

func infoWith(inside ...attr) attr {
	return nest(unix.IFLA_LINKINFO, text(unix.IFLA_INFO_KIND, "ovpn"), nest(unix.IFLA_INFO_DATA, inside...))
}
