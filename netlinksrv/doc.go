// Package netlinksrv answers the generic netlink family "ovpn" and the rtnetlink link kind "ovpn" as the
// Linux kernel module does, message for message and errno for errno.
//
// The package works on netlink sockets that are objects of its own. A door (package exec, for one) makes a
// GenericSocket for every NETLINK_GENERIC socket of a client, hands it the client's datagrams together with
// the Task that sent them, and gets the answers through a callback. What a NETLINK_ROUTE socket sends is shown
// to Server.Route, which says what the door should do with it. How datagrams and descriptors travel between a
// client and the program is the door's matter; how packets are sealed is package datapath's.
//
// What belongs to other families goes to the real kernel and back, through a socket of ours in the client's
// network namespace that has the client's port id and no more rights than the client.
//
// The family is data: family.go has one row per operation and one set of attribute policies per request, and
// policy.go has the one validator that walks them. peer_rules.go and key_ops.go have the order in which the
// handlers check what a policy can't express. Names such as V2, N7 or P10 in comments and tests number those
// checks; they are this package's own.
//
// One difference from the kernel is deliberate: an operation needs CAP_NET_ADMIN over the user namespace that
// owns the netlink socket's network namespace, where the kernel wants it in the initial user namespace.
//
// With the logger at debug level, every message of the family is logged in words, without key material.
package netlinksrv
