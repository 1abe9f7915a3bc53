package datapath

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"

	"ovpn-go/crypto"
	"ovpn-go/peers"
	"ovpn-go/tun"
)

// transmitter turns super-frames from a worker's TUN queue into batches of datagrams.
//
// Buffers: frame holds the super-frame in hand; a packet that the splitter hands out lies in it and is
// valid until the next one is asked for. batch.buf holds sealed datagrams, back to back, until they
// are sent; it is empty while the worker sleeps.
type transmitter struct {
	w     *worker
	frame []byte
	split tun.Splitter
	batch batch
	send  sendBuffer
	hints hints
	queue standing
}

// maxInner is the longest inner packet in bytes that fits a datagram or a frame. The interface's MTU is never that
// large, unless it was changed by somebody who took it for an ordinary TUN device.
const maxInner = maxUDPPayload - crypto.Overhead - framePrefix

// batch is what leaves for one peer in one system call: over UDP datagrams, all stride bytes long but perhaps the
// last; over TCP frames of any length.
type batch struct {
	peer    *peers.Peer
	via     *transport
	binding *peers.Binding // nil over TCP
	buf     []byte
	used    int
	count   int
	stride  int
	short   bool // the last datagram is shorter than stride: nothing may follow it
}

func (t *transmitter) init(w *worker) {
	t.w = w
	t.send.lane = w.index
	t.frame = make([]byte, tun.MaxFrame)
	t.batch.buf = make([]byte, maxUDPPayload+crypto.TagSize)
}

// turn reads the queue until it is dry, or the turn's share is used up, and sends what came of it.
func (t *transmitter) turn() {
	bytes := 0
	for reads := 0; reads < readsPerTurn && bytes < bytesPerTurn; reads++ {
		n, err := t.w.queue.Read(t.frame)
		if err == unix.EINVAL {
			continue // a frame of a kind that the kernel can't describe to us (tun_put_user) is gone
		}
		if err != nil || n == 0 {
			t.w.tunReady = false
			if err != unix.EAGAIN {
				// EBADFD, or EFAULT on the way there: the interface was deleted. An in-memory one just ends.
				t.w.later(t.w.dev.stop)
			}
			break
		}
		t.w.counters.tunReads.Add(1)
		bytes += n
		t.transmit(t.frame[:n])
	}
	t.queue.seen(t.w.clock.mono, bytes, !t.w.tunReady)
	t.flush()
}

// transmit seals the packets of one super-frame, which share their destination, and adds them to the
// batch. The order of checks and counters is the kernel's.
func (t *transmitter) transmit(frame []byte) {
	d := t.w.dev
	if err := t.split.Reset(frame); err != nil {
		t.w.counters.drop(DropMalformedFrame, 1)
		return
	}
	n := t.split.Packets()
	p := d.peerByDestination(frame[tun.VnetHdrLen:])
	if p == nil {
		t.w.counters.drop(DropNoPeer, n)
		return
	}
	key := p.Keys.Primary()
	if key == nil {
		t.w.counters.drop(DropNoKey, n)
		p.Counters.AddVPNTx(uint64(n), t.skip())
		return
	}
	tr := transportOf(p)
	binding := p.Binding()
	if !tr.reaches(binding) {
		t.w.counters.drop(DropNoTransport, n)
		p.Counters.AddVPNTx(uint64(n), t.skip())
		return
	}
	if t.split.SegmentSize() > maxInner {
		t.w.counters.drop(DropTooLong, n)
		p.Counters.AddVPNTx(uint64(n), t.skip())
		return
	}
	if tr.udp != nil && t.w.clock.boot >= tr.path.due.Load() {
		d.measurePath(tr, binding.Remote, binding.ScopeID, t.w.clock.boot)
	}
	whole := int(tr.path.whole.Load())
	long := whole != 0 && t.split.SegmentSize() > whole && !d.fit.Silent
	if n > 1 && t.split.Stream() && t.queue.due(t.w.clock.mono) {
		// It is lost in the interface's queue, where a queueing discipline would drop it: no peer's counter has seen it.
		t.split.Next()
		n--
		t.w.counters.drop(DropStanding, 1)
	}
	id, granted := key.Reserve(n)
	op := crypto.Op(key.ID(), p.TxID())
	var bytes uint64
	for i := range granted {
		packet, ok := t.split.Next()
		if !ok {
			break // can't be: Packets promised n
		}
		if n == 1 {
			tr.clampMSS(packet)
		}
		if long && i == 0 {
			t.tellTooBig(packet, whole)
		}
		bytes += uint64(len(packet))
		key.Seal(t.slot(p, tr, binding, crypto.Overhead+len(packet)), packet, op, id+uint32(i))
	}
	t.sent(p, granted, bytes)
	if granted < n {
		d.exhausted(p, key)
		t.w.counters.drop(DropExhausted, n-granted)
		bytes += t.skip()
	}
	p.Counters.AddVPNTx(uint64(n), bytes)
}

