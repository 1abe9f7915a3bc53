package datapath

import (
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"ovpn-go/tun"
)

// GSO says whether batches of datagrams leave in one piece, to be cut by the kernel or the network card (UDP_SEGMENT).
// Where the kernel refuses that, they are sent one by one, whatever this says.
type GSO uint8

const (
	// GSOAuto cuts in the kernel, except where that is known to garble datagrams: Linux 7.0 to 7.1.4 does so to
	// batches whose datagrams are all of one length.
	GSOAuto GSO = iota
	// GSOOn cuts in the kernel, whatever is known about it.
	GSOOn
	// GSOOff never does. It is for hosts or network cards that garble what they cut.
	GSOOff
	// gsoUneven cuts only batches with a shorter datagram at the end.
	gsoUneven
)

// String returns auto, on, off or, for what GSOAuto has become on an affected kernel, uneven.
func (g GSO) String() string { return [...]string{"auto", "on", "off", "uneven"}[g] }

// UnmarshalText accepts auto, on and off.
func (g *GSO) UnmarshalText(text []byte) error {
	for _, known := range []GSO{GSOAuto, GSOOn, GSOOff} {
		if string(text) == known.String() {
			*g = known
			return nil
		}
	}
	return fmt.Errorf("%q: must be auto, on or off", text)
}

// MarshalText returns what String does.
func (g GSO) MarshalText() ([]byte, error) { return []byte(g.String()), nil }

// on decides what GSOAuto means on a kernel.
func (g GSO) on(r tun.Release) GSO {
	switch {
	case g != GSOAuto:
		return g
	case !r.Before(7, 0, 0) && r.Before(7, 1, 5):
		return gsoUneven
	}
	return GSOOn
}

// suits reports whether a batch may be offered to the kernel in one piece.
func (g GSO) suits(b *batch) bool { return g == GSOOn || g == gsoUneven && b.short }

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

// refused records that a batch failed with err although its datagrams, one by one, did not. It reports whether that
// is news.
func (g *gsoState) refused(err error, stride int, now int64) bool {
	switch err {
	case unix.EIO, unix.EOPNOTSUPP:
		// EIO: the route's device can't fill in checksums (udp_send_skb, Linux 4.18 on). Size is no matter.
		stride = 1
	case unix.EMSGSIZE, unix.EINVAL:
		// Longer than the path takes. The kernel segments but never fragments a batch (EINVAL until 6.12).
	default:
		return false
	}
	limit, retry := g.load()
	if now >= retry || stride < limit {
		g.learned.Store(uint64(now+gsoRetrySeconds)<<16 | uint64(stride))
	}
	return limit == 0
}

func (g *gsoState) load() (limit int, retry int64) {
	learned := g.learned.Load()
	return int(learned & 0xffff), int64(learned >> 16)
}
