package netlinksrv

import (
	"math"

	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv/uapi"
	"ovpn-go/peers"
	"ovpn-go/tun"
)

var (
	modePolicy    = attributePolicy{name: "mode", kind: kindU8, max: uint64(peers.MP)}
	txQueuePolicy = attributePolicy{name: "txqlen", kind: kindU32, max: math.MaxInt16}
)

// AnswerForm is the options of a route socket that shape what it is answered.
type AnswerForm struct {
	Cap      bool // NETLINK_CAP_ACK: never echo the request
	Extended bool // NETLINK_EXT_ACK: say why
}

// RouteAnswer builds the datagram that acknowledges the first message of datagram to port: with error 0, or with
// the errno that Refused returned for it. It returns nil if datagram holds no message.
func RouteAnswer(datagram []byte, port uint32, errno unix.Errno, form AnswerForm) []byte {
	msg, _, ok := cutMessage(datagram)
	if !ok {
		return nil
	}
	var refusal *requestError
	if errno != 0 {
		refusal = explainRoute(msg, errno)
	}
	return acknowledge(msg, port, refusal, ackOptions{cap: form.Cap, extended: form.Extended})
}

// explainRoute finds out from a refused message why it was refused, where the kernel would say so.
func explainRoute(msg []byte, errno unix.Errno) *requestError {
	refusal := &requestError{errno: errno}
	m, ok := parseLinkMessage(msg)
	if !ok {
		return refusal
	}
	switch errno {
	case unix.ERANGE:
		if m.longQueue() {
			refusal.text = "integer out of range"
			refusal.bad, refusal.policy = m.attrs[unix.IFLA_TXQLEN].offset, &txQueuePolicy
			break
		}
		if bad := m.badMode(); bad.present() {
			refusal.text = "integer out of range"
			if len(bad.payload) == 0 {
				refusal.text = "Attribute failed policy validation"
			}
			refusal.bad, refusal.policy = bad.offset, &modePolicy
		}
	case unix.EINVAL:
		_, badQueues := queuesOf(m)
		mtu, sized := m.u32(unix.IFLA_MTU)
		switch _, linked := m.u32(unix.IFLA_LINK_NETNSID); {
		case badQueues != "":
			refusal.text = "Invalid number of " + badQueues + " queues"
		// As signed numbers, as in dev_validate_mtu.
		case sized && int32(mtu) < tun.MinMTU:
			refusal.text = "mtu less than device minimum"
		case sized && mtu > tun.MaxMTU:
			refusal.text = "mtu greater than device maximum"
		case m.badSegmentSize():
			refusal.text = "too big gso_max_size"
		case linked:
			refusal.text = "Unknown network namespace id"
		}
	}
	return refusal
}

// badMode returns the first mode in a request for a link that is none, the zero attribute if there is no such.
func (m *linkMessage) badMode() (bad attribute) {
	if data := m.info(unix.IFLA_INFO_DATA); data.present() {
		eachInside(data, func(a attribute) {
			if a.number() == uapi.LinkMode && !bad.present() && (len(a.payload) < 1 || a.payload[0] > uint8(peers.MP)) {
				bad = a
			}
		})
	}
	return bad
}
