package conformance

import (
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ovpn-go/test/conformance/script"
)

// side is one of two runs of the same sequence, which differ in all that is given out as it comes.
type side struct {
	family  uint16
	port    uint32
	ifindex uint32
}

var kernelSide, ourSide = side{0x22, 4711, 2}, side{1023, 815, 7}

// fixture is a sequence of one request for the interface tun0.
func fixture() script.Sequence {
	w := &writer{Sequence: script.Sequence{Name: "fixture (plain)"}}
	w.netlink(control, unix.NETLINK_GENERIC)
	w.find("tun0")
	w.check("tun0", 1)
	return w.Sequence
}

// run makes the transcript of a run of the fixture in which the step was answered by datagrams.
func (s side) run(answers func(s side, sent []byte) []script.Datagram) *script.Transcript {
	step := fixture().Steps[2]
	sent := slices.Clone([]byte(step.Data))
	binary.NativeEndian.PutUint16(sent[4:], s.family)
	binary.NativeEndian.PutUint32(sent[24:], s.ifindex)
	return &script.Transcript{
		Family: s.family, Group: 5,
		Sequences: []script.Results{{
			Name: "fixture (plain)", Ports: map[string]uint32{control: s.port},
			Interfaces: map[string][]uint32{"tun0": {s.ifindex}},
			Outcomes:   []script.Outcome{{}, {}, {Sent: sent, Received: answers(s, sent)}},
		}},
	}
}

func (s side) datagram(kind, flags uint16, body ...byte) script.Datagram {
	var e encoder
	e.message(message{kind: kind, flags: flags, body: body}, 1)
	binary.NativeEndian.PutUint32(e.data[12:], s.port)
	return script.Datagram{On: control, Data: e.data, SenderLength: unix.SizeofSockaddrNetlink}
}

// refusal is an NLMSG_ERROR with the whole request and a text.
func (s side) refusal(sent []byte, errno unix.Errno, reason string) script.Datagram {
	body := binary.NativeEndian.AppendUint32(nil, uint32(-int32(errno)))
	body = append(body, sent...)
	var e encoder
	e.attrs([]attr{text(1, reason)})
	return s.datagram(unix.NLMSG_ERROR, 0x200, append(body, e.data...)...)
}

func compare(t *testing.T, kernel, ours func(side, []byte) []script.Datagram) *Report {
	t.Helper()
	return Compare([]script.Sequence{fixture()}, kernelSide.run(kernel), ourSide.run(ours))
}

func refuse(errno unix.Errno, reason string) func(side, []byte) []script.Datagram {
	return func(s side, sent []byte) []script.Datagram {
		return []script.Datagram{s.refusal(sent, errno, reason)}
	}
}

func TestCompareMasksWhatIsGivenOut(t *testing.T) {
	same := refuse(unix.ENOENT, "ovpn: cannot find peer with id 1")
	report := compare(t, same, same)
	if diff := cmp.Diff([]Difference(nil), report.Differences, cmp.AllowUnexported(Difference{})); diff != "" {
		t.Error(diff)
	}
	if report.Identical != 1 || report.Requests != 1 {
		t.Errorf("%d of %d are identical", report.Identical, report.Requests)
	}
}

func TestCompareFinds(t *testing.T) {
	good := refuse(unix.ENOENT, "text")
	for name, ours := range map[string]func(side, []byte) []script.Datagram{
		"another errno":   refuse(unix.EINVAL, "text"),
		"another text":    refuse(unix.ENOENT, "test"),
		"no answer":       func(side, []byte) []script.Datagram { return nil },
		"a second answer": func(s side, sent []byte) []script.Datagram { return append(good(s, sent), good(s, sent)...) },
		"a read that fails": func(side, []byte) []script.Datagram {
			return []script.Datagram{{On: control, Error: int(unix.ENOBUFS)}}
		},
		"another socket": func(s side, sent []byte) []script.Datagram {
			d := good(s, sent)
			d[0].On = events
			return d
		},
		"another port": func(s side, sent []byte) []script.Datagram {
			s.port++
			return good(s, sent)
		},
		"another interface in the echo": func(s side, sent []byte) []script.Datagram {
			sent = slices.Clone(sent)
			sent[24]++
			return good(s, sent)
		},
		"a sender": func(s side, sent []byte) []script.Datagram {
			d := good(s, sent)
			d[0].SenderPort = 1
			return d
		},
		"a sender without address": func(s side, sent []byte) []script.Datagram {
			d := good(s, sent)
			d[0].SenderLength = 0
			return d
		},
		"a byte in the padding": func(s side, sent []byte) []script.Datagram {
			d := good(s, sent)
			d[0].Data[len(d[0].Data)-1] = 1
			return d
		},
		"one datagram more or less": func(s side, sent []byte) []script.Datagram {
			d := good(s, sent)
			d[0].Data = append(d[0].Data, d[0].Data...)
			return d
		},
	} {
		t.Run(name, func(t *testing.T) {
			report := compare(t, good, ours)
			if len(report.Unexplained()) != 1 || report.Identical != 0 {
				t.Errorf("the difference is not found: %+v", report)
			}
		})
	}
}

