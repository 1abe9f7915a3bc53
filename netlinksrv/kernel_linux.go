package netlinksrv

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"ovpn-go/tun/netns"
)

// kernelConn is a netlink socket of our own in some namespace. It is for one goroutine.
type kernelConn struct {
	fd  int
	seq uint32
}

// dialNetlink opens a socket for the given protocol (unix.NETLINK_ROUTE or NETLINK_GENERIC).
func dialNetlink(ns *netns.NS, protocol int) (*kernelConn, error) {
	c := &kernelConn{}
	err := inNamespace(ns, func() (err error) {
		// Blocking: the kernel answers within the send and within each receive. The timeout is for a kernel
		// that does not.
		c.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	if err := unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		c.close()
		return nil, fmt.Errorf("limit wait on netlink socket: %w", err)
	}
	return c, nil
}

func (c *kernelConn) close() { unix.Close(c.fd) }

// ask sends a request of the given type and returns the messages that answer it. The error holds the kernel's
// errno.
func (c *kernelConn) ask(kind, flags uint16, body []byte) ([][]byte, error) {
	c.seq++
	var b builder
	start := b.message(header{kind: kind, flags: flags | unix.NLM_F_REQUEST | unix.NLM_F_ACK, seq: c.seq})
	b.buf = append(b.buf, body...)
	b.endMessage(start)
	if err := unix.Sendto(c.fd, b.buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("send netlink request: %w", err)
	}
	var answers [][]byte
	buf := make([]byte, 64<<10) // dumps fill up to 32 KiB
	for {
		n, _, err := unix.Recvfrom(c.fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("receive netlink answer: %w", err)
		}
		for rest := buf[:n]; ; {
			msg, after, ok := cutMessage(rest)
			if !ok {
				break
			}
			rest = after
			h := parseHeader(msg)
			if h.seq != c.seq {
				continue
			}
			if h.kind != unix.NLMSG_ERROR && h.kind != unix.NLMSG_DONE {
				answers = append(answers, append([]byte(nil), msg...))
				continue
			}
			if len(msg) >= headerSize+errorCodeSize {
				if code := int32(nativeEndian.Uint32(msg[headerSize:])); code < 0 {
					return nil, unix.Errno(-code)
				}
			}
			return answers, nil
		}
	}
}

// Attributes of RTM_NEWNSID and RTM_GETNSID (include/uapi/linux/net_namespace.h).
const (
	nsidAttrID = 1 // NETNSA_NSID
	nsidAttrFD = 3 // NETNSA_FD

	nsidUnknown = -1 // NETNSA_NSID_NOT_ASSIGNED
)

// namespaceIDs tells under which numbers one namespace knows others (ip netns list-id).
type namespaceIDs struct {
	from  *netns.NS
	known map[netns.ID]int32
}

func newNamespaceIDs(from *netns.NS) *namespaceIDs {
	return &namespaceIDs{from: from, known: map[netns.ID]int32{}}
}

// of returns the number of ns, which is given one if it has none, or -1 if that is impossible. Each namespace is
// asked about once.
func (ids *namespaceIDs) of(ns *netns.NS) int32 {
	id, ok := ids.known[ns.ID()]
	if !ok {
		var err error
		if id, err = lookUpNSID(ids.from, ns); err != nil {
			id = nsidUnknown
		}
		ids.known[ns.ID()] = id
	}
	return id
}

func lookUpNSID(from, of *netns.NS) (id int32, err error) {
	c, err := dialNetlink(from, unix.NETLINK_ROUTE)
	if err != nil {
		return nsidUnknown, err
	}
	defer c.close()
	err = netns.Control(of.File(), func(fd int) error {
		if id, err = c.nsid(fd); err != nil || id != nsidUnknown {
			return err
		}
		var b builder
		b.buf = append(b.buf, unix.AF_UNSPEC, 0, 0, 0) // struct rtgenmsg, padded
		unassigned := int32(nsidUnknown)
		b.u32(nsidAttrID, uint32(unassigned)) // any number
		b.u32(nsidAttrFD, uint32(fd))
		// EEXIST: somebody else was faster.
		if _, err := c.ask(unix.RTM_NEWNSID, 0, b.buf); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
		id, err = c.nsid(fd)
		return err
	})
	return id, err
}

// nsid asks for the number of the namespace behind a descriptor of ours.
func (c *kernelConn) nsid(fd int) (int32, error) {
	var b builder
	b.buf = append(b.buf, unix.AF_UNSPEC, 0, 0, 0)
	b.u32(nsidAttrFD, uint32(fd))
	answers, err := c.ask(unix.RTM_GETNSID, 0, b.buf)
	if err != nil {
		return nsidUnknown, err
	}
	for _, msg := range answers {
		r := attributeReader{rest: msg[min(headerSize+4, len(msg)):], offset: headerSize + 4}
		for a, ok := r.next(); ok; a, ok = r.next() {
			if a.number() == nsidAttrID && len(a.payload) == 4 {
				return int32(a.u32()), nil
			}
		}
	}
	return nsidUnknown, nil
}
