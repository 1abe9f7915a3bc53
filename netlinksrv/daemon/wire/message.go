package wire

import (
	"encoding/json"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// MaxMessage is the longest message in bytes.
const MaxMessage = 64 << 10

// MaxFiles is how many descriptors come with a message at most.
const MaxFiles = 2

// The types of requests, and of what the daemon says unasked.
const (
	TypeHello   = "hello"
	TypeRun     = "run"
	TypeNetlink = "netlink"
	TypeOption  = "option"
	TypeStatus  = "status"
	TypeStop    = "stop"
)

// Request is what a client says.
type Request struct {
	Type string `json:"type"`
	// Nonce is the one in the answer to the hello.
	Nonce uint64 `json:"nonce,omitempty"`
	// Window is the range of descriptor numbers of a run, the end excluded.
	Window *[2]uint32 `json:"window,omitempty"`
	// Protocol is a netlink socket's: unix.NETLINK_GENERIC or unix.NETLINK_ROUTE.
	Protocol int `json:"protocol,omitempty"`
	// Name and Value are a netlink socket's option.
	Name  int    `json:"name,omitempty"`
	Value uint32 `json:"value,omitempty"`
	// Ifindex is a status request's interface, and From the lowest id of the peers that are wanted.
	Ifindex uint32 `json:"ifindex,omitempty"`
	From    uint32 `json:"from,omitempty"`
}

// Reply is what the daemon says.
type Reply struct {
	// Type is set in what was not asked for: TypeStop.
	Type  string `json:"type,omitempty"`
	Nonce uint64 `json:"nonce,omitempty"`
	// Port is a netlink socket's port id.
	Port uint32 `json:"port,omitempty"`
	// Peers answer a status request.
	Peers []PeerStatus `json:"peers,omitempty"`
	// Error says why a request was refused, and Errno, if it is not 0, by which error of the system.
	Error string `json:"error,omitempty"`
	Errno int    `json:"errno,omitempty"`
}

// PeerStatus is a peer in a Reply.
type PeerStatus struct {
	ID uint32 `json:"id"`
	// LastSeen is how many seconds ago the last genuine packet came; nil if none has come.
	LastSeen *int64      `json:"last_seen,omitempty"`
	Keys     []KeyStatus `json:"keys,omitempty"`
}

// KeyStatus is a key in a PeerStatus. Slot and Cipher have the names that the kernel gives their values.
type KeyStatus struct {
	Slot   string `json:"slot"`
	ID     uint8  `json:"id"`
	Cipher string `json:"cipher"`
	// Age is how many seconds ago it was installed.
	Age int64 `json:"age"`
}

// StatusPeers is how many peers an answer describes at most, so that it fits in a message.
const StatusPeers = 256

// Refusal is the reply to a request that failed.
func Refusal(err error) Reply {
	r := Reply{Error: err.Error()}
	var errno unix.Errno
	if errors.As(err, &errno) {
		r.Errno = int(errno)
	}
	return r
}

// Err returns the reply's error, which is an errno for errors.Is where there is one; nil if there is none.
func (r Reply) Err() error {
	switch {
	case r.Error == "" && r.Errno == 0:
		return nil
	case r.Errno == 0:
		return fmt.Errorf("daemon: %s", r.Error)
	}
	return &refused{r.Error, unix.Errno(r.Errno)}
}

type refused struct {
	text  string
	errno unix.Errno
}

func (e *refused) Error() string { return "daemon: " + e.text }
func (e *refused) Unwrap() error { return e.errno }

// ParseRequest reads a request.
func ParseRequest(message []byte) (Request, error) {
	var r Request
	if err := json.Unmarshal(message, &r); err != nil {
		return Request{}, fmt.Errorf("read request: %w", err)
	}
	switch {
	case r.Type == "":
		return Request{}, errors.New("read request: it has no type")
	case r.Type == TypeRun && r.Window == nil:
		return Request{}, errors.New("read request: run without a window")
	case r.Window != nil && r.Window[0] > r.Window[1]:
		return Request{}, fmt.Errorf("read request: window from %d to %d", r.Window[0], r.Window[1])
	}
	return r, nil
}
