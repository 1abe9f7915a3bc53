package conformance

import (
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"ovpn-go/test/conformance/script"
)

// Reason is why this program answers otherwise than the kernel.
type Reason struct {
	// Title names the difference in a few words, and Why gives the reason.
	Title, Why string
	// Gap marks what is missing rather than meant.
	Gap bool
	// covers says whether a difference is of this sort, and of no other.
	covers func(*Difference) bool
}

// Deliberate are all reasons, in the order in which they are tried.
var Deliberate = []Reason{
	{
		Title: "root of a user namespace is admitted",
		Why: "The module asks for CAP_NET_ADMIN in the initial user namespace and answers EPERM in every other. This " +
			"program serves clients in unprivileged containers, and asks for the capability over the network namespace.",
		covers: func(d *Difference) bool {
			return strings.HasPrefix(d.Sequence, "root of a user namespace") && len(d.Kernel) > 0 &&
				strings.Contains(d.Kernel[0], "ERROR EPERM")
		},
	},
	{
		Title: "the acknowledgement of a new link echoes another message type",
		Why: "The kernel itself writes the acknowledgement of an RTM_NEWLINK that it never saw: it is sent an NLMSG_NOOP " +
			"with the same header. So the echoed header names that type. The rest is the same, and clients look at sequence " +
			"number and error only.",
		covers: func(d *Difference) bool {
			kernel, ours := d.changes()
			if typeOf(d.Step.Data) != unix.RTM_NEWLINK {
				return false
			}
			restOfKernel, restOfOurs := withoutNoopEcho(kernel, ours)
			return len(kernel) > 0 && len(restOfKernel) == 0 && len(restOfOurs) == 0
		},
	},
	{
		Title: "attributes of a link that tell a TUN interface",
		Why: "A link of kind ovpn is a TUN interface here. IFLA_HEADROOM and IFLA_TAILROOM are 0, as its packets are copied. " +
			"IFLA_GSO_MAX_SEGS is lower, so that a segmented packet leaves as one send. IFLA_QDISC is the " +
			"host's default for interfaces with a queue. IFLA_AF_SPEC shows settings of the host's kernel.",
		covers: onlyTunAttributes,
	},
	{
		Title: "a new link that is set up at once is announced in two steps",
		Why: "To be told of a link, the members of the group of links get the announcement that the kernel makes when the TUN " +
			"interface is complete. What else a request for the link asks for is applied to it afterwards, and announced as a change.",
		covers: func(d *Difference) bool {
			announced := func(lines []string) (n int) {
				for _, line := range lines {
					if strings.Contains(line, ": RTM_NEWLINK flags 0x0, seq 0,") {
						n++
					}
				}
				return n
			}
			return typeOf(d.Step.Data) == unix.RTM_NEWLINK && len(d.Step.Data) >= headerSize+unix.SizeofIfInfomsg &&
				ne.Uint32(d.Step.Data[headerSize+12:]) != 0 && announced(d.Kernel) == 1 && announced(d.Ours) == 2
		},
	},
	{
		Title: "a socket that nobody has bound gets a port",
		Why: "Data packets are taken from the client's UDP socket by a socket of ours with the same port, so there must be " +
			"one. The module would send from port 0.",
		covers: func(d *Difference) bool {
			kernel, ours := d.changes()
			return len(kernel) == 1 && len(ours) == 1 && strings.Contains(kernel[0], "0x400c:0000 ") &&
				kernel[0] == localPort.ReplaceAllString(ours[0], "0x400c:0000 ")
		},
	},
	{
		Title: "a dump is delivered at once",
		Why: "The kernel makes the next datagram of a dump when the last one has been read, and refuses another dump on that " +
			"socket with EBUSY meanwhile. We are not told when a client reads, so we queue the whole dump as far as there is " +
			"room, and a second one behind it.",
		covers: func(d *Difference) bool {
			kernel, _ := d.changes()
			return isDump(d.Step.Data) && slices.ContainsFunc(kernel, func(line string) bool { return strings.Contains(line, "ERROR EBUSY") }) &&
				len(kernel) == 1
		},
	},
	{
		Title: "a generic netlink socket can't listen to all namespaces",
		Why: "NETLINK_LISTEN_ALL_NSID is refused. The kernel says beside each message which namespace it is from. The socket that " +
			"the client holds can't, so the client would take the interfaces of other namespaces for those of its own.",
		covers: func(d *Difference) bool {
			return d.Step.Action == script.Option && d.Step.Number == unix.NETLINK_LISTEN_ALL_NSID && len(d.Kernel) == 0 &&
				slices.Equal(d.Ours, []string{"system call: EPERM"})
		},
	},
	{
		Title: "a packet is judged by its own version",
		Why: "The module drops a packet that says IPv4 and came from a packet socket as one of IPv6, or the other way round. A " +
			"TUN interface hands over the packet alone. No stack sends such packets.",
		covers: func(d *Difference) bool { return strings.HasPrefix(d.Sequence, packetPrefix+strangeProtocol) },
	},
	{
		Title: "a source address in 127.0.0.0/8 that no interface has",
		Why: "The module forgets a local address that is on no interface when it next sends, and 127.0.0.9 is on none where " +
			"lo has 127.0.0.1/8. To the host's kernel, which sends for this program, it is as good as any.",
		covers: func(d *Difference) bool {
			return d.Step.Name == sentFromLoopback || d.Step.Name == countersAfterThat
		},
	},
	{
		Title: "how a TCP client learns that its connection has gone wrong",
		Why: "A stream with a length of 0 or 1 ends it for good, and the module says EINVAL to the client's next read, and " +
			"ECONNRESET when the other side has reset the connection. A client's end of a socket pair can only say that this " +
			"is the end, which is what a read from the module's socket says next after a reset. If the peer is deleted after " +
			"an impossible length, the module gives the client the rest of the stream, out of step as it is.",
		covers: func(d *Difference) bool {
			kernel, ours := d.changes()
			kernel = slices.DeleteFunc(kernel, func(line string) bool { return line == datagramEnd })
			if len(kernel) != 1 || !strings.HasPrefix(d.Sequence, packetPrefix+"TCP, ") {
				return false
			}
			switch kernel[0] {
			case "client: from the connection: invalid argument":
				return len(ours) == 1 && strings.HasPrefix(ours[0], "client: from the connection, which has ended")
			case "client: from the connection: connection reset by peer":
				return len(ours) == 0
			}
			return len(ours) == 0 && slices.ContainsFunc(impossibleLengths, func(l impossible) bool {
				return strings.HasPrefix(d.Sequence, packetPrefix+"TCP, "+l.name)
			}) && strings.HasPrefix(kernel[0], "client: from the connection: ") && d.Step.Name == "PEER_DEL"
		},
	},
}

