package conformance

import (
	"fmt"
	"strings"
)

// Summary puts a report into words.
type Summary struct {
	*Report
	// Programs are other people's, as they were run on this program.
	Programs []Program
	// Written and Random are the numbers of sequences of either kind, and Seed that of the random ones.
	Written, Random int
	Seed            uint64
}

// row is a line of the table: what differs, and how often.
type row struct {
	what   string
	count  int
	reason *Reason
}

func (s *Summary) rows() []row {
	different, intended := 0, map[*Reason]int{}
	for i := range s.Differences {
		if r := s.Differences[i].Reason; r != nil {
			intended[r]++
		} else {
			different++
		}
	}
	packets := s.Packets()
	rows := []row{
		{what: "requests", count: s.Requests},
		{what: "answered identically", count: s.Identical},
		{what: "packet cases", count: packets.Requests},
		{what: "packet cases with the same outcome", count: packets.Identical},
		{what: "system calls and requests compared in all", count: s.Steps},
		{what: "different, unexplained", count: different},
	}
	for i := range Deliberate {
		r := &Deliberate[i]
		if n := intended[r]; n > 0 {
			kind := "different on purpose: "
			if r.Gap {
				kind = "different, known gap: "
			}
			rows = append(rows, row{what: kind + r.Title, count: n, reason: r})
		}
	}
	return rows
}

// Table is the summary for a terminal.
func (s *Summary) Table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "kernel %s, program on %s; %d sequences written and %d random (seed %d)\n",
		s.Kernel, s.Host, s.Written, s.Random, s.Seed)
	for _, r := range s.rows() {
		fmt.Fprintf(&b, "%7d  %s\n", r.count, r.what)
	}
	for _, p := range s.Programs {
		fmt.Fprintf(&b, "%7s  %s: %s\n", p.verdict(), p.Name, p.What)
	}
	for _, p := range s.Problems {
		fmt.Fprintf(&b, "problem: %s\n", p)
	}
	return b.String()
}

// Document is the summary for the repository.
func (s *Summary) Document() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("# Conformance")
	line("")
	line("<!-- Written by `make conformance`. Do not edit. -->")
	line("")
	line("The same requests go to Linux's `ovpn` module, on a kernel in an emulated machine, and to this program, under")
	line("`ovpn-go exec`. A client that knows of neither sends them and writes down every datagram that it gets, and the two")
	line("records are compared byte for byte. What is given out as it comes is masked first: the ids of the family and its")
	line("group, port ids and interface indexes. A request that this program refuses must leave links, peers, keys and the number")
	line("of the namespace's sockets as they were: they are looked at before and after. `make conformance` repeats it.")
	line("")
	line("Kernel: %s. Host of the program: %s. %d sequences are written, %d are random (seed %d).",
		s.Kernel, s.Host, s.Written, s.Random, s.Seed)
	line("")
	line("| | |")
	line("|---|--:|")
	for _, r := range s.rows() {
		line("| %s | %d |", r.what, r.count)
	}
	line("")
	line("## By subject")
	line("")
	line("| subject | requests | identical |")
	line("|---|--:|--:|")
	for _, subject := range s.Subjects {
		line("| %s | %d | %d |", subject.Name, subject.Requests, subject.Identical)
	}
	line("")
	line("Packets: a case is one or more packets, sent to the client's transport socket by a peer that is scripted, or into the")
	line("interface, and all that follows: what comes out of the interface, on the wire and at the client's socket, what is")
	line("announced, and the counters of peers and interface afterwards.")
	line("")
	line("| packets | cases | identical | different on purpose |")
	line("|---|--:|--:|--:|")
	for _, subject := range s.PacketSubjects {
		line("| %s | %d | %d | %d |", subject.Name, subject.Requests, subject.Identical,
			subject.Requests-subject.Identical-subject.Unexplained)
	}
	line("")
	if len(s.Programs) > 0 {
		line("## Programs")
		line("")
		line("Programs of other people's, run unchanged under `ovpn-go exec` on a kernel without the module. A client does a round of")
		line("work: a link, a peer, keys, what is said about them, notifications, and the end of it all (iproute2: links alone).")
		line("")
		line("| program | | |")
		line("|---|---|---|")
		for _, p := range s.Programs {
			line("| %s | %s | %s |", p.Name, p.What, p.verdict())
		}
		line("")
	}
	line("## What differs, and why")
	line("")
	for _, r := range s.rows() {
		if r.reason != nil {
			line("- **%s.** %s", upper(r.reason.Title), r.reason.Why)
		}
	}
	if left := s.Unexplained(); len(left) > 0 {
		line("")
		line("Unexplained:")
		line("")
		line("```")
		for i := range left {
			b.WriteString(left[i].String())
		}
		line("```")
	}
	for _, p := range s.Problems {
		line("- Problem: %s", p)
	}
	line("")
	line("## What is not compared")
	line("")
	line("- How soon an announcement comes when a transport socket is closed: the kernel announces within `close`, this program")
	line("  a moment later.")
	line("- The order of a link's attributes, links and families of others in lists, and how such lists are cut into datagrams.")
	line("- The cut of long dumps for clients with large buffers: the kernel's later datagrams grow with the largest buffer it")
	line("  has seen, up to 32 KiB; this program's hold one page, as for a client that reads just what there is.")
	line("- The address family and groups of a datagram's sender; its length and port id are compared.")
	line("- Out of memory, races, and what makes the module crash: raw sockets of protocol UDP, and sending to an IPv6 remote over")
	line("  an IPv4 socket.")
	line("- An interface's counters of drops and of what was sent, which are those of a TUN interface. The module's own count of")
	line("  bytes sent over UDP is wrong.")
	line("- What many packets at once are joined to, a full queue, and the end of a key's packet ids, which would take 2^32 packets:")
	line("  other tests hold that to the specification.")
	return b.String()
}

func (p *Program) verdict() string {
	if p.Passed {
		return "passes"
	}
	return "FAILS"
}

func upper(s string) string { return strings.ToUpper(s[:1]) + s[1:] }
