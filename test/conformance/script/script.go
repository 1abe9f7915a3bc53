// Package script is the language between those who ask and those who carry questions to a kernel: sequences of
// system calls and netlink datagrams, and transcripts of what came back. Both are JSON.
package script

import (
	"encoding/hex"
	"time"
)

// Bytes are written as hexadecimal digits.
type Bytes []byte

// MarshalText writes b as hexadecimal digits.
func (b Bytes) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(b)), nil }

// UnmarshalText reads hexadecimal digits.
func (b *Bytes) UnmarshalText(text []byte) error {
	decoded, err := hex.DecodeString(string(text))
	*b = decoded
	return err
}

// Sequence is steps that build on one another. It runs in a network namespace of its own in which only the loopback
// interface exists, and in it nothing is left of other sequences.
type Sequence struct {
	Name string `json:"name"`
	// Unprivileged runs the sequence as root of a new user namespace that owns the network namespace.
	Unprivileged bool `json:"unprivileged,omitempty"`
	// Watch has the links, peers, keys and numbers of sockets compared before and after each request that is refused.
	Watch bool `json:"watch,omitempty"`
	// Predicted says that all that comes is known before. The sequence ends when something is waited for in vain, and
	// runs beside others of this sort.
	Predicted bool   `json:"predicted,omitempty"`
	Steps     []Step `json:"steps"`
}

// Action is what a step does.
type Action string

// The actions. After each, what has arrived on any netlink socket of the sequence is read.
const (
	// Netlink opens a netlink socket under the name On, of the protocol Value, with the names of Options set.
	Netlink Action = "netlink"
	// Option sets the SOL_NETLINK option Number of socket On to Value.
	Option Action = "option"
	// Join adds socket On to the multicast group Number, or to the family's own if Number is 0.
	Join Action = "join"
	// Socket opens a descriptor of the form Kind under the name On. With a Number it is bound to that port.
	Socket Action = "socket"
	// Close closes On. Of the Kind Reset, a TCP connection is reset.
	Close Action = "close"
	// Shutdown ends the sending direction of a TCP connection.
	Shutdown Action = "shutdown"
	// Sysctl writes Kind to the setting On, which is a path below net.
	Sysctl Action = "sysctl"
	// Pause waits for Number milliseconds: what a route means to a device is known to it a moment later.
	Pause Action = "pause"
	// Emit sends Emissions, in order.
	Emit Action = "emit"
	// Stats notes the counters of received packets of the interface On, as RTM_GETLINK tells them.
	Stats Action = "stats"
	// Interface looks up the index of the interface On. The sequence deletes it in the end, if it is still there.
	Interface Action = "interface"
	// Up sets the interface On up, and Down sets it down.
	Up   Action = "up"
	Down Action = "down"
	// Send sends Data, after Patches, to the kernel on socket On. Of the Kind Unaddressed it does so without an address,
	// and of the Kind Unread nothing is read afterwards. Of the Kind Settled it is asked again until two answers are the
	// same: counters may lag behind the packets that they count. Of the Kind Expecting it is asked again until the answer
	// contains each of Expect.
	Send Action = "send"
	// Rights gives the thread CAP_NET_ADMIN (Value 1) or takes it from its effective set (Value 0).
	Rights Action = "rights"
	// Namespace goes to the network namespace On, which is made if it is new. The first one is "home".
	Namespace Action = "namespace"
)

// Kinds of Send.
const (
	Unaddressed = "unaddressed"
	Unread      = "unread"
	Settled     = "settled"
	Expecting   = "expecting"
)

// Reset is a kind of Close.
const Reset = "reset"

// Kinds of Socket that packets are sent and received on. What arrives on them is read like that on netlink sockets.
const (
	// UDP is bound to the Address of the step.
	UDP = "udp"
	// TCP is an established connection over the loopback interface, from the Address of the step. The other end is open
	// under the same name with FarEnd after it, and what arrives there is read as records behind their lengths.
	TCP = "tcp"
	// Tap is a packet socket at the interface that is the Address of the step. It reads what the interface receives, and
	// what is sent on it goes to the interface as if the stack had sent it.
	Tap = "tap"
	// RawIP is for IP packets with their headers, of the family of Address; it reads nothing.
	RawIP = "raw IP"
)

