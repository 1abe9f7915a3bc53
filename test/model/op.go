// Package model says what a device of kind ovpn does, in the plainest way there is: maps and no concurrency, written
// from the description of the module. [Generate] makes random sequences of operations, [Model] predicts what follows
// from each, and [Shrink] makes a sequence for which that is wrong short enough to be read.
//
// Nothing here runs anything. Package conformance carries sequences out, on this program and on the kernel's module,
// and compares with the predictions.
package model

import (
	"fmt"
	"reflect"
	"strings"
)

// Action is what an operation does.
type Action string

// The actions, with the fields of [Op] that they use.
const (
	LinkNew    Action = "LinkNew"    // makes the link Device, in mode MP or P2P
	LinkDel    Action = "LinkDel"    // deletes the link Device
	LinkUp     Action = "LinkUp"     // sets the link Device up
	LinkDown   Action = "LinkDown"   // sets it down
	LinkRename Action = "LinkRename" // gives it its other name
	LinkMove   Action = "LinkMove"   // moves it to the other network namespace, where it is down
	LinkMTU    Action = "LinkMTU"    // sets its MTU to Size

	SocketOpen  Action = "SocketOpen"  // opens Socket; a TCP connection once only
	SocketClose Action = "SocketClose" // the client closes Socket

	PeerNew Action = "PeerNew" // Device, Peer, TxID, Socket, Remote, Local, NoPort, VPN4, VPN6, Keepalive
	PeerSet Action = "PeerSet" // the same without Socket
	PeerGet Action = "PeerGet" // Device, Peer
	PeerDel Action = "PeerDel" // Device, Peer
	KeyNew  Action = "KeyNew"  // Device, Peer, Slot, KeyID, Key
	KeyGet  Action = "KeyGet"  // Device, Peer, Slot
	KeySwap Action = "KeySwap" // Device, Peer
	KeyDel  Action = "KeyDel"  // Device, Peer, Slot

	// Receive has Remote send a data packet to Socket: Peer, KeyID, Key, Packet, Inner, Source, Size. Over TCP it comes
	// from the connection's other end.
	Receive Action = "Receive"
	// Transmit gives the interface of Device a packet for the address VPN4 or VPN6, with a payload of Size.
	Transmit Action = "Transmit"
	// ControlIn has Remote send a control packet to Socket, and ControlOut has the client send one to Remote.
	ControlIn  Action = "ControlIn"
	ControlOut Action = "ControlOut"
	// BadRecord has the other end of the TCP connection Socket send a record that is too short.
	BadRecord Action = "BadRecord"

	// Finish has the other end of the TCP connection Socket send no more (FIN), and Reset has it end the connection (RST).
	Finish Action = "Finish"
	Reset  Action = "Reset"

	// Expire sets a short timeout for Peer of Device and waits for its end.
	Expire Action = "Expire"
	// Ping sets a short interval for Peer of Device, waits for a keepalive and ends that.
	Ping Action = "Ping"
)

// Inner is what a data packet contains.
type Inner string

// The contents. The first ones are good.
const (
	IPv4      Inner = ""          // from Source, with a payload of Size
	IPv6      Inner = "IPv6"      // likewise
	Keepalive Inner = "keepalive" // the magic bytes
	Nonsense  Inner = "nonsense"  // neither IPv4 nor IPv6
	Empty     Inner = "empty"     // nothing
	Forged    Inner = "forged"    // IPv4 of which a bit was changed on the way
	Short     Inner = "short"     // IPv4 that was cut to ShortLength
)

// ShortLength is the length in bytes of a Short packet.
const ShortLength = 12

// Key is the material of a key, of both directions.
type Key struct {
	Cipher uint32 // enum ovpn_cipher_alg: 0 none, 1 AES-GCM, 2 ChaCha20-Poly1305
	Length int    // of each direction's key, in bytes
	Seed   byte
}

