package datapath

import "sync/atomic"

// DropReason says why a packet went no further. Drops are not errors: they are counted, never logged
// one by one.
type DropReason uint8

const (
	// Transmit.
	DropMalformedFrame DropReason = iota // from the stack: no IP packet, or inconsistent offload data
	DropNoPeer                           // no peer for the destination's next hop
	DropNoKey                            // the peer's primary slot is empty
	DropExhausted                        // the primary key has no packet ids left
	DropTooLong                          // longer than a datagram can carry
	DropNoTransport                      // no binding, or a remote of a family the socket can't reach
	DropStanding                         // one packet of a TCP stream, as the interface's queue does not run dry
	DropSend                             // the kernel refused it (netfilter), or the connection is busy
	// Receive.
	DropRunt           // shorter than its header
	DropOpcode         // DATA_V1, which the module does not carry either
	DropUnknownPeer    // no peer of that id or address
	DropUnknownKey     // no key of that key id
	DropAuthentication // AEAD open refused it
	DropReplay         // packet id seen before, or too old
	DropInner          // plaintext that is no IP packet
	DropReversePath    // inner source does not belong to the peer
	DropClient         // a control packet that could not be given to the client
	DropLink           // the interface is down or its queue full
	numDropReasons
)

// String returns the reason as a metric label.
func (r DropReason) String() string {
	return [numDropReasons]string{
		"malformed-frame", "no-peer", "no-key", "exhausted", "too-long", "no-transport", "standing", "send",
		"runt", "opcode", "unknown-peer", "unknown-key", "authentication", "replay", "inner",
		"reverse-path", "client", "link",
	}[r]
}

// DeviceStats are the counters of a device since its creation.
type DeviceStats struct {
	RxPackets, RxBytes uint64 // delivered to the interface; bytes of inner packets
	TxPackets, TxBytes uint64 // taken by the kernel for peers, keepalives included; bytes of DATA_V2 packets
	// Drops counts dropped packets by reason. Reasons that never occurred are absent.
	Drops map[string]uint64
	// How packets were batched: packets divided by calls is the first number to look at when
	// throughput is low.
	TunReads, TunWrites, Sends, Receives uint64
	// Hints counts the ICMP messages to senders whose packets don't fit the path in one piece (Fit.Silent).
	Hints uint64
}

// workerCounters are a worker's share of its device's. They are written by the worker and read by anyone.
type workerCounters struct {
	rxPackets, rxBytes, txPackets, txBytes atomic.Uint64
	tunReads, tunWrites, sends, receives   atomic.Uint64
	hints                                  atomic.Uint64
	drops                                  [numDropReasons]atomic.Uint64
}

func (c *workerCounters) drop(reason DropReason, packets int) {
	c.drops[reason].Add(uint64(packets))
}

// addTo adds what was counted to s.
func (c *workerCounters) addTo(s *DeviceStats) {
	s.RxPackets += c.rxPackets.Load()
	s.RxBytes += c.rxBytes.Load()
	s.TxPackets += c.txPackets.Load()
	s.TxBytes += c.txBytes.Load()
	s.TunReads += c.tunReads.Load()
	s.TunWrites += c.tunWrites.Load()
	s.Sends += c.sends.Load()
	s.Receives += c.receives.Load()
	s.Hints += c.hints.Load()
	for r := range c.drops {
		if n := c.drops[r].Load(); n > 0 {
			s.Drops[DropReason(r).String()] += n
		}
	}
}
