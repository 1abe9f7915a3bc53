package datapath

import (
	"math"
	"time"
)

// standingFor is how long, in nanoseconds, an interface's queue may stand before something is done about it.
const standingFor = int64(3 * time.Millisecond)

// standing watches whether an interface's queue runs dry now and then. One that does not, only makes packets late: a
// sender has more under way than the path holds, and goes on like that, as TUN's driver neither tells TCP how much
// it holds nor is ever full of super-frames. So TCP is told in the one way that is left, by the loss of a packet, and the
// more often the longer the queue stands. The rule is CoDel's (RFC 8289) with the time since the queue ran dry in place
// of that which the packet spent in it, which nobody records.
type standing struct {
	since int64 // when the queue was first seen not to run dry, by the turns' clock; 0: it ran dry
	lost  int   // packets since then
	next  int64 // when one more is due
}

// seen notes at the end of a turn whether the queue ran dry in it.
func (s *standing) seen(now int64, dry bool) {
	switch {
	case dry:
		*s = standing{}
	case s.since == 0:
		s.since, s.next = now, now+standingFor
	}
}

// due tells whether a packet is to be lost, and takes it that one will be.
func (s *standing) due(now int64) bool {
	if s.since == 0 || now < s.next {
		return false
	}
	s.lost++
	s.next = now + int64(float64(standingFor)/math.Sqrt(float64(s.lost)))
	return true
}
