// Package exec runs an unmodified program so that its netlink sockets reach our server.
//
// The program (the client, with every process it starts) runs under a seccomp filter with a
// user-notification listener. Creating a netlink socket of the generic or the route family is
// notified, and so is sending on the descriptors that we answer with: they lie in a window of high
// numbers that the filter can compare. Of other sockets only the rare calls that name them and set
// their options are notified, as one may stand for a connection that we have taken over
// (connection.go) or is about to take a port (bind). Nothing that moves data is.
//
// # Processes
//
//	supervisor   the process that called Run: server, listener, answers
//	  └─ guard   our own binary again: installs the filter, starts the client, reaps, sweeps
//	       └─ client and all its descendants
//
// Supervisor and guard are child subreapers joined by a socketpair. When either disappears the
// other kills everything that is left, so that no client outlives its netlink server.
//
// A signal that reaches only the supervisor is passed on; what reaches the whole process group, such
// as a terminal's Ctrl-C, the client has got already (signals.go).
//
// # Sockets
//
// A generic netlink socket is one end of an AF_UNIX pair whose other end bears a name that reads
// as the kernel's sockaddr_nl. Receiving, polling, dup, fork and passing it on are then the
// kernel's own; only naming, options and sends are answered here (generic.go).
//
// A route socket is a real one. Only what is sent on it is read, to find the few messages about
// links of kind "ovpn" (route.go). One whose answers must mention our links is replaced by a pair
// in front of the real socket (relay.go).
//
// A TCP connection that becomes a device's is replaced by one end of a pair in every process that
// has it (everywhere.go, inject.go).
//
// # Where clients can't be looked into
//
// The default seccomp profiles of containers forbid taking a descriptor from another process, and harder ones copying
// its memory and tracing it. What is forbidden is tried on the guard, before it installs the filter (reach.go). Then the filter
// also notifies of the making of TCP and UDP sockets and epoll sets, of accepting and closing: they are made here, and a duplicate of each
// is kept (kept.go, transport.go). Memory is read as a file. Without ptrace, other processes' descriptors of a replaced connection stay.
//
// # Limits
//
// Linux 5.9 or later (SECCOMP_IOCTL_NOTIF_ADDFD); 5.19 for clients whose threads are hit by many
// signals (SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV). The client can't install a notification
// listener of its own. Requests through io_uring and from programs of another architecture pass
// by, and so do those on a duplicate of a route socket below the window. A route socket that wants to
// know the group or the namespace of each message sees our links as the TUN interfaces they are
// (membership.go). It is a compatibility layer, not a sandbox: a client that wants to escape it can.
package exec
