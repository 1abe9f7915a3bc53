package tun

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// maxMergeHeader is the most bytes of headers that a packet may have and still be merged: IPv6
// without extension headers, and TCP with all options.
const maxMergeHeader = ip6HeaderLen + tcpHeaderMax

// Coalescer gathers consecutive packets of one TCP or UDP flow into a super-frame and writes it to a
// queue with one call. It is not safe for concurrent use, and it must be the queue's only writer
// while it runs.
//
// A packet's way:
//
//  1. Next lends the caller n bytes inside the frame, beginning as far in front of the frame's end
//     as the flow's headers are long. If the packet turns out to belong to the flow, its payload
//     thereby lies where the super-frame continues. The bytes under its headers are saved first.
//  2. The caller opens the packet into them. Abandon puts the saved bytes back.
//  3. Commit compares the headers with the flow's and verifies the checksums. A packet that
//     continues the flow is taken by putting the saved bytes back over its headers. Any other is set
//     aside until the frame has been written, and then starts a frame of its own or, if nothing may
//     be added to it, is written at once.
//
// Between calls the frame is either empty or open: it holds verified packets and may grow. What the
// stack gets, after segmenting the super-frames, is what was committed, byte for byte and in order,
// except that the id of an IPv4 packet with DF set may differ: RFC 6864 section 4.1 gives it no
// meaning there.
type Coalescer struct {
	queue    *Queue
	features Features
	buf      []byte // room for a vnet header, then the frame
	end      int    // end of the frame in buf, VnetHdrLen if it is empty
	at, n    int    // where the lent packet lies in buf
	flow     flow   // of the frame; packets is 0 if it is empty
	saved    [maxMergeHeader]byte
	aside    [maxMergeHeader]byte
	dropped  int // packets refused by the queue, not yet reported
	apart    int // packets that are not to be merged, after a refused super-frame
	stats    CoalescerStats
	split    Splitter
}

// CoalescerStats counts what a Coalescer has handed to its queue since it was made.
type CoalescerStats struct {
	Packets uint64 // packets that the queue took
	Bytes   uint64 // their lengths, each with headers of its own
	Writes  uint64 // writes that carried them
	Refused uint64 // super-frames that the kernel did not accept; their packets went one by one
}

// apartAfterRefusal is how many packets go one by one before another super-frame is tried.
const apartAfterRefusal = 1 << 14

// NewCoalescer makes a Coalescer that writes to q and merges what q.Features allows.
func NewCoalescer(q *Queue) *Coalescer {
	return &Coalescer{queue: q, features: q.Features(), buf: make([]byte, MaxFrame), end: VnetHdrLen}
}

// Stats returns the counters so far.
func (c *Coalescer) Stats() CoalescerStats { return c.stats }

// Next returns the n bytes that the next packet is to be written to, 1 <= n <= 65535. The caller's
// next call must be Commit or Abandon: until then the bytes cover some that have been committed. A
// frame that has no room for n more bytes is written first.
func (c *Coalescer) Next(n int) []byte {
	if c.flow.packets != 0 && c.end-c.flow.header+n > len(c.buf) {
		c.write()
	}
	c.at, c.n = c.end-c.flow.header, n
	copy(c.saved[:c.flow.header], c.buf[c.at:])
	return c.buf[c.at : c.at+n : c.at+n]
}

// Abandon gives back the bytes lent by Next, which hold nothing that may be delivered.
func (c *Coalescer) Abandon() {
	copy(c.buf[c.at:], c.saved[:c.flow.header])
}

// Commit takes the packet in the bytes lent by Next for delivery. It returns the number of packets,
// this or earlier ones, that the queue has refused since the last report: because the interface is
// down or gone, or the queue full.
func (c *Coalescer) Commit() (dropped int) {
	p := c.buf[c.at : c.at+c.n]
	s := c.inspect(p)
	if c.apart > 0 {
		c.apart--
		s.kind = segmentOther
	}
	if c.flow.packets != 0 {
		if c.flow.continuedBy(&s, p) && s.intact(p) {
			c.merge(&s)
			return c.takeDropped()
		}
		h := c.flow.header
		copy(c.aside[:h], p)
		copy(c.buf[c.at:], c.saved[:h])
		c.write()
		copy(p, c.aside[:h])
	}
	if s.kind == segmentOther || s.closes || !s.intact(p) {
		c.deliver(c.buf[c.at-VnetHdrLen:c.at+c.n], &VnetHdr{}, 1, c.n)
		return c.takeDropped()
	}
	if c.at != VnetHdrLen {
		copy(c.buf[VnetHdrLen:], p)
	}
	c.end = VnetHdrLen + c.n
	c.flow.start(&s, c.buf[VnetHdrLen:])
	return c.takeDropped()
}

// Flush writes the packets that are still held. It returns the number of packets that the queue has
// refused since the last report.
func (c *Coalescer) Flush() (dropped int) {
	if c.flow.packets != 0 {
		c.write()
	}
	return c.takeDropped()
}

func (c *Coalescer) takeDropped() int {
	d := c.dropped
	c.dropped = 0
	return d
}

