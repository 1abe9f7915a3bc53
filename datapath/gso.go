package datapath

import "golang.org/x/sys/unix"

// gsoRetrySeconds is for how long batches that were refused are sent one by one before a whole one is tried again:
// paths change.
const gsoRetrySeconds = 10

// gsoState is what was learned about UDP_SEGMENT on the way to one peer. The zero value knows nothing.
type gsoState struct {
	limit int   // datagrams of so many bytes or more were refused; 0: none were
	retry int64 // boot-time second from which they are tried again
}

// allowed reports whether a batch of datagrams of stride bytes is worth a try.
func (g *gsoState) allowed(stride int, now int64) bool {
	return g.limit == 0 || stride < g.limit || now >= g.retry
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
	if now >= g.retry || stride < g.limit {
		g.limit, g.retry = stride, now+gsoRetrySeconds
	}
}
