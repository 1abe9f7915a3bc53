package datapath

import "golang.org/x/sys/unix"

// gsoRetrySeconds is for how long datagrams of a size that did not fit the path are sent one by one, and so
// fragmented, before a whole batch is tried again: paths change.
const gsoRetrySeconds = 10

// gsoState is what was learned about UDP_SEGMENT on one socket. The zero value knows nothing.
type gsoState struct {
	off       bool  // no segmentation on this socket: the egress device can't fill checksums
	tooLong   int   // shortest stride that did not fit the path; 0: none
	tryLonger int64 // boot-time second from which tooLong is tried again
}

// allowed reports whether a batch of datagrams of stride bytes is worth a try.
func (g *gsoState) allowed(stride int, now int64) bool {
	return !g.off && (g.tooLong == 0 || stride < g.tooLong || now >= g.tryLonger)
}

// refused records that a batch failed with err although its datagrams, one by one, did not.
func (g *gsoState) refused(err error, stride int, now int64) {
	switch err {
	case unix.EIO, unix.EOPNOTSUPP:
		// EIO: the route's device has no checksum offload (udp_send_skb, Linux 4.18 on).
		g.off = true
	case unix.EMSGSIZE, unix.EINVAL:
		// The kernel segments but never fragments a batch (EINVAL until 6.12).
		if now >= g.tryLonger || g.tooLong == 0 || stride < g.tooLong {
			g.tooLong, g.tryLonger = stride, now+gsoRetrySeconds
		}
	}
}
