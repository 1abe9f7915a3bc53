package exec

import (
	"ovpn-go/netlinksrv"
	"ovpn-go/tun/netns"
)

// server is netlinksrv.Server as this package uses it; the tests have one of their own.
type server interface {
	OpenGeneric(ns *netns.NS, deliver func(datagram []byte) error) (genericServer, error)
	Route(task netlinksrv.Task, ns *netns.NS, datagram []byte) netlinksrv.Verdict
	RewriteRoute(ns netns.ID, dumps *netlinksrv.LinkDumps, datagram []byte) []byte
}

// genericServer is netlinksrv.GenericSocket as this package uses it.
type genericServer interface {
	Bind(task netlinksrv.Task, port, groups uint32) error
	Port() uint32
	Groups() uint32
	SetOption(task netlinksrv.Task, level, name int, value []byte) error
	GetOption(level, name, size int) ([]byte, error)
	Send(task netlinksrv.Task, datagram []byte)
	Close()
}

// realServer is the real one. Only the type of its sockets differs.
type realServer struct {
	*netlinksrv.Server
}

func (s realServer) OpenGeneric(ns *netns.NS, deliver func([]byte) error) (genericServer, error) {
	g, err := s.Server.OpenGeneric(ns, deliver)
	if err != nil {
		return nil, err // not a nil pointer in an interface
	}
	return g, nil
}
