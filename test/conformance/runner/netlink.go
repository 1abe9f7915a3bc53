package main

import (
	"encoding/binary"
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"

	"ovpn-go/test/conformance/script"
)

// family is the ids that this kernel has given the ovpn family; zeros if it has none.
type family struct {
	family uint16
	group  uint32
}

// resolveFamily asks the generic netlink controller, as every client does.
func resolveFamily() (family, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_GENERIC)
	if err != nil {
		return family{}, err
	}
	defer unix.Close(fd)
	name := append([]byte("ovpn"), 0, 0, 0, 0)
	msg := binary.NativeEndian.AppendUint32(nil, uint32(16+4+4+len(name)))
	msg = binary.NativeEndian.AppendUint16(msg, unix.GENL_ID_CTRL)
	msg = binary.NativeEndian.AppendUint16(msg, unix.NLM_F_REQUEST)
	msg = append(msg, make([]byte, 8)...)
	msg = append(msg, unix.CTRL_CMD_GETFAMILY, 2, 0, 0)
	msg = binary.NativeEndian.AppendUint16(msg, 4+5)
	msg = binary.NativeEndian.AppendUint16(msg, unix.CTRL_ATTR_FAMILY_NAME)
	msg = append(msg, name...)
	if err := unix.Sendto(fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return family{}, err
	}
	buf := make([]byte, 16<<10)
	n, _, err := unix.Recvfrom(fd, buf, 0)
	if err != nil {
		return family{}, err
	}
	buf = buf[:n]
	if n < 20 || binary.NativeEndian.Uint16(buf[4:]) != unix.GENL_ID_CTRL {
		return family{}, nil
	}
	var ids family
	attributes(buf[20:], func(kind uint16, value []byte) {
		switch {
		case kind == unix.CTRL_ATTR_FAMILY_ID && len(value) == 2:
			ids.family = binary.NativeEndian.Uint16(value)
		case kind == unix.CTRL_ATTR_MCAST_GROUPS:
			attributes(value, func(_ uint16, group []byte) {
				attributes(group, func(kind uint16, value []byte) {
					if kind == unix.CTRL_ATTR_MCAST_GRP_ID && len(value) == 4 {
						ids.group = binary.NativeEndian.Uint32(value)
					}
				})
			})
		}
	})
	return ids, nil
}

// attributes calls fn for each attribute; the two highest bits of a type are flags.
func attributes(data []byte, fn func(kind uint16, value []byte)) {
	for len(data) >= 4 {
		n := int(binary.NativeEndian.Uint16(data))
		if n < 4 || n > len(data) {
			return
		}
		fn(binary.NativeEndian.Uint16(data[2:])&0x3fff, data[4:n])
		data = data[min((n+3)&^3, len(data)):]
	}
}

// receive takes one datagram that is queued, and returns false if there is none. It asks for the length first,
// as many clients do, so the kernel never sees a buffer larger than what it has to say.
func receive(fd int) (script.Datagram, bool) {
	n, err := recvfrom(fd, nil, unix.MSG_PEEK|unix.MSG_TRUNC|unix.MSG_DONTWAIT, nil)
	if err == nil {
		d := script.Datagram{Data: make([]byte, n)}
		var from sender
		if n, err = recvfrom(fd, d.Data, unix.MSG_DONTWAIT, &from); err == nil {
			d.Data = d.Data[:n]
			d.SenderLength = int(from.length)
			if from.length >= 8 {
				d.SenderPort = from.address.Pid
			}
			return d, true
		}
	}
	if errors.Is(err, unix.EAGAIN) {
		return script.Datagram{}, false
	}
	return script.Datagram{Error: errno(err)}, true
}

// sender is a datagram's source address as the kernel wrote it, whatever its length. It has room for that of
// another family.
type sender struct {
	address unix.RawSockaddrNetlink
	_       [128]byte
	length  uint32
}

// recvfrom is the bare system call, which unlike its wrapper tells the length of the address.
func recvfrom(fd int, b []byte, flags int, from *sender) (int, error) {
	var buf, address, length unsafe.Pointer
	if len(b) > 0 {
		buf = unsafe.Pointer(&b[0])
	}
	if from != nil {
		from.length = uint32(unsafe.Sizeof(from.address)) + 128
		address, length = unsafe.Pointer(&from.address), unsafe.Pointer(&from.length)
	}
	n, _, e := unix.Syscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(buf), uintptr(len(b)), uintptr(flags),
		uintptr(address), uintptr(length))
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}

// errno returns the number of a system call's error.
func errno(err error) int {
	if err == nil {
		return 0
	}
	var number unix.Errno
	if errors.As(err, &number) {
		return int(number)
	}
	return -1
}