// Op is one operation. Fields that an action does not use are zero.
type Op struct {
	Do     Action
	Device int // 0 or 1
	MP     bool
	Peer   uint32
	TxID   uint32 // 0: not given
	Socket int    // number in Sockets, from 1; 0: not given
	Remote int    // number in Remotes, from 1; 0: not given
	Local  bool   // our address of the family of Remote is given
	NoPort bool   // Remote is given without its port
	// VPN4 and VPN6 are addresses; empty: not given.
	VPN4, VPN6 string
	// Keepalive is interval and timeout in seconds, or the interval alone, which is a mistake.
	Keepalive []uint32
	Slot      uint32
	KeyID     uint32
	Key       Key
	Packet    uint32 // packet id
	Inner     Inner
	Source    string
	Size      int
}

// String is the operation as a row in Go, without the fields that are zero.
func (o Op) String() string {
	var fields []string
	v := reflect.ValueOf(o)
	for i := range v.NumField() {
		if f := v.Field(i); !f.IsZero() {
			value := strings.ReplaceAll(fmt.Sprintf("%#v", f.Interface()), "model.", "")
			switch v.Type().Field(i).Name {
			case "Do":
				value = string(o.Do)
			case "Peer":
				value = fmt.Sprint(o.Peer)
			case "TxID", "Slot", "KeyID", "Packet":
				value = fmt.Sprint(f.Uint())
			case "Keepalive":
				value = "[]uint32{" + strings.Trim(strings.Join(strings.Fields(fmt.Sprint(o.Keepalive)), ", "), "[]") + "}"
			case "Key":
				value = fmt.Sprintf("Key{%d, %d, %d}", o.Key.Cipher, o.Key.Length, o.Key.Seed)
			case "Inner":
				value = map[Inner]string{IPv6: "IPv6", Keepalive: "Keepalive", Nonsense: "Nonsense", Empty: "Empty", Forged: "Forged", Short: "Short"}[o.Inner]
			}
			fields = append(fields, v.Type().Field(i).Name+": "+value)
		}
	}
	return "{" + strings.Join(fields, ", ") + "},"
}

// Text is a sequence as rows that can be written into Regressions.
func Text(ops []Op) string {
	var b strings.Builder
	for _, o := range ops {
		fmt.Fprintf(&b, "\t\t%s\n", o)
	}
	return b.String()
}

// Socket is one of the client's sockets.
type Socket struct {
	Kind    Kind
	Address string // that it is bound to
}

// Kind is a sort of socket.
type Kind int

// The kinds. NotASocket is a file.
const (
	UDP4 Kind = iota
	UDP6      // takes IPv4 as well
	TCP
	NotASocket
)

// Sockets are those of the client, all in the first network namespace.
var Sockets = []Socket{
	{UDP4, "0.0.0.0:6001"}, {UDP6, "[::]:6002"}, {UDP4, "127.0.0.1:6003"},
	{TCP, "127.0.0.1:6004"}, {TCP, "127.0.0.1:6005"}, {TCP, "127.0.0.1:6006"}, {NotASocket, ""},
}

// Remotes are the transport addresses that peers can have.
var Remotes = []string{"127.0.0.2:7001", "127.0.0.3:7001", "127.0.0.2:7002", "[fd00::2]:7001", "[fd00::3]:7001"}

// Our transport addresses, which Remotes send to.
const (
	Ours4 = "127.0.0.1"
	Ours6 = "fd00::1"
)

// V6 says whether a remote, numbered from 1, has an IPv6 address.
func V6(remote int) bool { return remote > 0 && Remotes[remote-1][0] == '[' }

// Addresses within the tunnel that no peer has: of the device's side, and of packets in either direction that are
// for nobody.
const (
	Inside4, Inside6   = "10.8.0.254", "fd00:8::fe"
	Nobody4, Nobody6   = "10.8.0.99", "fd00:8::99"
	Unspecified4       = "0.0.0.0"
	Unspecified6       = "::"
	UndefinedPeer      = 0xffffff
	StrangerPeer       = 9 // an id that no peer gets
	overhead           = 24
	header4, header6   = 20, 40
	keepaliveLength    = 16
	nonsenseLength     = 8
	controlPacketBytes = 5
	smallestMTU        = 68
	firstMTU           = 1416 // that a new link has
	largestMTU         = 65451
)
