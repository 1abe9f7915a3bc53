package datapath

import (
	"slices"

	"golang.org/x/sys/unix"

	"ovpn-go/crypto"
	"ovpn-go/peers"
	"ovpn-go/tun"
)

// receiver opens a worker's datagrams into the coalescer's super-frames.
//
// Buffers: vector holds what the last recvmmsg returned; each packet is opened from there straight into
// the coalescer's frame, which is written out when the turn ends at the latest.
type receiver struct {
	w        *worker
	vector   receiveVector
	coalesce *tun.Coalescer
	tally    tally
	written  tun.CoalescerStats    // what the tallies before have seen delivered
	stream   []byte                // what one read of a TCP connection takes; made on first use
	record   [maxClientRecord]byte // one record of a TCP client
}

// streamLen is how much one read of a TCP connection may take: many frames, and room for the rest of the longest.
const streamLen = 256 << 10

// tally gathers one peer's counters over the packets of a run, so that they cost one set of atomic adds. What the
// interface took of them, the coalescer knows.
type tally struct {
	peer           *peers.Peer
	packets, bytes uint64 // link-rx
}

func (r *receiver) init(w *worker) {
	r.w = w
	r.vector.init()
	r.coalesce = tun.NewCoalescer(w.queue)
}

// turn receives from every readable socket until it is dry, or its share of the turn is used up. It reports whether
// the interface got something.
func (r *receiver) turn() (delivered bool) {
	n := len(r.w.readable)
	if n == 0 {
		return false
	}
	writes := r.written.Writes
	// Draining one may close it or another, or make a third readable: the list changes under the loop.
	for range n {
		if len(r.w.readable) == 0 {
			break
		}
		src := r.w.readable[0]
		r.w.readable = slices.Delete(r.w.readable, 0, 1)
		src.readable = false
		if src.drain() && src.worker != nil {
			r.w.markReadable(src)
		}
	}
	r.flush()
	return r.written.Writes != writes
}

// socket takes what one of a UDP socket's descriptors has received and reports whether there may be more.
func (r *receiver) socket(sock *udpSocket, fd int) bool {
	for range receivesPerTurn {
		n, err := r.vector.receive(fd)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			// Anything but EAGAIN is an error report queued by the kernel (ICMP), gone with this call.
			return err != unix.EAGAIN
		}
		r.w.counters.receives.Add(1)
		for i := range n {
			in := r.vector.at(i)
			if sock.conn != nil && fd == sock.conn.raw.fd && !sock.conn.unwrap(&in) {
				continue
			}
			r.buffer(sock, in)
		}
		if n < vectorLen {
			return false // edge-triggered: the next datagram raises a new event
		}
	}
	return true
}

// connected takes what came past the preferred socket of a connection.
func (r *receiver) connected(sock *udpSocket) bool {
	more := r.socket(sock, sock.conn.raw.fd)
	if err := sock.conn.follow(r.w.clock.boot); err != nil {
		r.w.dev.log.Warn("receive without UDP GRO", "port", sock.info.LocalPort, "error", err)
	}
	return more
}

// buffer takes the datagrams of one GRO buffer apart.
func (r *receiver) buffer(sock *udpSocket, in received) {
	data := in.data
	for {
		n := min(in.stride, len(data))
		r.datagram(sock, &in, data[:n])
		data = data[n:]
		if len(data) == 0 {
			return
		}
	}
}

// datagram finds the peer of one datagram. The order of checks and counters, here and below, is the kernel's.
func (r *receiver) datagram(sock *udpSocket, in *received, packet []byte) {
	d := r.w.dev
	if len(packet) < 4 {
		r.w.counters.drop(DropRunt, 1)
		return
	}
	switch crypto.Opcode(packet[0]) {
	case crypto.OpcodeDataV2:
	case crypto.OpcodeDataV1:
		r.w.counters.drop(DropOpcode, 1)
		return
	default:
		// A control packet that GRO has put behind data packets.
		if !sock.giveBack(packet, in) {
			r.w.counters.drop(DropClient, 1)
		}
		return
	}
	p := d.peerByPacket(packet, in.remote)
	if p == nil {
		r.w.counters.drop(DropUnknownPeer, 1)
		return
	}
	r.packet(p, in, packet)
}

// connection takes what has arrived on a TCP connection and reports whether there may be more.
func (r *receiver) connection(c *tcpConn) bool {
	if r.stream == nil {
		r.stream = make([]byte, streamLen+crypto.TagSize)
	}
	for range receivesPerTurn {
		switch tcpState(c.state.Load()) {
		case tcpCarrying:
		case tcpPlain:
			return c.pass(r.stream[:passLen])
		default:
			return false
		}
		n, space := r.segment(c)
		const ending = unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR
		if n < space && (n == 0 || c.stream.events&ending == 0) {
			// Edge-triggered: what comes next raises a new event. An end that came with the data does not.
			c.shrink()
			return false
		}
	}
	return true
}

// copyLimit is how long the beginning of a frame may be, in bytes, that is copied for every read, so that a read can
// take what follows the frame as well. Control frames and those of common packets are shorter.
const copyLimit = 2048

