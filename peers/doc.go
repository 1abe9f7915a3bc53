// Package peers knows who is at the other end: the peers of a device, where they are, what they
// have sent and received, and how long they may stay silent.
//
// It owns Peer, the Table that finds one by peer id, VPN address or transport address, the traffic
// counters, the bindings to transport addresses, and Lifetimes, the schedule of keepalives and
// expiry. It is told the time and never asks for it.
//
// It must not know sockets, netlink or packets. What carries a peer's packets hangs on the peer as
// an opaque value.
//
// The packet path only reads here, without locks and without allocating: a lookup is one or two
// atomic loads, what a peer is bound to is an immutable snapshot, and counters are added once per
// batch. Everything that changes a table is rare and serialised by the table's mutex.
package peers
