package datapath

import (
	"golang.org/x/sys/unix"

	"ovpn-go/crypto"
	"ovpn-go/peers"
	"ovpn-go/tun"
)

// receiver opens datagrams into the coalescer's super-frames. It belongs to the worker.
//
// Buffers: vector holds what the last recvmmsg returned; each packet is opened from there straight into
// the coalescer's frame, which is written out when the turn ends at the latest.
type receiver struct {
	w        *worker
	vector   receiveVector
	coalesce *tun.Coalescer
	tally    tally
}

// tally gathers one peer's counters over the packets of a run, so that they cost one set of atomic adds.
type tally struct {
	peer                   *peers.Peer
	linkPackets, linkBytes uint64
	vpnPackets, vpnBytes   uint64
}

func (r *receiver) init(w *worker) {
	r.w = w
	r.vector.init()
	r.coalesce = tun.NewCoalescer(w.queue)
}

// turn receives from every readable socket until it is dry, or its share of the turn is used up.
func (r *receiver) turn() {
	readable := r.w.readable
	if len(readable) == 0 {
		return
	}
	r.w.readable = readable[:0]
	for _, sock := range readable {
		sock.readable = r.drain(sock)
		if sock.readable {
			r.w.readable = append(r.w.readable, sock)
		}
	}
	r.flush()
}

// drain reports whether the socket may hold more.
func (r *receiver) drain(sock *udpSocket) bool {
	for range receivesPerTurn {
		n, err := r.vector.receive(sock.fd)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			// Anything but EAGAIN is an error report queued by the kernel (ICMP), gone with this call.
			return err != unix.EAGAIN
		}
		r.w.dev.counters.receives.Add(1)
		for i := range n {
			r.buffer(sock, r.vector.at(i))
		}
		if n < vectorLen {
			return false // edge-triggered: the next datagram raises a new event
		}
	}
	return true
}

// buffer takes the datagrams of one GRO buffer apart.
func (r *receiver) buffer(sock *udpSocket, in received) {
	data := in.data
	for {
		n := min(in.stride, len(data))
		r.packet(sock, &in, data[:n])
		data = data[n:]
		if len(data) == 0 {
			return
		}
	}
}

// packet takes one datagram to the interface, or drops it. The order of checks and counters is the kernel's.
func (r *receiver) packet(sock *udpSocket, in *received, packet []byte) {
	d := r.w.dev
	if len(packet) < 4 {
		d.counters.drop(DropRunt, 1)
		return
	}
	if crypto.Opcode(packet[0]) != crypto.OpcodeDataV2 {
		d.counters.drop(DropOpcode, 1)
		return
	}
	p := d.peerByPacket(packet, in.remote)
	if p == nil {
		d.counters.drop(DropUnknownPeer, 1)
		return
	}
	if p != r.tally.peer {
		r.flush()
		r.tally.peer = p
	}
	r.tally.linkPackets++
	r.tally.linkBytes += uint64(len(packet))
	key := p.Keys.ByID(crypto.KeyID(packet[0]))
	if key == nil {
		d.counters.drop(DropUnknownKey, 1)
		return
	}
	if len(packet) < crypto.Overhead {
		d.counters.drop(DropRunt, 1)
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
			d.counters.drop(reason, 1)
		}
		return
	}
	r.tally.vpnPackets++
	r.tally.vpnBytes += uint64(n)
	if dropped := r.coalesce.Commit(); dropped > 0 {
		d.counters.drop(DropLink, dropped)
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
	d.learnEndpoint(p, in)
	if !isIP(inner) {
		if string(inner) == string(crypto.Keepalive[:]) {
			return numDropReasons, false
		}
		return DropInner, false
	}
	if !d.sourceBelongsTo(p, inner) {
		return DropReversePath, false
	}
	if tr := transportOf(p); tr != nil {
		tr.clampMSS(inner)
	}
	return 0, true
}

// flush writes out the frame in hand and publishes the tally.
func (r *receiver) flush() {
	c := &r.w.dev.counters
	if dropped := r.coalesce.Flush(); dropped > 0 {
		c.drop(DropLink, dropped)
	}
	c.tunWrites.Store(r.coalesce.Stats().Writes)
	t := &r.tally
	if t.peer == nil {
		return
	}
	t.peer.Counters.AddLinkRx(t.linkPackets, t.linkBytes)
	if t.vpnPackets > 0 {
		t.peer.Counters.AddVPNRx(t.vpnPackets, t.vpnBytes)
		c.rxPackets.Add(t.vpnPackets)
		c.rxBytes.Add(t.vpnBytes)
	}
	*t = tally{}
}

// isIP is the kernel's test of an inner packet: the version nibble and room for the fixed header. The rest is
// the stack's business.
func isIP(packet []byte) bool {
	return len(packet) >= 20 && packet[0]>>4 == 4 || len(packet) >= 40 && packet[0]>>4 == 6
}
