// Package datapath is the device: it moves packets between a TUN interface and the transport sockets
// of its peers, the way the kernel's ovpn device does.
//
// The life of a packet that leaves through the tunnel (transmit.go):
//
//  1. The worker reads a super-frame from the TUN queue into its own buffer.
//  2. The frame's destination chooses the peer: the sole one in P2P mode, the one that owns the
//     route's next hop in MP mode (routes_linux.go).
//  3. A block of packet ids is reserved, one per inner packet, with one atomic add.
//  4. Each inner packet is sealed from the frame straight into the worker's batch: one contiguous
//     buffer of equal-sized datagrams to one peer.
//  5. A batch that is full, or whose successor differs in size or peer, leaves in one UDP GSO send
//     (udp_linux.go). When the queue is dry, what is left is sent: nothing waits.
//
// And of one that arrives (receive.go):
//
//  1. The worker reads a vector of UDP GRO buffers, each datagrams of one sender at a constant stride.
//  2. Peer by id, key by key id, and the packet is opened straight into the coalescer's next
//     super-frame.
//  3. Replay check, then float (float.go), then the inner source is checked against the routes.
//  4. The coalescer merges the packet into the flow in hand, or writes that and starts anew.
//
// One goroutine per device, the worker, does all of it and owns all of those buffers; it never blocks
// but in epoll_wait. Control operations that touch what the worker uses are run by the worker between
// two turns (Device.do). Nothing here knows what a netlink message is.
package datapath
