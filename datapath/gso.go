package datapath

import (
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// gsoRetrySeconds is for how long batches that were refused are sent one by one before a whole one is tried again:
// paths change.
const gsoRetrySeconds = 10

// gsoState is what was learned about UDP_SEGMENT on the way to one peer. The zero value knows nothing. It may be used
// concurrently: of two who learn something at once, one may be forgotten and learn it again.
type gsoState struct {
	// retry<<16 | limit. Datagrams of limit bytes or more were refused, until boot-time second retry, from which
	// on they are tried again; 0: none were.
	learned atomic.Uint64
}

// allowed reports whether a batch of datagrams of stride bytes is worth a try.
func (g *gsoState) allowed(stride int, now int64) bool {
	limit, retry := g.load()
	return limit == 0 || stride < limit || now >= retry
}

// refused records that a batch failed with err although its datagrams, one by one, did not.
func (g *gsoState) refused(err error, stride int, now int64) {
	switch err {
	case unix.EIO, unix.EOPNOTSUPP:
		// EIO: the route's device can't fill in checksums (udp_send_skb, Linux 4.18 on). Size is no matter.
		stride = 1
	case unix.EMSGSIZE, unix.EINVAL:
		// Longer than the path takes. The kernel segments but never fragments a batch (EINVAL until 6.12).
	default:
		return
	}
	if limit, retry := g.load(); now >= retry || stride < limit {
		g.learned.Store(uint64(now+gsoRetrySeconds)<<16 | uint64(stride))
	}
}

func (g *gsoState) load() (limit int, retry int64) {
	learned := g.learned.Load()
	return int(learned & 0xffff), int64(learned >> 16)
}
