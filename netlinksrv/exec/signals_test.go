package exec

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestForwarder(t *testing.T) {
	const (
		supervisor = iota
		guard
	)
	type event struct {
		at     time.Duration
		who    int
		signal unix.Signal
	}
	ms := time.Millisecond
	tests := []struct {
		name   string
		events []event
		want   []unix.Signal
	}{
		{"only the supervisor", []event{{0, supervisor, unix.SIGTERM}}, []unix.Signal{unix.SIGTERM}},
		{"only the guard", []event{{0, guard, unix.SIGTERM}}, nil},
		{"both, supervisor first", []event{{0, supervisor, unix.SIGINT}, {5 * ms, guard, unix.SIGINT}}, nil},
		{"both, guard first", []event{{0, guard, unix.SIGINT}, {5 * ms, supervisor, unix.SIGINT}}, nil},
		{"different signals", []event{{0, guard, unix.SIGINT}, {ms, supervisor, unix.SIGTERM}}, []unix.Signal{unix.SIGTERM}},
		{"one for each of two", []event{{0, supervisor, unix.SIGINT}, {ms, supervisor, unix.SIGINT}, {2 * ms, guard, unix.SIGINT}}, []unix.Signal{unix.SIGINT}},
		{"a late witness", []event{{0, supervisor, unix.SIGINT}, {100 * ms, guard, unix.SIGINT}}, []unix.Signal{unix.SIGINT}},
		{"an old witness", []event{{0, guard, unix.SIGINT}, {2000 * ms, supervisor, unix.SIGINT}}, []unix.Signal{unix.SIGINT}},
		{"in order", []event{{0, supervisor, unix.SIGHUP}, {ms, supervisor, unix.SIGTERM}}, []unix.Signal{unix.SIGHUP, unix.SIGTERM}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var f forwarder
			var got []unix.Signal
			start := time.Now()
			for _, e := range test.events {
				now := start.Add(e.at)
				got = append(got, f.due(now)...)
				if e.who == guard {
					f.witness(e.signal, now)
				} else {
					f.received(e.signal, now)
				}
			}
			for at, ok := f.next(); ok; at, ok = f.next() {
				got = append(got, f.due(at)...)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("passed on (-want +got):\n%s", diff)
			}
		})
	}
}