// merge adds the lent packet, whose payload is in place, to the frame.
func (c *Coalescer) merge(s *segment) {
	copy(c.buf[c.at:], c.saved[:c.flow.header])
	c.end = c.at + c.n
	if c.flow.add(s) {
		return
	}
	if s.closes {
		// The segmentation leaves PSH to the last packet, which is this one.
		c.buf[VnetHdrLen+s.transport+tcpFlags] |= tcpPSH
	}
	c.write()
}

// write delivers the frame and empties it.
func (c *Coalescer) write() {
	frame := c.buf[:c.end]
	var vnet VnetHdr
	if c.flow.packets > 1 {
		vnet = c.flow.seal(frame[VnetHdrLen:])
	}
	packets := c.flow.packets
	bytes := len(frame) - VnetHdrLen + (packets-1)*c.flow.header
	c.end, c.flow.packets, c.flow.header = VnetHdrLen, 0, 0
	c.deliver(frame, &vnet, packets, bytes)
}

// deliver writes a frame of one or more packets, which are bytes long on their own.
//
// A kernel may refuse super-frames although it supports them: Linux 6.6.44 and other stable releases
// of that summer answered EINVAL to valid ones. The packets then go one by one, and so do those that follow.
func (c *Coalescer) deliver(frame []byte, vnet *VnetHdr, packets, bytes int) {
	vnet.Encode(frame)
	_, err := c.queue.Write(frame)
	switch {
	case err == nil:
		c.stats.Packets += uint64(packets)
		c.stats.Bytes += uint64(bytes)
		c.stats.Writes++
	case packets > 1 && err == unix.EINVAL && c.split.Reset(frame) == nil:
		c.stats.Refused++
		c.apart = apartAfterRefusal
		c.deliverApart(frame)
	default:
		c.dropped += packets
	}
}

// deliverApart writes the packets of a super-frame that c.split has been set to. The vnet header of
// a packet goes over the end of the one before it, which has been written.
func (c *Coalescer) deliverApart(frame []byte) {
	at := 0
	for {
		p, ok := c.split.Next()
		if !ok {
			return
		}
		c.deliver(frame[at:at+VnetHdrLen+len(p)], &VnetHdr{}, 1, len(p))
		at += c.split.size
	}
}

// flow is what the packets of the open frame have in common, and how the next one must go on.
type flow struct {
	kind      segmentKind
	packets   int
	transport int    // offset of the transport header
	header    int    // length of all headers in bytes, 0 if the frame is empty
	size      int    // payload bytes of every packet
	seq       uint32 // TCP sequence number that continues the flow
	id        uint16 // IPv4 id that continues the flow

	// first holds the headers of the first packet. The frame has them too, but a packet lent out
	// reaches into them as long as the frame's payload is shorter than they are.
	first [maxMergeHeader]byte
}

// start begins a flow with its first packet.
func (f *flow) start(s *segment, p []byte) {
	f.kind, f.packets = s.kind, 0
	f.transport, f.header, f.size = s.transport, s.header, s.payload
	f.seq, f.id = s.seq, s.id
	copy(f.first[:f.header], p)
	f.add(s)
}

// add counts a packet in and reports whether another may follow.
func (f *flow) add(s *segment) (open bool) {
	f.packets++
	f.seq += uint32(s.payload)
	f.id++
	return !s.closes && s.payload == f.size && (f.kind.tcp() || f.packets < udpMaxSegments)
}

// continuedBy reports whether a packet may be added to the frame: the segmentation of the frame
// with the packet's payload appended must yield the packet's headers. Checksums are not looked at.
func (f *flow) continuedBy(s *segment, p []byte) bool {
	if s.kind != f.kind || s.header != f.header || s.payload > f.size {
		return false
	}
	if f.kind.ip4() {
		if !sameIP4(f.first[:], p) || s.id != f.id && !s.atomic {
			return false
		}
	} else if !sameIP6(f.first[:], p) {
		return false
	}
	if f.kind.tcp() {
		return s.seq == f.seq && sameTCP(f.first[f.transport:f.header], p[f.transport:f.header])
	}
	return samePorts(f.first[f.transport:], p[f.transport:])
}

// seal completes the headers of a frame of several packets and returns its vnet header.
func (f *flow) seal(p []byte) VnetHdr {
	vnet := VnetHdr{
		Flags:     unix.VIRTIO_NET_HDR_F_NEEDS_CSUM,
		HdrLen:    uint16(f.header),
		GSOSize:   uint16(f.size),
		CsumStart: uint16(f.transport),
	}
	if f.kind.ip4() {
		binary.BigEndian.PutUint16(p[ip4TotalLen:], uint16(len(p)))
		binary.BigEndian.PutUint16(p[ip4Check:], 0)
		binary.BigEndian.PutUint16(p[ip4Check:], ^fold(sum(p[:ip4HeaderLen])))
	} else {
		binary.BigEndian.PutUint16(p[ip6PayloadLen:], uint16(len(p)-ip6HeaderLen))
	}
	t := p[f.transport:]
	if f.kind.tcp() {
		sealTCP(&vnet, p, t)
	} else {
		sealUDP(&vnet, p, t)
	}
	return vnet
}
