package peers

import "fmt"

// DelReason says why a peer was removed. Its values are those of enum ovpn_del_peer_reason in the
// kernel's uapi.
type DelReason uint32

const (
	Teardown            DelReason = 0 // the device went away, or a P2P device got another peer
	Userspace           DelReason = 1 // on request
	Expired             DelReason = 2 // nothing received for the keepalive timeout
	TransportError      DelReason = 3 // the TCP stream is broken or does not make sense
	TransportDisconnect DelReason = 4 // the socket was closed
)

// String returns the kernel's name of the reason.
func (r DelReason) String() string {
	switch r {
	case Teardown:
		return "teardown"
	case Userspace:
		return "userspace"
	case Expired:
		return "expired"
	case TransportError:
		return "transport-error"
	case TransportDisconnect:
		return "transport-disconnect"
	}
	return fmt.Sprintf("reason(%d)", uint32(r))
}
