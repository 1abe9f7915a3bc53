package datapath

import (
	"math"
	"time"
)

// An interface's queue may stand for a while before something is done about it.
const (
	// standingFor is how long, in nanoseconds,
	standingFor = int64(3 * time.Millisecond)
	// and standingBytes how much is read from it meanwhile: a slow machine takes longer than that for a few super-frames, which
	// a sender must have under way.
	standingBytes = 1 << 20
)

// standing watches whether an interface's queue runs dry now and then. One that does not, only makes packets late: a
// sender has more under way than the path holds, and goes on like that, as TUN's driver neither tells TCP how much
// it holds nor is ever full of super-frames. So TCP is told in the one way that is left, by the loss of a packet, and the
// more often the longer the queue stands. The rule is CoDel's (RFC 8289) with the time since the queue ran dry in place
// of that which the packet spent in it, which nobody records.
type standing struct {
	since int64 // when the queue was first seen not to run dry, by the turns' clock; 0: it ran dry
	lost  int   // packets since then
	next  int64 // when one more is due,
	left  int   // if so many bytes are read before
}

// seen notes at the end of a turn how many bytes were read from the queue, and whether it ran dry.
func (s *standing) seen(now int64, bytes int, dry bool) {
	switch {
	case dry:
		*s = standing{}
	case s.since == 0:
		s.since, s.next, s.left = now, now+standingFor, standingBytes
	default:
		s.left -= bytes
	}
}

// due tells whether a packet is to be lost, and takes it that one will be.
func (s *standing) due(now int64) bool {
	if s.since == 0 || now < s.next || s.left > 0 {
		return false
	}
	s.lost++
	often := math.Sqrt(float64(s.lost))
	s.next, s.left = now+int64(float64(standingFor)/often), int(standingBytes/often)
	return true
}
