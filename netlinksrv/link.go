package netlinksrv

import (
	"errors"

	"golang.org/x/sys/unix"

	"ovpn-go/datapath"
	"ovpn-go/netlinksrv/uapi"
	"ovpn-go/tun/netns"
)

func isLinkKind(kind string) bool { return kind == uapi.LinkKind || kind == uapi.DCOLinkKind }

// link is an interface of kind ovpn.
type link struct {
	dev    device
	kind   string
	queues queueCounts
}

func (l *link) looks() looks { return looks{l.dev.Mode(), l.kind, l.queues} }

// place is where an interface is: no two interfaces of a namespace ever have the same index, not even one after
// the other.
type place struct {
	ns      netns.ID
	ifindex uint32
}

func (l *link) place() place {
	ns, ifindex := l.dev.Place()
	return place{ns, uint32(ifindex)}
}

// tombstones remembers the last links that are gone, because the kernel's last message about a link may be read
// after it. It holds so many that a reader would have to be far behind to miss one.
type tombstones struct {
	places [256]place
	looks  [256]looks
	next   int
}

func (t *tombstones) add(at place, looks looks) {
	t.places[t.next], t.looks[t.next] = at, looks
	t.next = (t.next + 1) % len(t.places)
}

func (t *tombstones) find(at place) (looks, bool) {
	for i := range t.places {
		if t.places[i] == at && at.ifindex != 0 {
			return t.looks[i], true
		}
	}
	return looks{}, false
}

// createLink makes an interface and its device. The error keeps the kernel's errno.
func (s *Server) createLink(cfg datapath.Config, kind string, queues queueCounts) (*link, error) {
	cfg.Sockets = s.sockets
	cfg.Notify = s.notify
	cfg.Logger = s.log
	cfg.Fit, cfg.GSO, cfg.Workers = s.fit, s.gso, s.workers
	// Held while the interface comes into being, so that nobody can ask about it before it is known as ours.
	s.linkMu.Lock()
	defer s.linkMu.Unlock()
	if s.linksClosed {
		return nil, unix.ESHUTDOWN
	}
	dev, err := s.newDevice(cfg)
	if err != nil {
		return nil, err
	}
	l := &link{dev: dev, kind: kind, queues: queues}
	s.links = append(s.links, l)
	s.watches.Go(func() {
		<-dev.Done()
		s.forget(l)
	})
	return l, nil
}

// forget drops a link whose interface is gone.
func (s *Server) forget(l *link) {
	s.linkMu.Lock()
	defer s.linkMu.Unlock()
	for i := range s.links {
		if s.links[i] == l {
			s.links = append(s.links[:i:i], s.links[i+1:]...)
			s.gone.add(l.place(), l.looks())
			return
		}
	}
}

// linkAt returns the link with that index in a namespace, nil if it is not one of ours.
func (s *Server) linkAt(ns netns.ID, ifindex uint32) *link {
	s.linkMu.RLock()
	defer s.linkMu.RUnlock()
	at := place{ns, ifindex}
	for _, l := range s.links {
		if l.place() == at {
			return l
		}
	}
	return nil
}

// hasLinks reports whether any of our links is in a namespace.
func (s *Server) hasLinks(ns netns.ID) bool {
	s.linkMu.RLock()
	defer s.linkMu.RUnlock()
	for _, l := range s.links {
		if l.place().ns == ns {
			return true
		}
	}
	return false
}

// looksAt returns the looks of the link, present or past, with that index in a namespace.
func (s *Server) looksAt(ns netns.ID, ifindex uint32) (looks, bool) {
	if l := s.linkAt(ns, ifindex); l != nil {
		return l.looks(), true
	}
	s.linkMu.RLock()
	defer s.linkMu.RUnlock()
	return s.gone.find(place{ns, ifindex})
}

// configureLink applies what the kernel applies to a link that it creates. body is the RTM_NEWLINK request for
// it, without its header.
func configureLink(ns *netns.NS, body []byte) error {
	c, err := dialNetlink(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer c.close()
	_, err = c.ask(unix.RTM_NEWLINK, 0, body)
	return err
}

// indexExists reports whether a namespace has an interface of that index.
func indexExists(ns *netns.NS, index uint32) bool {
	c, err := dialNetlink(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return false
	}
	defer c.close()
	var b builder
	b.buf = append(b.buf, make([]byte, unix.SizeofIfInfomsg)...)
	nativeEndian.PutUint32(b.buf[4:], index)
	_, err = c.ask(unix.RTM_GETLINK, 0, b.buf)
	return err == nil
}

// findByName returns the index of the interface that has a name, or has it as an alternative one; 0 if there is
// none.
func findByName(ns *netns.NS, name string) (uint32, error) {
	c, err := dialNetlink(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return 0, err
	}
	defer c.close()
	var b builder
	b.buf = append(b.buf, make([]byte, unix.SizeofIfInfomsg)...)
	b.text(unix.IFLA_IFNAME, name)
	answers, err := c.ask(unix.RTM_GETLINK, 0, b.buf)
	if errors.Is(err, unix.ENODEV) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	for _, msg := range answers {
		if info, ok := parseLinkMessage(msg); ok {
			return info.index, nil
		}
	}
	return 0, nil
}
