package exec

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// datagram is what one message of a send call says. Its bytes are still in the client's memory.
type datagram struct {
	parts  []span
	length int
	name   []byte // the destination's address; empty if none is given
	flags  uint64
	// sentLength is where sendmmsg wants the length of what was sent, otherwise 0.
	sentLength uint64
}

// span is a piece of the client's memory.
type span struct {
	address uint64
	length  int
}

// Layouts of the 64-bit interface.
const (
	iovecSize   = 16
	msghdrSize  = 56
	mmsghdrSize = 64
	maxSpans    = 1024 // UIO_MAXIOV
)

// maxTransfer is MAX_RW_COUNT: what a single call moves at most.
const maxTransfer = 0x7ffff000

// datagrams returns what a send call is to send, in order. Only sendmmsg has more than one.
func (c *call) datagrams() ([]datagram, error) {
	switch c.nr {
	case unix.SYS_WRITE:
		return one(c.flat(c.args[1], c.args[2]))
	case unix.SYS_SENDTO:
		d, err := c.flat(c.args[1], c.args[2])
		if err == nil && c.args[4] != 0 {
			d.name, err = c.socketAddress(c.args[4], int32(c.args[5]))
		}
		d.flags = c.args[3]
		return one(d, err)
	case unix.SYS_WRITEV:
		return one(c.vector(c.args[1], c.args[2]))
	case unix.SYS_SENDMSG:
		header, err := c.task.read(c.args[1], msghdrSize)
		if err != nil {
			return nil, err
		}
		d, err := c.message(header)
		d.flags = c.args[2]
		return one(d, err)
	case unix.SYS_SENDMMSG:
		count := min(int(uint32(c.args[2])), maxSpans)
		list := make([]datagram, 0, count)
		for i := range count {
			address := c.args[1] + uint64(i)*mmsghdrSize
			header, err := c.task.read(address, mmsghdrSize)
			if err != nil {
				return some(list, err)
			}
			d, err := c.message(header[:msghdrSize])
			if err != nil {
				return some(list, err)
			}
			d.flags, d.sentLength = c.args[3], address+msghdrSize
			list = append(list, d)
		}
		return list, nil
	}
	return nil, unix.ENOSYS
}

func one(d datagram, err error) ([]datagram, error) { return []datagram{d}, err }

// some is what sendmmsg makes of an error: it counts only if nothing came before it.
func some(list []datagram, err error) ([]datagram, error) {
	if len(list) > 0 {
		return list, nil
	}
	return nil, err
}

func (c *call) flat(address, length uint64) (datagram, error) {
	n := int(min(length, maxTransfer))
	return datagram{parts: []span{{address, n}}, length: n}, nil
}

// message reads a struct msghdr, in copy_msghdr_from_user's order. Control data is ignored: netlink takes only
// credentials, which it does not use for requests to the kernel.
func (c *call) message(header []byte) (datagram, error) {
	var name []byte
	if at := binary.NativeEndian.Uint64(header[0:]); at != 0 {
		var err error
		// What is longer than any address is cut.
		if name, err = c.socketAddress(at, min(int32(binary.NativeEndian.Uint32(header[8:])), largestAddress)); err != nil {
			return datagram{}, err
		}
	}
	d, err := c.vector(binary.NativeEndian.Uint64(header[16:]), binary.NativeEndian.Uint64(header[24:]))
	d.name = name
	return d, err
}

// vector reads an array of struct iovec.
func (c *call) vector(address, count uint64) (datagram, error) {
	if count > maxSpans {
		if c.nr == unix.SYS_WRITEV {
			return datagram{}, unix.EINVAL
		}
		return datagram{}, unix.EMSGSIZE
	}
	raw, err := c.task.read(address, int(count)*iovecSize)
	if err != nil {
		return datagram{}, err
	}
	var d datagram
	for ; len(raw) >= iovecSize; raw = raw[iovecSize:] {
		length := binary.NativeEndian.Uint64(raw[8:])
		if length > 1<<63-1 {
			return datagram{}, unix.EINVAL
		}
		n := int(min(length, uint64(maxTransfer-d.length)))
		d.parts = append(d.parts, span{binary.NativeEndian.Uint64(raw), n})
		d.length += n
	}
	return d, nil
}

// named says whether the datagram names its destination: a name of no length is no name (netlink_sendmsg).
func (d datagram) named() bool { return len(d.name) > 0 }

// bytes copies the datagram out of the client's memory.
func (d datagram) bytes(t *task) ([]byte, error) {
	if len(d.parts) == 1 {
		return t.read(d.parts[0].address, d.parts[0].length)
	}
	b := make([]byte, 0, d.length)
	for _, part := range d.parts {
		piece, err := t.read(part.address, part.length)
		if err != nil {
			return nil, err
		}
		b = append(b, piece...)
	}
	return b, nil
}
