package netlinksrv

import (
	"time"

	"golang.org/x/sys/unix"
)

// maxDumpDatagram is how much of a dump goes into one datagram: what the kernel's buffer of one 4 KiB page holds
// (NLMSG_GOODSIZE). The kernel goes up to 32 KiB for clients that have shown a larger receive buffer; we never
// see their buffers, and this size suits the smallest in use (libmnl: 4 KiB).
const maxDumpDatagram = 3776

// dump is a dump under way. As in the kernel its first datagram is queued at once, and the others follow as there
// is room, so that no part of it is lost.
type dump struct {
	req  header
	port uint32
	// count messages are made by build, in order. check is made before every datagram; it may be nil.
	count int
	build func(i int) []byte
	check func() *requestError
	// list, unless nil, finds out count and build. The kernel does so for every datagram and goes on behind as many
	// messages as it has given, whatever they were. Here the second list is the last, so that a long dump does not take
	// a square of the time: what comes between the first two is the rest of the client's own datagram.
	list  func()
	lists int

	next    int
	pending []byte // the datagram to deliver next, nil if it is not made yet
	ended   bool   // pending is the last one
	resumed bool   // a goroutine delivers the rest
}

// peerDump prepares the dump of an interface's peers. What is wrong with the interface ends the dump; it does not
// prevent it.
func (r *request) peerDump() *dump {
	d := &dump{req: r.header, port: r.port}
	if err := r.findInterface(); err != nil {
		refusal := asRequestError(err, unix.EINVAL)
		d.check = func() *requestError { return refusal }
		return d
	}
	ns := newNamespaceIDs(r.socket.ns)
	d.list = func() {
		infos := r.device.Peers()
		d.count = len(infos)
		d.build = func(i int) []byte { return families[r.family].describe(r, &infos[i], unix.NLM_F_MULTI, ns) }
	}
	d.check = func() *requestError {
		select {
		case <-r.device.Done():
			return asRequestError(refuse(unix.ENODEV, "ifindex does not match any interface"), unix.ENODEV)
		default:
			return nil
		}
	}
	return d
}

// step makes the next datagram: as many messages as fit, or the end of the dump, which has one of its own.
func (d *dump) step(opt ackOptions) {
	if d.check != nil {
		if err := d.check(); err != nil {
			d.pending, d.ended = done(d.req, d.port, err, opt), true
			return
		}
	}
	if d.list != nil && d.lists < 2 {
		d.list()
		d.lists++
	}
	for d.next < d.count {
		msg := d.build(d.next)
		if len(d.pending) > 0 && len(d.pending)+len(msg) > maxDumpDatagram {
			return
		}
		d.pending = append(d.pending, msg...)
		d.next++
	}
	if d.pending == nil {
		d.pending, d.ended = done(d.req, d.port, nil, opt), true
	}
}

// dumping reports whether a dump is under way.
func (g *GenericSocket) dumping() bool {
	g.dumpMu.Lock()
	defer g.dumpMu.Unlock()
	return g.dump != nil
}

// startDump delivers the first datagram of a dump. The others follow in continueDump.
func (g *GenericSocket) startDump(d *dump) {
	g.dumpMu.Lock()
	defer g.dumpMu.Unlock()
	g.dump = d
	g.advanceDump()
}

// advanceDump makes and delivers the next datagram. It returns false if there is no room. dumpMu is held.
func (g *GenericSocket) advanceDump() bool {
	d := g.dump
	if d.pending == nil {
		d.step(g.ackOptions())
	}
	if g.tryPost(d.pending) != nil {
		return false
	}
	d.pending = nil
	if d.ended {
		g.dump = nil
	}
	return true
}

// continueDump delivers the rest of a dump, as far as there is room now. What remains goes out when the client
// has read.
func (g *GenericSocket) continueDump() {
	g.dumpMu.Lock()
	defer g.dumpMu.Unlock()
	if g.dump == nil || g.dump.resumed {
		return
	}
	for g.dump != nil {
		if !g.advanceDump() {
			g.dump.resumed = true
			g.pumps.Go(g.resumeDump)
			return
		}
	}
}

// resumeDump ends with the dump or the socket. Nothing tells when the client reads, so it looks again and again,
// less often while nothing moves.
func (g *GenericSocket) resumeDump() {
	const retryMin, retryMax = time.Millisecond, 100 * time.Millisecond
	for retry := retryMin; ; retry = min(2*retry, retryMax) {
		select {
		case <-g.closing:
			return
		case <-time.After(retry):
		}
		g.dumpMu.Lock()
		for g.dump != nil && g.advanceDump() {
			retry = retryMin
		}
		finished := g.dump == nil
		g.dumpMu.Unlock()
		if finished {
			return
		}
	}
}