func TestCompareRefusesAnotherRecord(t *testing.T) {
	good := refuse(unix.ENOENT, "text")
	kernel, ours := kernelSide.run(good), ourSide.run(good)
	for name, spoil := range map[string]func(*script.Results){
		"another sequence": func(r *script.Results) { r.Name = "other" },
		"fewer steps":      func(r *script.Results) { r.Outcomes = r.Outcomes[:1] },
		"an early end":     func(r *script.Results) { r.Problem = "unshare: operation not permitted" },
	} {
		t.Run(name, func(t *testing.T) {
			spoiled := *ours
			spoiled.Sequences = slices.Clone(ours.Sequences)
			spoil(&spoiled.Sequences[0])
			if report := Compare([]script.Sequence{fixture()}, kernel, &spoiled); len(report.Problems) != 1 {
				t.Errorf("problems are %q", report.Problems)
			}
		})
	}
	if report := Compare([]script.Sequence{fixture()}, kernel, &script.Transcript{}); len(report.Problems) != 1 {
		t.Errorf("problems of an empty record are %q", report.Problems)
	}
}

func TestDifferenceShowsBothSides(t *testing.T) {
	report := compare(t, refuse(unix.ENOENT, "one"), refuse(unix.EINVAL, "two"))
	shown := report.Differences[0].String()
	for _, want := range []string{"check 1", "- control: ERROR ENOENT", `MSG "one\x00"`, "+ control: ERROR EINVAL", `MSG "two\x00"`} {
		if !strings.Contains(shown, want) {
			t.Errorf("%q lacks %q", shown, want)
		}
	}
}

func TestCorpusIsWellFormed(t *testing.T) {
	sequences := slices.Concat(Corpus(), PacketCorpus(), Random(1, 50))
	const leastRequests, leastPackets = 500, 150
	if n := Requests(sequences); n < leastRequests {
		t.Errorf("there are %d requests only", n)
	}
	packets := 0
	names := map[string]bool{}
	for _, s := range sequences {
		if names[s.Name] {
			t.Errorf("there are two sequences %q", s.Name)
		}
		names[s.Name] = true
		open := map[string]bool{script.NamespaceFD + "home": true}
		for _, step := range s.Steps {
			switch step.Action {
			case script.Netlink, script.Socket:
				open[step.On] = true
				open[step.On+script.FarEnd] = step.Kind == script.TCP
			case script.Emit:
				packets++
				for _, e := range step.Emissions {
					if !open[e.On] {
						t.Errorf("%s: %s: there is no socket %q", s.Name, step.Name, e.On)
					}
				}
			case script.Namespace:
				open[script.NamespaceFD+step.On] = true
			case script.Send:
				if !open[step.On] {
					t.Errorf("%s: %s: there is no socket %q", s.Name, step.Name, step.On)
				}
			}
			for _, p := range step.Patches {
				if p.What == script.FD && !open[p.Of] {
					t.Errorf("%s: %s: there is no descriptor %q", s.Name, step.Name, p.Of)
				}
			}
		}
	}
	if packets < leastPackets {
		t.Errorf("there are %d packet cases only", packets)
	}
}

// A case is what a packet does and what is counted afterwards.
func TestPacketCases(t *testing.T) {
	arrived := script.Datagram{On: tap, From: "the interface", Data: []byte("packet")}
	for _, tt := range []struct {
		rule         string
		kernel, ours [2]script.Outcome // of the packet and of the counters
		want         Subject
	}{
		{"the same", [2]script.Outcome{{Received: []script.Datagram{arrived}}}, [2]script.Outcome{{Received: []script.Datagram{arrived}}},
			Subject{Requests: 1, Identical: 1}},
		{"it arrives on one side", [2]script.Outcome{{Received: []script.Datagram{arrived}}}, [2]script.Outcome{},
			Subject{Requests: 1, Unexplained: 1}},
		{"one byte differs", [2]script.Outcome{{Received: []script.Datagram{arrived}}},
			[2]script.Outcome{{Received: []script.Datagram{{On: tap, From: "the interface", Data: []byte("pocket")}}}},
			Subject{Requests: 1, Unexplained: 1}},
		{"from elsewhere", [2]script.Outcome{{Received: []script.Datagram{arrived}}},
			[2]script.Outcome{{Received: []script.Datagram{{On: tap, From: "another", Data: []byte("packet")}}}},
			Subject{Requests: 1, Unexplained: 1}},
		{"only the counters differ", [2]script.Outcome{{}, {Notes: []string{"rx_packets 1"}}}, [2]script.Outcome{{}, {Notes: []string{"rx_packets 2"}}},
			Subject{Requests: 1, Unexplained: 1}},
	} {
		t.Run(tt.rule, func(t *testing.T) {
			s := script.Sequence{Name: packetPrefix + "some", Steps: []script.Step{
				{Name: "packet", Action: script.Emit}, {Name: "counters", Action: script.Stats, On: "tun0"},
			}}
			side := func(outcomes [2]script.Outcome) *script.Transcript {
				return &script.Transcript{Sequences: []script.Results{{Name: s.Name, Outcomes: outcomes[:]}}}
			}
			report := Compare([]script.Sequence{s}, side(tt.kernel), side(tt.ours))
			if diff := cmp.Diff(tt.want, report.Packets()); diff != "" {
				t.Errorf("cases (-want +got):\n%s", diff)
			}
			if got := len(report.Unexplained()); got != tt.want.Unexplained {
				t.Errorf("%d unexplained differences", got)
			}
		})
	}
}

func TestRandomIsReproducible(t *testing.T) {
	if diff := cmp.Diff(Random(7, 3), Random(7, 3)); diff != "" {
		t.Error(diff)
	}
	if cmp.Equal(Random(7, 1)[0].Steps, Random(8, 1)[0].Steps) {
		t.Error("two seeds give the same requests")
	}
}
