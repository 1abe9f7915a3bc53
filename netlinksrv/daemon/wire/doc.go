// Package wire is what a daemon (`ovpn-go serve`) and its clients say to each other: a socket, where it is found, and
// the messages on it.
//
// The socket is an AF_UNIX SEQPACKET one. A message is a JSON object in one packet of at most MaxMessage bytes, with
// descriptors beside it (SCM_RIGHTS). Fields that a reader does not know are passed over. The client asks, and the daemon
// answers every request with one Reply, in order; only after a "run" does it also speak of itself.
//
//	client  {"type":"hello"}
//	daemon  {"nonce":N}
//	client  {"type":"run" | "netlink" | ..., "nonce":N, ...}      once: what the connection is for
//	daemon  {} or {"error":"...","errno":N}
//
// The nonce has the request come after the daemon has looked at who the client is, and the request must come from the
// process that connected: so nobody can borrow the rights of a program that he executes meanwhile. Connections that are
// idle before their request are closed.
//
// # Requests
//
// "run" hands over a program that runs under a seccomp filter with a listener. Beside it are the listener and a pidfd of the
// program's guard, a child of the client; "window" is the range of descriptors that the filter compares with. From
// then on the daemon answers the program's notified calls until the client closes the connection. The daemon says
// {"type":"stop"} when it is about to end and wants the program to end first. When the daemon closes the
// connection, nobody answers any more, and the client must end the program.
//
// "netlink" asks for a netlink socket of "protocol" 16 (generic) or 0 (route) in the network namespace that is passed
// beside it. Beside the answer is one end of a pair of SEQPACKET sockets: each packet on it is a datagram of netlink, and the
// descriptors and processes that a message names are those of the process that sends it. A TCP connection that becomes a peer's
// transport socket is the daemon's alone from then on: beside the acknowledgement of that request, which must ask for one, is the socket that the
// client puts in its place. "port" in the answer is the socket's. It lives as long as the connection, on which "option" sets the option of level SOL_NETLINK "name" to
// "value", a number.
//
// "status" asks about peers of the interface "ifindex" in the network namespace that is passed beside it, and may be repeated on the
// connection without one. The answer has "peers", what the netlink family does not tell of them: the keys' age, and when they were
// last heard, in seconds. It describes those whose id is at least "from", in the order of ids, StatusPeers at most; who
// wants more asks again from the last one's id plus 1. It takes CAP_NET_ADMIN over the namespace.
//
// Who may do what is decided as in the kernel, message by message, by CAP_NET_ADMIN over the network namespace. The
// namespace of a "netlink" or "status" request must be the client's own, or the client must have that capability over it.
package wire
