package model

import (
	"reflect"
	"strings"
	"testing"
)

// flaws are misunderstandings: what a device does that has them is not what the model says.
var flaws = []struct {
	name string
	// operation is what the device takes an operation for, and outcome what it makes of the outcome.
	operation func(Op) Op
	outcome   func(*Outcome)
	// enough is how few operations show it.
	enough int
}{
	{name: "replays are accepted", operation: func() func(Op) Op {
		next := uint32(1 << 20)
		return func(o Op) Op {
			if next++; o.Do == Receive {
				o.Packet = next
			}
			return o
		}
	}(), enough: 6},
	{name: "a swap does nothing", operation: func(o Op) Op {
		if o.Do == KeySwap {
			return Op{Do: PeerSet, Device: o.Device, Peer: o.Peer}
		}
		return o
	}, enough: 5},
	{name: "a deletion is announced with another reason", outcome: func(o *Outcome) {
		for i, notice := range o.Seen[Notices] {
			o.Seen[Notices][i] = strings.ReplaceAll(notice, "userspace", "teardown")
		}
	}, enough: 4},
	{name: "nobody floats", operation: func(o Op) Op {
		if o.Do == Receive && o.Remote > 1 {
			o.Remote = 1
		}
		return o
	}, enough: 6},
	{name: "forgeries are accepted", operation: func(o Op) Op {
		if o.Inner == Forged {
			o.Inner = IPv4
		}
		return o
	}, enough: 6},
}

// TestFlawsAreFound: a device with a flaw differs from the model soon, and a few operations are left to show it.
func TestFlawsAreFound(t *testing.T) {
	for _, flaw := range flaws {
		t.Run(flaw.name, func(t *testing.T) {
			failing := func(candidates [][]Op) int {
				for i, ops := range candidates {
					good, flawed := New(), New()
					for _, o := range ops {
						want := good.Apply(o)
						if flaw.operation != nil {
							o = flaw.operation(o)
						}
						got := flawed.Apply(o)
						if flaw.outcome != nil {
							flaw.outcome(&got)
						}
						if !reflect.DeepEqual(want, got) || !reflect.DeepEqual(good.State(0), flawed.State(0)) ||
							!reflect.DeepEqual(good.State(1), flawed.State(1)) {
							return i
						}
					}
				}
				return -1
			}
			for stream := range uint64(100) {
				ops := Generate(1, stream, 50)
				if failing([][]Op{ops}) < 0 {
					continue
				}
				short := Shrink(ops, failing)
				if failing([][]Op{short}) < 0 {
					t.Errorf("the shrunk sequence does not fail:\n%s", Text(short))
				}
				if len(short) > flaw.enough {
					t.Errorf("%d operations are left:\n%s", len(short), Text(short))
				}
				t.Logf("shrunk from %d to %d operations:\n%s", len(ops), len(short), Text(short))
				return
			}
			t.Error("not found")
		})
	}
}

// TestGenerate: sequences reach what there is to be reached, and most requests are not refused.
func TestGenerate(t *testing.T) {
	const sequences = 200
	done, seen, refused := map[Action]int{}, map[string]int{}, 0
	for stream := range uint64(sequences) {
		m := New()
		for _, o := range Generate(7, stream, 50) {
			out := m.Apply(o)
			if out.Skipped {
				t.Fatalf("%v makes no sense", o)
			}
			done[o.Do]++
			for receiver, lines := range out.Seen {
				receiver, _, _ = strings.Cut(receiver, " ")
				seen[receiver] += len(lines)
				for _, line := range lines {
					if receiver == Notices {
						_, reason, _ := strings.Cut(line, ": ")
						seen["notice "+reason]++
					}
					if receiver == Reply && strings.HasPrefix(line, "E") {
						refused++
					}
				}
			}
		}
	}
	t.Logf("%v\n%v, %d refused", done, seen, refused)
	for _, w := range weights {
		if done[w.action] < sequences/20 {
			t.Errorf("%s only %d times", w.action, done[w.action])
		}
	}
	for _, want := range []string{
		"notice ", "notice userspace", "notice teardown", "notice expired", "notice transport-error", "notice transport-disconnect",
		"interface", "remote", "client",
	} {
		if seen[want] < sequences/20 {
			t.Errorf("%q only %d times", want, seen[want])
		}
	}
	if refused < sequences || refused > seen[Reply]/2 {
		t.Errorf("%d of %d requests are refused", refused, seen[Reply])
	}
}
