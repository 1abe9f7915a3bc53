package netlinksrv

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"ovpn-go/datapath"
	"ovpn-go/tun/netns"
)

// Task is the thread that made a system call on a netlink socket: whose rights count, and whose descriptors
// and processes its messages name. A Task is used only until the call it was passed to returns.
type Task interface {
	// NetNS opens the thread's present network namespace, which the caller closes.
	NetNS() (*netns.NS, error)
	// MayAdmin returns nil if the thread has CAP_NET_ADMIN over the user namespace that owns ns, unix.EMFILE or unix.ENFILE if there is
	// no descriptor left to find that out with, and otherwise unix.EPERM.
	MayAdmin(ns *netns.NS) error
	// File returns a duplicate of one of the process's descriptors, which the caller closes. The error is
	// unix.EBADF if there is no such descriptor.
	File(fd int) (*os.File, error)
	// Replace puts a duplicate of file in place of the socket with that inode number, wherever the client's
	// processes have it, with the same close-on-exec flags and the same epoll registrations. Unlike the other
	// methods it may be called as long as the client runs. The error is unix.EBADF if nobody has that socket, and unix.EOPNOTSUPP
	// if it is too late, as for a client that replaces its descriptor itself when it has the answer to its request.
	Replace(inode uint64, file *os.File) error
	// PID returns the process's id in our own pid namespace.
	PID() int
	// Waits reports whether the thread still waits for what comes of its call, or, if it does not wait for that, whether its
	// process has not ended.
	Waits() bool
}

// Config configures a Server. Its zero value works.
type Config struct {
	// Logger receives what happens to links, and at debug level every message of the family; nil discards it.
	Logger *slog.Logger
	// Sockets are the transport sockets that devices share, which stay the caller's; nil makes the server own
	// a set of its own.
	Sockets *datapath.Sockets
	// Fit is what the devices do about packets that are too long for the path.
	Fit datapath.Fit
	// Workers is how many workers each device has, 0 to datapath.MaxWorkers; see datapath.Config.
	Workers int
	// GSO says whether the kernel cuts the devices' batches of datagrams.
	GSO datapath.GSO
}

// Server is the control plane: the links of kind ovpn, the generic netlink family and the sockets that talk to
// it. Its methods may be called concurrently.
type Server struct {
	log        *slog.Logger
	sockets    *datapath.Sockets
	ownSockets bool
	fit        datapath.Fit
	workers    int
	gso        datapath.GSO
	home       *netns.NS // of the program itself
	ids        [familyCount]familyIDs

	// Seams for tests, whose devices have no interface in the kernel.
	newDevice     func(datapath.Config) (device, error)
	linkExists    func(g *GenericSocket, ifindex uint32) bool
	configureLink func(ns *netns.NS, body []byte) error

	linkMu      sync.RWMutex
	links       []*link        // guarded by linkMu
	gone        tombstones     // guarded by linkMu
	linksClosed bool           // guarded by linkMu
	watches     sync.WaitGroup // one per link

	// mu is apart from linkMu because devices announce what happens while links are made.
	mu      sync.RWMutex
	clients map[*GenericSocket]struct{} // guarded by mu
	closed  bool                        // guarded by mu
}

// New starts a server without links. The calling thread's network namespace counts as the program's own.
func New(cfg Config) (*Server, error) {
	s := &Server{
		log:           cfg.Logger,
		sockets:       cfg.Sockets,
		fit:           cfg.Fit,
		workers:       cfg.Workers,
		gso:           cfg.GSO,
		newDevice:     openDevice,
		linkExists:    (*GenericSocket).interfaceExists,
		configureLink: configureLink,
		clients:       map[*GenericSocket]struct{}{},
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	var err error
	// Not /proc/self/ns/net: that is the first thread's, which the runtime parks where a locked goroutine left it.
	if s.home, err = netns.Current(); err != nil {
		return nil, err
	}
	if s.ids, err = chooseFamilyIDs(s.home); err != nil {
		s.home.Close()
		return nil, fmt.Errorf("choose family id: %w", err)
	}
	if s.sockets == nil {
		s.ownSockets = true
		if s.sockets, err = datapath.NewSockets(s.log); err != nil {
			s.home.Close()
			return nil, fmt.Errorf("watch transport sockets: %w", err)
		}
	}
	return s, nil
}

// Close deletes all links, which announces the teardown of every peer to the sockets that listen, and then
// closes the sockets. It returns when everything is released.
func (s *Server) Close() error {
	s.linkMu.Lock()
	if s.linksClosed {
		s.linkMu.Unlock()
		return nil
	}
	s.linksClosed = true
	links := append([]*link(nil), s.links...)
	s.linkMu.Unlock()
	var errs []error
	for _, l := range links {
		errs = append(errs, l.dev.Close())
	}
	s.watches.Wait()

	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	for _, g := range s.genericSockets() {
		g.Close()
	}
	if s.ownSockets {
		s.sockets.Close()
	}
	errs = append(errs, s.home.Close())
	return errors.Join(errs...)
}

// genericSockets returns the open sockets.
func (s *Server) genericSockets() []*GenericSocket {
	s.mu.RLock()
	defer s.mu.RUnlock()
	open := make([]*GenericSocket, 0, len(s.clients))
	for g := range s.clients {
		open = append(open, g)
	}
	return open
}