// skip passes over what is left of the frame in hand and returns its length in bytes of inner packets.
func (t *transmitter) skip() (bytes uint64) {
	for {
		packet, ok := t.split.Next()
		if !ok {
			return bytes
		}
		bytes += uint64(len(packet))
	}
}

// sent counts packets that were handed to p's transport, whatever becomes of them there.
func (t *transmitter) sent(p *peers.Peer, packets int, inner uint64) {
	if packets == 0 {
		return
	}
	bytes := inner + uint64(packets)*crypto.Overhead
	p.Counters.AddLinkTx(uint64(packets), bytes)
	p.MarkSent(t.w.clock.boot)
}

// keepalive sends p the packet that tells it we are there.
func (t *transmitter) keepalive(p *peers.Peer) {
	d := t.w.dev
	key, tr, binding := p.Keys.Primary(), transportOf(p), p.Binding()
	if key == nil {
		t.w.counters.drop(DropNoKey, 1)
		return
	}
	if !tr.reaches(binding) {
		t.w.counters.drop(DropNoTransport, 1)
		return
	}
	id, granted := key.Reserve(1)
	if granted == 0 {
		d.exhausted(p, key)
		t.w.counters.drop(DropExhausted, 1)
		return
	}
	dst := t.slot(p, tr, binding, crypto.Overhead+len(crypto.Keepalive))
	key.Seal(dst, crypto.Keepalive[:], crypto.Op(key.ID(), p.TxID()), id)
	t.sent(p, 1, uint64(len(crypto.Keepalive)))
}

// slot returns room for the next packet of size bytes to p, with a tag's worth of slack behind it. It sends the
// batch first if the packet can't continue it.
func (t *transmitter) slot(p *peers.Peer, tr *transport, binding *peers.Binding, size int) []byte {
	b := &t.batch
	if b.count > 0 && (b.peer != p || b.via != tr || b.binding != binding || !b.takes(size)) {
		t.flush()
	}
	if b.count == 0 {
		b.peer, b.via, b.binding, b.stride, b.short = p, tr, binding, size, false
	}
	if tr.tcp != nil {
		binary.BigEndian.PutUint16(b.buf[b.used:], uint16(size))
		b.used += framePrefix
	}
	dst := b.buf[b.used : b.used+size]
	b.used += size
	b.count++
	b.short = size < b.stride
	return dst
}

// takes reports whether a packet of size bytes may follow those in the batch.
func (b *batch) takes(size int) bool {
	if b.via.tcp != nil {
		return b.used+framePrefix+size <= maxUDPPayload
	}
	return !b.short && size <= b.stride && b.count < maxSegments && b.used+size <= maxUDPPayload
}

// flush sends the batch.
func (t *transmitter) flush() {
	b := &t.batch
	if b.count == 0 {
		return
	}
	if b.via.tcp != nil {
		t.frames()
	} else {
		t.datagrams()
	}
	*b = batch{buf: b.buf}
}

// frames writes the batch to a connection. One that has not even taken the batch before it drops this one: it
// has more to do than it can, and neither waiting nor hoarding would help (kernel behaviour, for each frame).
func (t *transmitter) frames() {
	b := &t.batch
	if !b.via.tcp.offer(t.w, b.buf[:b.used]) {
		t.sendResult(unix.EAGAIN, b.count, 0)
		return
	}
	t.sendResult(nil, b.count, b.used-b.count*framePrefix)
}

