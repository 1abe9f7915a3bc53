package conformance

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ovpn-go/test/conformance/script"
)

// TestLogged: what is kept of a log is from the first step to a second after the last one began, without the looks at the state.
func TestLogged(t *testing.T) {
	const log = `time=2026-11-24T04:00:00.499Z level=INFO msg="before"
time=2026-11-24T04:00:00.500Z level=INFO msg="first"
a line without a time
time=2026-11-24T04:00:01.000Z level=DEBUG msg="netlink request" message="peer-get flags=0x301"
time=2026-11-24T04:00:02.999Z level=WARN msg="last"
time=2026-11-24T04:00:03.001Z level=INFO msg="after"
`
	const want = `time=2026-11-24T04:00:00.500Z level=INFO msg="first"
a line without a time
time=2026-11-24T04:00:02.999Z level=WARN msg="last"
`
	begin := time.Date(2026, 11, 24, 4, 0, 0, int(500*time.Millisecond+700*time.Microsecond), time.UTC)
	steps := []script.Outcome{{Began: begin}, {Began: begin.Add(1500 * time.Millisecond)}}
	if diff := cmp.Diff(want, logged(log, steps)); diff != "" {
		t.Errorf("logged (-want +got):\n%s", diff)
	}
	if got := logged(log, nil); got != "" {
		t.Errorf("no step, but %q", got)
	}
}
