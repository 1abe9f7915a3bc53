package bench

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The senders and receivers of single packets use bare blocking sockets on threads of their own: the
// runtime's poller would add its wake-ups to every packet, and to every round trip.

const (
	// udpBuffer is the size in bytes asked for a UDP socket's buffers.
	udpBuffer = 16 << 20
	// pollInterval is how long a receiver is blocked before it looks whether it is to end, or gives up an answer.
	pollInterval = 200 * time.Millisecond
	// ipUDPHeaders is what IPv4 and UDP put before the payload, in bytes.
	ipUDPHeaders = 20 + 8
)

// openUDP4 binds an IPv4 UDP socket to a free port of the address, in the node's namespace.
func openUDP4(node *Node, addr netip.Addr) (fd int, bound netip.AddrPort, err error) {
	err = node.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return -1, bound, fmt.Errorf("open UDP socket: %w", err)
	}
	timeout := unix.NsecToTimeval(int64(pollInterval))
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, udpBuffer),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout),
		unix.Bind(fd, &unix.SockaddrInet4{Addr: addr.As4()}))
	if err == nil {
		var name unix.Sockaddr
		if name, err = unix.Getsockname(fd); err == nil {
			in := name.(*unix.SockaddrInet4)
			bound = netip.AddrPortFrom(netip.AddrFrom4(in.Addr), uint16(in.Port))
		}
	}
	if err != nil {
		unix.Close(fd)
		return -1, bound, fmt.Errorf("bind UDP socket to %v: %w", addr, err)
	}
	return fd, bound, nil
}

func connectUDP4(fd int, to netip.AddrPort) error {
	err := unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
	if err != nil {
		return fmt.Errorf("connect UDP socket to %v: %w", to, err)
	}
	return nil
}

// A mmsghdr is the kernel's structure for one message of sendmmsg and recvmmsg.
type mmsghdr struct {
	header unix.Msghdr
	length uint32
	_      [4]byte
}

func sendmmsg(fd int, messages []mmsghdr) (int, error) {
	return mmsg(unix.SYS_SENDMMSG, fd, messages, 0)
}

// recvmmsg waits for the first message only.
func recvmmsg(fd int, messages []mmsghdr) (int, error) {
	return mmsg(unix.SYS_RECVMMSG, fd, messages, unix.MSG_WAITFORONE)
}

func mmsg(call uintptr, fd int, messages []mmsghdr, flags int) (int, error) {
	n, _, errno := unix.Syscall6(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(messages))),
		uintptr(len(messages)), uintptr(flags), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// newMessages returns n messages that share one buffer of size bytes, if they are sent, or have one each.
func newMessages(n, size int, shared bool) []mmsghdr {
	messages := make([]mmsghdr, n)
	var buf []byte
	for i := range messages {
		if i == 0 || !shared {
			buf = make([]byte, size)
		}
		iov := &unix.Iovec{Base: unsafe.SliceData(buf)}
		iov.SetLen(size)
		messages[i].header.Iov = iov
		messages[i].header.SetIovlen(1)
	}
	return messages
}
