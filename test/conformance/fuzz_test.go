package conformance

import (
	"testing"

	"golang.org/x/sys/unix"

	"ovpn-go/test/conformance/script"
)

// FuzzOutcome: whatever comes back, the comparison must be able to show it.
func FuzzOutcome(f *testing.F) {
	s := fixture()
	step := s.Steps[len(s.Steps)-1]
	for _, m := range []message{
		harmless, getFamily(do, familyName("ovpn")), newLink("tun0", info(modeMP)),
		{kind: unix.NLMSG_ERROR, body: make([]byte, 40)}, {kind: unix.NLMSG_DONE, body: make([]byte, 4)},
	} {
		var e encoder
		e.message(m, 1)
		f.Add([]byte(e.data), true)
		f.Add([]byte(e.data), false)
	}
	f.Fuzz(func(t *testing.T, data []byte, onRoute bool) {
		on := control
		if onRoute {
			on = route
		}
		run := &script.Transcript{Family: 0x22, Group: 5}
		results := &script.Results{Ports: map[string]uint32{control: 1}, Interfaces: map[string][]uint32{"tun0": {2}}}
		outcome := &script.Outcome{Sent: script.Bytes(step.Data), Received: []script.Datagram{{On: on, Data: data}}}
		lines, _ := newMasker(&s, run, results).outcome(&step, outcome)
		again, _ := newMasker(&s, run, results).outcome(&step, outcome)
		if len(lines) != len(again) {
			t.Errorf("%d lines, then %d", len(lines), len(again))
		}
	})
}