var (
	noopEcho  = regexp.MustCompile(`(echo [0-9a-f]{8})0100`)
	localPort = regexp.MustCompile(`0x400c:[0-9a-f]{4} `)
)

// tunAttributes are the beginnings of the lines of link attributes that differ between an ovpn and a TUN interface.
var tunAttributes = []string{
	"link attribute 6 =", "link attribute 26 =", "link attribute 40 =", "link attribute 68 =", "link attribute 69 =",
}

// withoutNoopEcho takes the acknowledgement of a new link from the lines that only one side has, if it is the same but for the
// type of the message that it echoes.
func withoutNoopEcho(kernel, ours []string) (restOfKernel, restOfOurs []string) {
	for i, a := range kernel {
		for j, b := range ours {
			if strings.Contains(a, "ACK") && a != b && a == noopEcho.ReplaceAllString(b, "${1}1000") {
				return slices.Delete(slices.Clone(kernel), i, i+1), slices.Delete(slices.Clone(ours), j, j+1)
			}
		}
	}
	return kernel, ours
}

// onlyTunAttributes says whether the lines that differ are of tunAttributes.
func onlyTunAttributes(d *Difference) bool {
	kernel, ours := d.changes()
	kernel, ours = withoutNoopEcho(kernel, ours)
	all := slices.Concat(kernel, ours)
	for _, line := range all {
		known := slices.ContainsFunc(tunAttributes, func(prefix string) bool { return strings.HasPrefix(line, prefix) })
		if !known {
			return false
		}
	}
	return len(all) > 0
}

func typeOf(datagram script.Bytes) uint16 {
	if len(datagram) < headerSize {
		return 0
	}
	return ne.Uint16(datagram[4:])
}

func isDump(datagram script.Bytes) bool {
	return len(datagram) >= headerSize && ne.Uint16(datagram[6:])&unix.NLM_F_DUMP == unix.NLM_F_DUMP
}

func reasonFor(d *Difference) *Reason {
	for i := range Deliberate {
		if Deliberate[i].covers(d) {
			return &Deliberate[i]
		}
	}
	return nil
}
