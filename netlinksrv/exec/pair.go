package exec

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"ovpn-go/tun/netns"
)

// pair is our end of an AF_UNIX SEQPACKET pair, whose other end the client takes for a netlink
// socket. What we send is queued at the client's end, so that receiving, peeking, polling and
// waiting need nothing of us; we keep no copy of that end, unless we must (kept.go), so that its end of file
// tells us that the client closed its last descriptor.
type pair struct {
	file *os.File
	conn syscall.RawConn
}

// pairBuffer is how much of the client's unread datagrams the socket holds where we may choose.
// A kernel makes a dump as the client reads it and never makes it wait. We make it beforehand, so
// there should be room for it: this much is 100,000 peers. The tests make it smaller.
var pairBuffer = 32 << 20

// errOverrun says that there is no room, as the client does not read what is sent to it.
var errOverrun = fmt.Errorf("client does not read: %w", unix.ENOBUFS)

// newPair makes a pair of sockets in ns and returns our end and the client's with its cookie. The
// client's descriptor is the caller's to close.
func newPair(ns *netns.NS, nonblock bool) (p *pair, client int, cookie uint64, err error) {
	var fds [2]int
	err = ns.Do(func() error {
		fds, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return os.NewSyscallError("socketpair", err)
		}
		return nil
	})
	if err != nil {
		return nil, -1, 0, err
	}
	defer func() {
		if err != nil {
			unix.Close(fds[0])
			unix.Close(fds[1])
		}
	}()
	if err := bindAsKernel(fds[0]); err != nil {
		return nil, -1, 0, err
	}
	// Datagrams that reach us without a notification, by way of a duplicate, carry their sender.
	if err := unix.SetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_PASSCRED, 1); err != nil {
		return nil, -1, 0, os.NewSyscallError("setsockopt SO_PASSCRED", err)
	}
	if unix.SetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, pairBuffer) != nil {
		unix.SetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_SNDBUF, pairBuffer)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, -1, 0, os.NewSyscallError("fcntl", err)
	}
	if err := unix.SetNonblock(fds[1], nonblock); err != nil {
		return nil, -1, 0, os.NewSyscallError("fcntl", err)
	}
	cookie, err = unix.GetsockoptUint64(fds[1], unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return nil, -1, 0, os.NewSyscallError("getsockopt SO_COOKIE", err)
	}
	file := os.NewFile(uintptr(fds[0]), "netlink pair")
	conn, err := file.SyscallConn()
	if err != nil {
		return nil, -1, 0, err
	}
	return &pair{file, conn}, fds[1], cookie, nil
}

// kernelNames counts the names given out. It starts anywhere, as other supervisors may use the
// same network namespace.
var kernelNames atomic.Uint32

func init() { kernelNames.Store(rand.Uint32()) }

// bindAsKernel gives a UNIX socket a name that reads as the kernel's struct sockaddr_nl: 12 bytes
// in all, nl_pid 0. The padding's first zero makes the name abstract. Names must differ within a
// network namespace, so nl_groups, which nobody looks at, counts. Only the family field betrays
// it; libraries check the length and nl_pid (libnl, libmnl, iproute2).
func bindAsKernel(fd int) error {
	for {
		var name [10]byte // nl_pad, nl_pid, nl_groups
		binary.NativeEndian.PutUint32(name[6:], kernelNames.Add(1))
		// "@" stands for the leading zero of an abstract name.
		err := unix.Bind(fd, &unix.SockaddrUnix{Name: "@" + string(name[1:])})
		if err == nil {
			return nil
		}
		if err != unix.EADDRINUSE {
			return os.NewSyscallError("bind", err)
		}
	}
}

// deliver queues a datagram for the client and never blocks. errOverrun, or os.ErrClosed once the
// client has closed its end or we ours.
func (p *pair) deliver(datagram []byte) error { return p.deliverWith(datagram, nil) }

