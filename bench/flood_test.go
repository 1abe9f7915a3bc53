package bench

import (
	"net/netip"
	"slices"
	"testing"
)

// A burst ends with a shorter packet, with one peer as with many, and goes on from one system call to the next.
func TestSpreadBursts(t *testing.T) {
	for _, peers := range []int{1, 2, 100} {
		messages := newMessages(32, 1272, true)
		s := newSpreadMessages(&Spread{
			Sources: netip.MustParsePrefix("10.1.0.0/16"), Targets: netip.MustParsePrefix("10.2.0.0/16"), Peers: peers, Burst: 20,
		}, 9, messages)
		var lengths []int
		var targets []uint32
		for range 5 {
			s.next()
			for i := range messages {
				lengths = append(lengths, int(messages[i].header.Iov.Len))
				targets = append(targets, number4(netip.AddrFrom4(s.names[i].Addr)))
			}
		}
		for i, want := range slices.Repeat(append(slices.Repeat([]int{1272}, 19), 1271), 8) {
			if lengths[i] != want {
				t.Errorf("%d peers: packet %d has %d bytes, want %d", peers, i, lengths[i], want)
			}
			if want := uint32(10<<24|2<<16) + uint32(i/20%peers); targets[i] != want {
				t.Errorf("%d peers: packet %d goes to %x, want %x", peers, i, targets[i], want)
			}
		}
	}
}
