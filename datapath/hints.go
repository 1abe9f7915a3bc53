package datapath

import "ovpn-go/tun"

// hintsPerSecond limits the ICMP messages of one worker. Nothing is lost without one: the packet it is about
// arrives all the same.
const hintsPerSecond = 100

// hints is what the transmitter needs to tell senders that their packets are too long. The zero value is ready.
type hints struct {
	frame  [tun.VnetHdrLen + tun.MaxTooBig]byte
	second int64 // boot-time second that sent counts for
	sent   int
}

// tellTooBig tells the sender of an inner packet, where it forbids to fragment it, that packets of more than whole
// bytes don't reach the peer in one piece: by an ICMP message from the interface. A sender that listens sends
// shorter packets, which are faster; for all others the packet is delivered nevertheless.
func (t *transmitter) tellTooBig(packet []byte, whole int) {
	h := &t.hints
	if now := t.w.clock.boot; h.second != now {
		h.second, h.sent = now, 0
	}
	if h.sent == hintsPerSecond {
		return
	}
	n := tun.TooBig(h.frame[tun.VnetHdrLen:], packet, whole)
	if n == 0 {
		return
	}
	h.sent++
	// A vnet header of zeros: nothing is left for the stack to do. If it won't have the message, the next packet
	// brings another.
	if _, err := t.w.queue.Write(h.frame[:tun.VnetHdrLen+n]); err == nil {
		t.w.counters.hints.Add(1)
	}
}