// deliverWith is deliver with control data.
func (p *pair) deliverWith(datagram, control []byte) error {
	var inner error
	err := p.conn.Control(func(fd uintptr) {
		_, inner = ignoringEINTR(func() (int, error) {
			return unix.SendmsgN(int(fd), datagram, control, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		})
	})
	switch {
	case err != nil:
		return os.ErrClosed
	case inner == unix.EPIPE, inner == unix.ECONNRESET:
		return os.ErrClosed
	case inner == unix.EAGAIN, inner == unix.ENOBUFS:
		return errOverrun
	}
	return inner
}

// whenWritable calls fn, and again whenever the client has made room, until fn returns true or
// the pair is closed.
func (p *pair) whenWritable(fn func() bool) {
	p.conn.Write(func(uintptr) bool { return fn() })
}

// unread says whether the client has datagrams to read.
func (p *pair) unread() bool {
	queued := 0
	err := p.conn.Control(func(fd uintptr) { queued, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
	return err == nil && queued > 0
}

// grow makes room for what the client asked for with SO_RCVBUF, where it exceeds ours.
func (p *pair) grow(size int) {
	p.conn.Control(func(fd uintptr) {
		have, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF)
		if err == nil && have < size {
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, size)
		}
	})
}

// receive waits for a datagram that the client sent without our being notified, through a
// duplicate below the window, and returns it with its sender. io.EOF's equivalent here is
// os.ErrClosed: nobody has the client's end any more, or we have closed ours.
func (p *pair) receive() (datagram []byte, from sender, err error) {
	var inner error
	oob := make([]byte, unix.CmsgSpace(unix.SizeofUcred))
	err = p.conn.Read(func(conn uintptr) bool {
		fd := int(conn)
		var size int
		size, inner = ignoringEINTR(func() (int, error) {
			n, _, err := unix.Recvfrom(fd, nil, unix.MSG_PEEK|unix.MSG_TRUNC|unix.MSG_DONTWAIT)
			return n, err
		})
		if inner == unix.EAGAIN {
			return false
		}
		if inner != nil {
			return true
		}
		if size == 0 {
			switch events := eventsOf(fd); {
			case events&unix.POLLHUP != 0:
				inner = os.ErrClosed
				return true
			case events&unix.POLLRDHUP != 0:
				return false // shut down for sending; the end of file comes later
			}
		}
		datagram = make([]byte, size)
		var oobn int
		_, inner = ignoringEINTR(func() (n int, err error) {
			n, oobn, _, _, err = unix.Recvmsg(fd, datagram, oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
			return n, err
		})
		oob = oob[:oobn]
		return inner != unix.EAGAIN
	})
	if err != nil {
		return nil, sender{}, os.ErrClosed
	}
	if inner != nil {
		if errors.Is(inner, unix.ECONNRESET) {
			inner = os.ErrClosed // the client closed with our datagrams unread
		}
		return nil, sender{}, inner
	}
	return datagram, senderOf(oob), nil
}

// hungUp says whether nobody has the client's end any more.
func (p *pair) hungUp() bool {
	var events int16
	err := p.conn.Control(func(fd uintptr) { events = eventsOf(int(fd)) })
	return err != nil || events&unix.POLLHUP != 0
}

// eventsOf returns what poll says of a descriptor right now.
func eventsOf(fd int) int16 {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN | unix.POLLRDHUP}}
	if _, err := unix.Poll(fds, 0); err != nil {
		return 0
	}
	return fds[0].Revents
}

// sender is who sent a datagram: its process and its real user id, in our namespaces.
type sender struct {
	pid int
	uid uint32
}

// senderOf returns what a control buffer's SCM_CREDENTIALS say.
func senderOf(oob []byte) sender {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return sender{}
	}
	var from sender
	for _, m := range messages {
		if cred, err := unix.ParseUnixCredentials(&m); err == nil {
			from = sender{int(cred.Pid), cred.Uid}
		}
		if fds, err := unix.ParseUnixRights(&m); err == nil {
			for _, fd := range fds {
				unix.Close(fd)
			}
		}
	}
	return from
}

// close releases our end; the client then sees an end of file. It may be called more than once.
func (p *pair) close() { p.file.Close() }