// segment takes what one read of a connection yields, n bytes of the space that there was. n is 0 if there was nothing.
func (r *receiver) segment(c *tcpConn) (n, space int) {
	if missing := missingFrom(c.partial); len(c.partial) >= copyLimit && missing > 0 {
		// The rest of a long frame goes behind what there is of it, however many reads that takes.
		kept := len(c.partial)
		c.partial = slices.Grow(c.partial, missing+crypto.TagSize)
		if n = c.read(c.partial[kept : kept+missing]); n > 0 {
			r.w.counters.receives.Add(1)
			c.partial = c.partial[:kept+n]
			if n == missing {
				r.frames(c, c.partial)
				c.partial = c.partial[:0]
			}
		}
		return n, missing
	}
	kept := copy(r.stream, c.partial)
	into := r.stream[kept:streamLen]
	if n = c.read(into); n > 0 {
		r.w.counters.receives.Add(1)
		c.partial = append(c.partial[:0], r.frames(c, r.stream[:kept+n])...)
	}
	return n, len(into)
}

// frames takes the whole frames of a connection's stream and returns what is left.
func (r *receiver) frames(c *tcpConn, stream []byte) (rest []byte) {
	for {
		frame, rest, ok, err := nextFrame(stream)
		if err != nil {
			c.end() // the peer stays, and can be sent to (kernel behaviour)
			return nil
		}
		if !ok {
			return rest
		}
		stream = rest
		packet := frame[framePrefix:]
		switch {
		case len(packet) < 4:
			r.w.counters.drop(DropRunt, 1)
			c.reject(r.w)
			return nil
		case crypto.Opcode(packet[0]) == crypto.OpcodeDataV2:
			r.packet(c.peer, nil, packet)
		case crypto.Opcode(packet[0]) == crypto.OpcodeDataV1:
			r.w.counters.drop(DropOpcode, 1)
			c.reject(r.w)
			return nil
		default:
			// A client that does not read loses it, as it would lose datagrams: the control channel repeats
			// what was not acknowledged.
			if !c.deliver(frame) {
				r.w.counters.drop(DropClient, 1)
			}
		}
	}
}

// packet takes one DATA_V2 packet to the interface, or drops it. in says where it came from; nil on TCP, where
// the connection is the peer's address.
func (r *receiver) packet(p *peers.Peer, in *received, packet []byte) {
	if p != r.tally.peer {
		r.flush()
		r.tally.peer = p
	}
	r.tally.packets++
	r.tally.bytes += uint64(len(packet))
	key := p.Keys.ByID(crypto.KeyID(packet[0]))
	if key == nil {
		r.w.counters.drop(DropUnknownKey, 1)
		return
	}
	if len(packet) < crypto.Overhead {
		r.w.counters.drop(DropRunt, 1)
		return
	}
	n := len(packet) - crypto.Overhead
	inner := packet[crypto.Overhead:] // the interface never gets an empty packet
	if n > 0 {
		inner = r.coalesce.Next(n)
	}
	if reason, ok := r.accept(p, key, in, inner, packet); !ok {
		if n > 0 {
			r.coalesce.Abandon()
		}
		if reason != numDropReasons {
			r.w.counters.drop(reason, 1)
		}
		return
	}
	if dropped := r.coalesce.Commit(); dropped > 0 {
		r.w.counters.drop(DropLink, dropped)
	}
}

// accept opens packet into inner and reports whether the interface should have it, or why not; a keepalive
// has no reason.
func (r *receiver) accept(p *peers.Peer, key *crypto.Key, in *received, inner, packet []byte) (DropReason, bool) {
	d := r.w.dev
	id := crypto.PacketID(packet)
	if key.Open(inner, packet) != nil {
		return DropAuthentication, false
	}
	if !key.Accept(id, r.w.clock.mono) {
		return DropReplay, false
	}
	p.MarkReceived(r.w.clock.boot)
	if in != nil {
		d.learnEndpoint(p, in, r.w.clock.boot)
		if in.fragment != 0 {
			transportOf(p).path.cameInFragments(in.fragment, d.fit, r.w.clock.boot)
		}
	}
	if !isIP(inner) {
		if string(inner) == string(crypto.Keepalive[:]) {
			return numDropReasons, false
		}
		return DropInner, false
	}
	if !d.sourceBelongsTo(p, inner) {
		return DropReversePath, false
	}
	transportOf(p).clampMSS(inner)
	return 0, true
}

// flush writes out the frame in hand and publishes the tally.
func (r *receiver) flush() {
	c := &r.w.counters
	if dropped := r.coalesce.Flush(); dropped > 0 {
		c.drop(DropLink, dropped)
	}
	t := &r.tally
	if t.peer == nil {
		return
	}
	t.peer.Counters.AddLinkRx(t.packets, t.bytes)
	written := r.coalesce.Stats()
	if n := written.Packets - r.written.Packets; n > 0 {
		bytes := written.Bytes - r.written.Bytes
		t.peer.Counters.AddVPNRx(n, bytes)
		c.rxPackets.Add(n)
		c.rxBytes.Add(bytes)
		c.tunWrites.Store(written.Writes)
	}
	r.written = written
	*t = tally{}
}

// isIP is the kernel's test of an inner packet: the version nibble and room for the fixed header. The rest is
// the stack's business.
func isIP(packet []byte) bool {
	return len(packet) >= 20 && packet[0]>>4 == 4 || len(packet) >= 40 && packet[0]>>4 == 6
}
