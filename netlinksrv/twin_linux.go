package netlinksrv

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"ovpn-go/tun/netns"
)

// twin is the real netlink socket behind a GenericSocket. The kernel queues what it has to say there, and the
// twin hands it on: within a send for answers, which the kernel has ready when its own send returns, and from the
// pump for multicast messages and for what the client's queue had no room for.
type twin struct {
	file *os.File
	raw  syscall.RawConn

	mu      sync.Mutex
	hand    func(datagram []byte) error // guarded by mu; an error means: not now
	waiting []byte                      // guarded by mu; received, not yet handed on
}

// openTwin makes a netlink socket inside ns that hands what it receives to hand.
func openTwin(ns *netns.NS, hand func([]byte) error) (*twin, error) {
	var fd int
	err := inNamespace(ns, func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_GENERIC)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	// The file owns the descriptor from here on. As that is non-blocking, the runtime polls it.
	t := &twin{file: os.NewFile(uintptr(fd), "netlink"), hand: hand}
	if t.raw, err = t.file.SyscallConn(); err != nil {
		t.file.Close()
		return nil, err
	}
	return t, nil
}

// close ends the pump as well.
func (t *twin) close() { t.file.Close() }

// control runs fn with the descriptor.
func (t *twin) control(fn func(fd int) error) error {
	var inner error
	if err := t.raw.Control(func(fd uintptr) { inner = fn(int(fd)) }); err != nil {
		return unix.EBADF
	}
	return inner
}

func (t *twin) bind(port, groups uint32) error {
	return t.control(func(fd int) error {
		return unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: port, Groups: groups})
	})
}

// name returns what getsockname reports.
func (t *twin) name() (port, groups uint32) {
	_ = t.control(func(fd int) error {
		sa, err := unix.Getsockname(fd)
		if nl, ok := sa.(*unix.SockaddrNetlink); ok {
			port, groups = nl.Pid, nl.Groups
		}
		return err
	})
	return port, groups
}

func (t *twin) setOption(level, name int, value []byte) error {
	return t.control(func(fd int) error {
		// A string, in x/sys, is the one form of value that is passed through as it is.
		return unix.SetsockoptString(fd, level, name, string(value))
	})
}

func (t *twin) getOption(level, name, size int) ([]byte, error) {
	value := make([]byte, size+1) // never empty, so that it has an address
	length := uint32(size)
	err := t.control(func(fd int) error {
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
			uintptr(unsafe.Pointer(&value[0])), uintptr(unsafe.Pointer(&length)), 0)
		if errno != 0 {
			return errno
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return value[:min(int(length), size)], nil
}

// interfaceExists asks whether the namespace of the socket has an interface of that index.
func (t *twin) interfaceExists(ifindex uint32) bool {
	return t.control(func(fd int) error {
		ifreq, err := unix.NewIfreq("any")
		if err != nil {
			return err
		}
		ifreq.SetUint32(ifindex)
		return unix.IoctlIfreq(fd, unix.SIOCGIFNAME, ifreq)
	}) == nil
}

// send passes a datagram to the kernel, with the calling thread's rights.
func (t *twin) send(datagram []byte) error {
	return t.control(func(fd int) error {
		return unix.Sendto(fd, datagram, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	})
}

// drain hands on all that is queued.
func (t *twin) drain() {
	_ = t.control(func(fd int) error {
		t.drainFrom(fd)
		return nil
	})
}

// pump hands on what arrives by itself, until the twin is closed.
func (t *twin) pump(closing <-chan struct{}) {
	const retryMin, retryMax = 2 * time.Millisecond, 100 * time.Millisecond
	_ = t.raw.Read(func(fd uintptr) bool {
		retry := retryMin
		for !t.drainFrom(int(fd)) {
			// The client does not read. Nothing says when it does, so look again, ever more rarely.
			select {
			case <-closing:
				return true
			case <-time.After(retry):
			}
			retry = min(2*retry, retryMax)
		}
		return false // wait until there is more
	})
}

// drainFrom returns false if something is left that the client has no room for.
func (t *twin) drainFrom(fd int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for {
		if t.waiting == nil {
			var ok bool
			if t.waiting, ok = receive(fd); !ok {
				return true
			}
		}
		if t.waiting != nil {
			if err := t.hand(t.waiting); err != nil {
				return false
			}
		}
		t.waiting = nil
	}
}

// receive takes one datagram that is queued. It returns nil for one that must not be passed on, and false if
// there is none.
func receive(fd int) ([]byte, bool) {
	for {
		// With no room at all the peek tells the length only. The kernel makes the later datagrams of a dump as
		// large as the largest buffer it has been shown, and ours must not be larger than the client's.
		n, _, err := unix.Recvfrom(fd, nil, unix.MSG_PEEK|unix.MSG_TRUNC|unix.MSG_DONTWAIT)
		if err == nil {
			datagram := make([]byte, n)
			var from unix.Sockaddr
			n, from, err = unix.Recvfrom(fd, datagram, unix.MSG_DONTWAIT)
			if err == nil {
				// Port 0 is the kernel. A privileged process can send here too, but not to the client.
				if nl, ok := from.(*unix.SockaddrNetlink); !ok || nl.Pid != 0 {
					return nil, true
				}
				return datagram[:n], true
			}
		}
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOBUFS):
			// ENOBUFS: messages were lost before they came here. It is reported once.
		default:
			return nil, false
		}
	}
}
