package exec

import (
	"ovpn-go/tun/netns"
)

// server is what this package needs of netlinksrv.Server.
type server interface {
	// openGeneric makes a generic netlink socket in ns. deliver gets every datagram for the client,
	// from any goroutine.
	openGeneric(ns *netns.NS, deliver func(datagram []byte) error) (genericServer, error)
	// route looks at a datagram that a client sends on a route socket in ns.
	route(t *task, ns *netns.NS, datagram []byte) verdict
	// rewriteRoute returns a datagram of the kernel's as the client should see it.
	rewriteRoute(ns netns.ID, datagram []byte) []byte
}

// genericServer is what this package needs of netlinksrv.GenericSocket. Errors hold an errno.
type genericServer interface {
	bind(t *task, port, groups uint32) error
	port() uint32
	groups() uint32
	setOption(t *task, level, name int, value []byte) error
	getOption(level, name, size int) ([]byte, error)
	send(t *task, datagram []byte)
	close()
}

// verdict is netlinksrv.Verdict.
type verdict int

const (
	routeNative      verdict = iota // the kernel handles it
	routeAcknowledge                // done; the kernel must acknowledge it
	routeRelay                      // the answers must be rewritten
)
