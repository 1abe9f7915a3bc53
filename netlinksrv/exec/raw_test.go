package exec

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// The socket calls of x/sys/unix hide the length of addresses, which is what libraries check.

// receive is recvmsg and returns the source address as it lies in memory.
func receive(fd int, buf, oob []byte, flags int) (n, oobn, gotFlags int, from []byte, err error) {
	name := make([]byte, 128)
	var msg unix.Msghdr
	msg.Name, msg.Namelen = &name[0], uint32(len(name))
	var iov unix.Iovec
	if len(buf) > 0 {
		iov.Base = &buf[0]
		iov.SetLen(len(buf))
		msg.Iov = &iov
		msg.SetIovlen(1)
	}
	if len(oob) > 0 {
		msg.Control = &oob[0]
		msg.SetControllen(len(oob))
	}
	r, _, errno := unix.Syscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)), uintptr(flags))
	if errno != 0 {
		return 0, 0, 0, nil, errno
	}
	return int(r), int(msg.Controllen), int(msg.Flags), name[:msg.Namelen], nil
}

func socketName(fd int) ([]byte, error) { return nameCall(unix.SYS_GETSOCKNAME, fd) }
func peerName(fd int) ([]byte, error)   { return nameCall(unix.SYS_GETPEERNAME, fd) }

func nameCall(nr, fd int) ([]byte, error) {
	name := make([]byte, 112)
	size := uint32(len(name))
	_, _, errno := unix.Syscall(uintptr(nr), uintptr(fd), uintptr(unsafe.Pointer(&name[0])), uintptr(unsafe.Pointer(&size)))
	if errno != 0 {
		return nil, errno
	}
	return name[:size], nil
}

func bindRaw(fd int, address []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(&address[0])), uintptr(len(address)))
	return ok(errno)
}

// sendMany is sendmmsg to the kernel; it returns the lengths that the kernel filled in.
func sendMany(fd int, datagrams ...[]byte) ([]uint32, error) {
	address := netlinkAddress{}.encode()
	vector := make([]struct {
		msg    unix.Msghdr
		length uint32
		_      [4]byte
	}, len(datagrams))
	iov := make([]unix.Iovec, len(datagrams))
	for i, d := range datagrams {
		iov[i].Base = &d[0]
		iov[i].SetLen(len(d))
		vector[i].msg.Iov = &iov[i]
		vector[i].msg.SetIovlen(1)
		vector[i].msg.Name, vector[i].msg.Namelen = &address[0], uint32(len(address))
	}
	n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&vector[0])), uintptr(len(vector)), 0, 0, 0)
	if errno != 0 {
		return nil, errno
	}
	lengths := make([]uint32, n)
	for i := range lengths {
		lengths[i] = vector[i].length
	}
	return lengths, nil
}
