package exec

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// What a client sends: every message lies inside the datagram and behind the one before.
func FuzzMessages(f *testing.F) {
	f.Fuzz(func(t *testing.T, datagram []byte) {
		offset, count := 0, 0
		for m := range messages(datagram) {
			if len(m) < unix.NLMSG_HDRLEN || cap(m) != len(m) {
				t.Fatalf("message of %d bytes with room for %d", len(m), cap(m))
			}
			if !bytes.HasPrefix(datagram[offset:], m) {
				t.Fatalf("message %d is not at offset %d", count, offset)
			}
			offset = min(offset+(len(m)+3)&^3, len(datagram))
			count++
		}
		if count == 0 && (!onlyGets(datagram) || namesProcess(datagram)) {
			t.Fatal("no message, yet it asks for something")
		}
		onlyGets(datagram)
		namesProcess(datagram)
		parseNetlinkAddress(datagram)
	})
}

// What /proc says of an epoll descriptor.
func FuzzRegistrations(f *testing.F) {
	f.Fuzz(func(t *testing.T, info []byte) {
		if got, most := len(parseRegistrations(info)), bytes.Count(info, []byte("tfd:")); got > most {
			t.Fatalf("%d registrations in %d lines", got, most)
		}
		statusField(info, "flags")
		parseCredentials(info)
		parseStat(string(info))
	})
}

// What supervisor and guard tell each other survives the trip.
func FuzzControl(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decodeMessage(b)
		if err != nil {
			return
		}
		if diff := cmp.Diff(b, m.encode()); diff != "" {
			t.Fatalf("encoded again (-want +got):\n%s", diff)
		}
	})
}