// FarEnd makes the name of the other end of a connection.
const FarEnd = " far end"

// Step is one action.
type Step struct {
	// Name says what the step shows, with the name of the rule where it is about one.
	Name    string  `json:"name"`
	Action  Action  `json:"action"`
	On      string  `json:"on"`
	Kind    string  `json:"kind,omitempty"`
	Options []int   `json:"options,omitempty"`
	Number  int     `json:"number,omitempty"`
	Value   int     `json:"value,omitempty"`
	Data    Bytes   `json:"data,omitempty"`
	Patches []Patch `json:"patches,omitempty"`
	// Address is what a Socket is opened with.
	Address   string     `json:"address,omitempty"`
	Emissions []Emission `json:"emissions,omitempty"`
	// Await are the numbers of datagrams that are waited for after the action, for a few seconds at most: what follows
	// from it need not have happened when the call returns.
	Await  []Await `json:"await,omitempty"`
	Expect []Bytes `json:"expect,omitempty"`
}

// Emission is one packet that is sent on the socket On: to the address and port, or address, To, or as one of Protocol
// (an EtherType) if On is a tap.
type Emission struct {
	On       string `json:"on"`
	To       string `json:"to,omitempty"`
	Protocol uint16 `json:"protocol,omitempty"`
	Data     Bytes  `json:"data"`
}

// Await is a number of datagrams to be waited for on a socket.
type Await struct {
	On    string `json:"on"`
	Count int    `json:"count"`
}

// Patch is a number in a datagram that is known only when it is sent.
type Patch struct {
	Offset int       `json:"offset"`
	What   PatchKind `json:"what"`
	// Of is the name of the interface or descriptor.
	Of string `json:"of,omitempty"`
}

// NamespaceFD begins the name of the descriptor of a network namespace that the sequence has been in.
const NamespaceFD = "namespace:"

// PatchKind says which number, in host byte order, goes into a datagram.
type PatchKind string

// The numbers.
const (
	FamilyID PatchKind = "family"  // u16
	Ifindex  PatchKind = "ifindex" // u32
	FD       PatchKind = "fd"      // u32
)

// Transcript is what came back from a run.
type Transcript struct {
	Kernel string `json:"kernel"`
	// Family and Group are the ids of the ovpn family and of its multicast group, 0 if there are none.
	Family    uint16    `json:"family"`
	Group     uint32    `json:"group"`
	Sequences []Results `json:"sequences"`
	// Log is what the program that answered has logged, if it was ours.
	Log string `json:"-"`
}

// Results is what came back from a sequence.
type Results struct {
	Name string `json:"name"`
	// Problem says why the sequence ended early.
	Problem string            `json:"problem,omitempty"`
	Ports   map[string]uint32 `json:"ports"`
	// Interfaces are the indexes that each interface had, the last one last.
	Interfaces map[string][]uint32 `json:"interfaces"`
	Outcomes   []Outcome           `json:"outcomes"`
	// Refusals is the number of requests that were watched and refused, and Changes what they changed nevertheless.
	Refusals int      `json:"refusals,omitempty"`
	Changes  []string `json:"changes,omitempty"`
}

// Outcome is what came back from a step.
type Outcome struct {
	// Began is when the step began.
	Began time.Time `json:"began"`
	// Errno is that of the step's system call, 0 on success.
	Errno int `json:"errno"`
	// Sent is the datagram as it was sent.
	Sent     Bytes      `json:"sent,omitempty"`
	Received []Datagram `json:"received,omitempty"`
	// Notes are other things that were seen, to be compared as they are.
	Notes []string `json:"notes,omitempty"`
}

// Datagram is one that was received.
type Datagram struct {
	On   string `json:"on"`
	Data Bytes  `json:"data"`
	// SenderLength is the length of the sender's address and SenderPort the port id in it.
	SenderLength int    `json:"senderLength"`
	SenderPort   uint32 `json:"senderPort"`
	// Error is the errno of a read that failed, in place of a datagram.
	Error int `json:"error,omitempty"`
	// From says where a packet came from; it is empty for netlink datagrams.
	From string `json:"from,omitempty"`
}