// datagrams sends the batch over UDP.
func (t *transmitter) datagrams() {
	b := &t.batch
	data := b.buf[:b.used]
	if b.count == 1 {
		t.datagram(data)
		return
	}
	err := t.gso(data)
	if err == nil {
		return
	}
	// The kernel took none of it, or was not asked: once more without its help.
	if t.oneByOne(data) && err != errNotTried {
		if b.via.gso.refused(err, b.stride, t.w.clock.boot) {
			t.w.dev.log.Info("the kernel won't cut datagrams on this path, they are sent one by one",
				"remote", b.binding.Remote, "size", b.stride, "error", err)
		}
		if now := t.w.clock.boot; err != unix.EIO && !b.via.path.measuredIn(now) {
			// The path may have become narrower since.
			t.w.dev.measurePath(b.via, b.binding.Remote, b.binding.ScopeID, now)
		}
	}
}

// oneByOne sends the datagrams of the batch each on its own and reports whether all went as the binding has it.
func (t *transmitter) oneByOne(data []byte) (asBound bool) {
	b := &t.batch
	asBound = true
	for len(data) > 0 {
		n, err := t.send.sendMany(b.via.udp, b.binding.Remote, b.binding.ScopeID, b.binding.Local, data, b.stride)
		if n > 0 {
			taken := min(n*b.stride, len(data))
			t.sendResult(nil, n, taken)
			data = data[taken:]
			continue
		}
		if err == unix.EINTR {
			continue
		}
		n = min(b.stride, len(data))
		if err == unix.EPERM {
			t.sendResult(err, 1, 0) // a packet filter's verdict, which is not asked for again
			asBound = false
		} else {
			// The first one is refused: there may be another way for it, and the others may fare better.
			asBound = t.datagram(data[:n]) && asBound
		}
		data = data[n:]
	}
	return asBound
}

// errNotTried says that a batch was not offered to the kernel as a whole.
var errNotTried = errors.New("not tried")

// gso sends the batch as one buffer that the kernel, or the egress device, cuts into datagrams.
func (t *transmitter) gso(data []byte) error {
	b := &t.batch
	if !t.w.dev.gso.suits(b) || !b.via.gso.allowed(b.stride, t.w.clock.boot) {
		return errNotTried
	}
	err := t.send.send(b.via.udp, b.binding.Remote, b.binding.ScopeID, b.binding.Local, data, b.stride)
	switch err {
	case unix.EMSGSIZE, unix.EINVAL, unix.EIO, unix.EOPNOTSUPP, unix.ENETUNREACH, unix.EADDRNOTAVAIL:
		return err
	case unix.EPERM:
		// A packet filter refused what it saw as a single packet. Its counters and limits are about
		// datagrams: the first one has had its verdict, the others ask for theirs.
		t.sendResult(err, 1, 0)
		for data = data[b.stride:]; len(data) > 0; data = data[min(b.stride, len(data)):] {
			t.datagram(data[:min(b.stride, len(data))])
		}
		return nil
	}
	t.sendResult(err, b.count, len(data))
	return nil
}

// datagram sends one datagram of the batch and reports whether that went as the binding has it. A local
// address that can't be used any more is forgotten, as in the kernel.
func (t *transmitter) datagram(data []byte) bool {
	b := &t.batch
	err := t.send.send(b.via.udp, b.binding.Remote, b.binding.ScopeID, b.binding.Local, data, 0)
	asBound := err == nil
	switch err {
	case unix.EINVAL, unix.ENETUNREACH, unix.EADDRNOTAVAIL:
		if !b.binding.Local.IsValid() {
			break
		}
		none := netip.Addr{}
		if err = t.send.send(b.via.udp, b.binding.Remote, b.binding.ScopeID, none, data, 0); err == nil {
			t.w.dev.forgetLocal(b.peer, b.binding)
			b.binding = b.peer.Binding()
		}
	}
	t.sendResult(err, 1, len(data))
	return asBound
}

// sendResult counts what became of a send of so many packets, which are bytes long in all.
func (t *transmitter) sendResult(err error, packets, bytes int) {
	c := &t.w.counters
	c.sends.Add(1)
	switch err {
	case nil:
		c.txPackets.Add(uint64(packets))
		c.txBytes.Add(uint64(bytes))
	case unix.EAFNOSUPPORT:
		c.drop(DropNoTransport, packets)
	default:
		c.drop(DropSend, packets)
	}
}
