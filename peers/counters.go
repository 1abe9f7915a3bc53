package peers

import "sync/atomic"

// Counters counts a peer's traffic, for as long as the peer lives. VPN means packets inside the
// tunnel, measured as IP packets; link means DATA_V2 packets outside, measured from the opcode
// word to the end. Its methods may be called concurrently.
//
// Sending and receiving may be the work of different processors, so what they write lies in
// different cache lines if Counters is 8 bytes behind the start of one, as it is in a Peer. Callers
// on the packet path sum up a batch and add once.
type Counters struct {
	tx traffic
	_  [cacheLine - trafficSize - 8]byte
	rx traffic
}

const (
	cacheLine   = 64
	trafficSize = 32
)

type traffic struct {
	vpnPackets, vpnBytes, linkPackets, linkBytes atomic.Uint64
}

// Stats is what Counters held at some moment.
type Stats struct {
	VPNRxBytes, VPNRxPackets   uint64
	VPNTxBytes, VPNTxPackets   uint64
	LinkRxBytes, LinkRxPackets uint64
	LinkTxBytes, LinkTxPackets uint64
}

// AddVPNTx counts packets that were routed to the peer, whether or not they could be sent.
func (c *Counters) AddVPNTx(packets, bytes uint64) {
	c.tx.vpnPackets.Add(packets)
	c.tx.vpnBytes.Add(bytes)
}

// AddLinkTx counts packets, keepalives included, that were handed to the transport.
func (c *Counters) AddLinkTx(packets, bytes uint64) {
	c.tx.linkPackets.Add(packets)
	c.tx.linkBytes.Add(bytes)
}

// AddVPNRx counts packets that were delivered to the interface.
func (c *Counters) AddVPNRx(packets, bytes uint64) {
	c.rx.vpnPackets.Add(packets)
	c.rx.vpnBytes.Add(bytes)
}

// AddLinkRx counts packets that name the peer, genuine or not, keepalives included.
func (c *Counters) AddLinkRx(packets, bytes uint64) {
	c.rx.linkPackets.Add(packets)
	c.rx.linkBytes.Add(bytes)
}

// Stats reads all counters. Each number is exact; a batch that is being counted at this moment may
// be in some of them and not yet in others.
func (c *Counters) Stats() Stats {
	return Stats{
		VPNRxBytes: c.rx.vpnBytes.Load(), VPNRxPackets: c.rx.vpnPackets.Load(),
		VPNTxBytes: c.tx.vpnBytes.Load(), VPNTxPackets: c.tx.vpnPackets.Load(),
		LinkRxBytes: c.rx.linkBytes.Load(), LinkRxPackets: c.rx.linkPackets.Load(),
		LinkTxBytes: c.tx.linkBytes.Load(), LinkTxPackets: c.tx.linkPackets.Load(),
	}
}
