package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/tun/netns"
)

// What the route mirror and the socket watch need of netlink: a dump, and a listener that hands over
// everything that is queued at once, so that a burst costs one update.

// nlReceiveLen holds the longest datagram the kernel sends: dumps fill up to 32 KiB.
const nlReceiveLen = 64 << 10

// nlMessage is one netlink message without its header. payload is valid during the callback only.
type nlMessage struct {
	typ, flags uint16
	payload    []byte
}

// eachMessage calls fn for every whole message in a datagram. It stops at one whose length is wrong.
func eachMessage(datagram []byte, fn func(nlMessage)) {
	for len(datagram) >= unix.NLMSG_HDRLEN {
		size := int(binary.NativeEndian.Uint32(datagram))
		if size < unix.NLMSG_HDRLEN || size > len(datagram) {
			return
		}
		fn(nlMessage{
			typ:     binary.NativeEndian.Uint16(datagram[4:]),
			flags:   binary.NativeEndian.Uint16(datagram[6:]),
			payload: datagram[unix.NLMSG_HDRLEN:size],
		})
		datagram = datagram[min(nlAlign(size), len(datagram)):]
	}
}

// eachAttribute calls fn for every whole attribute. It stops at one whose length is wrong.
func eachAttribute(attrs []byte, fn func(typ uint16, value []byte)) {
	for len(attrs) >= unix.SizeofNlAttr {
		size := int(binary.NativeEndian.Uint16(attrs))
		if size < unix.SizeofNlAttr || size > len(attrs) {
			return
		}
		typ := binary.NativeEndian.Uint16(attrs[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
		fn(typ, attrs[unix.SizeofNlAttr:size])
		attrs = attrs[min(nlAlign(size), len(attrs)):]
	}
}

// nlAlign is NLMSG_ALIGN, NLA_ALIGN and RTNH_ALIGN.
func nlAlign(n int) int { return (n + 3) &^ 3 }

// openNetlink opens a socket of the given netlink protocol inside ns.
func openNetlink(ns *netns.NS, protocol, flags int) (fd int, err error) {
	err = ns.Do(func() error {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|flags, protocol)
		return err
	})
	if err != nil {
		return -1, fmt.Errorf("open netlink socket: %w", err)
	}
	return fd, nil
}

// errInterrupted: what is dumped changed meanwhile (NLM_F_DUMP_INTR), so that the dump may lack something.
var errInterrupted = errors.New("netlink dump was interrupted")

// dumpNetlink asks the kernel in ns for a dump and calls fn with each message of it.
func dumpNetlink(ns *netns.NS, protocol int, typ uint16, body []byte, fn func(nlMessage)) error {
	// Blocking: the kernel answers within the send and within each receive.
	fd, err := openNetlink(ns, protocol, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req := make([]byte, unix.NLMSG_HDRLEN, unix.NLMSG_HDRLEN+len(body))
	binary.NativeEndian.PutUint32(req, uint32(cap(req)))
	binary.NativeEndian.PutUint16(req[4:], typ)
	binary.NativeEndian.PutUint16(req[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	if err := unix.Sendto(fd, append(req, body...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send netlink request: %w", err)
	}
	buf := make([]byte, nlReceiveLen)
	var end error
	for done := false; !done; {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("receive netlink dump: %w", err)
		}
		eachMessage(buf[:n], func(m nlMessage) {
			if m.flags&unix.NLM_F_DUMP_INTR != 0 {
				end = errInterrupted
			}
			switch m.typ {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				done = true
				if len(m.payload) >= 4 {
					if code := int32(binary.NativeEndian.Uint32(m.payload)); code < 0 {
						end = fmt.Errorf("netlink dump: %w", unix.Errno(-code))
					}
				}
			case unix.NLMSG_NOOP:
			default:
				fn(m)
			}
		})
	}
	return end
}

// nlListener receives what the kernel sends to multicast groups.
type nlListener struct {
	file    *os.File
	raw     syscall.RawConn
	buf     []byte
	overrun bool // something was not received, and the queue has not been empty since
	closed  atomic.Bool
}

// listenNetlink joins groups inside ns.
func listenNetlink(ns *netns.NS, protocol int, groups ...int) (*nlListener, error) {
	fd, err := openNetlink(ns, protocol, unix.SOCK_NONBLOCK)
	if err != nil {
		return nil, err
	}
	// From here on the file owns the descriptor; it is non-blocking, so the runtime polls it.
	l := &nlListener{file: os.NewFile(uintptr(fd), "netlink"), buf: make([]byte, nlReceiveLen)}
	for _, o := range []int{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, o, 4<<20) == nil {
			break
		}
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		l.close()
		return nil, fmt.Errorf("bind netlink socket: %w", err)
	}
	for _, g := range groups {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g); err != nil {
			l.close()
			return nil, fmt.Errorf("join netlink group %d: %w", g, err)
		}
	}
	if l.raw, err = l.file.SyscallConn(); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

// close ends a receive that is under way.
func (l *nlListener) close() {
	l.closed.Store(true)
	l.file.Close()
}

// receive waits for messages and calls fn with all that are queued, for no longer than limit. lost reports that others
// did not get here, once the queue is empty: while it overflows the kernel goes on dropping messages and doesn't say so
// again. The error is final, unless it is os.ErrDeadlineExceeded; after close it is os.ErrClosed. One goroutine at
// a time may receive.
func (l *nlListener) receive(limit time.Duration, fn func(nlMessage)) (lost bool, err error) {
	err = l.raw.Read(func(fd uintptr) bool {
		start := time.Now()
		for got := false; ; got = true {
			n, from, err := unix.Recvfrom(int(fd), l.buf, unix.MSG_DONTWAIT)
			switch {
			case errors.Is(err, unix.EAGAIN):
				lost, l.overrun = l.overrun, false
				return got || lost
			case errors.Is(err, unix.EINTR):
				continue
			case err != nil:
				// ENOBUFS when the queue overflowed; and whatever kept the kernel from making a message (netlink_set_err).
				l.overrun = true
			default:
				// Port 0 is the kernel; nobody else is believed.
				if sa, ok := from.(*unix.SockaddrNetlink); ok && sa.Pid == 0 {
					eachMessage(l.buf[:n], fn)
				}
			}
			if time.Since(start) > limit {
				return true
			}
		}
	})
	if err != nil && l.closed.Load() {
		// RawConn gives an error of its own, that nothing exported compares equal to.
		return lost, os.ErrClosed
	}
	return lost, err
}
