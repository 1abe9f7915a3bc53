package exec

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// call is one notified system call and its answer, of which it gets exactly one.
type call struct {
	session  *session
	task     *task
	nr       int
	args     [6]uint64
	id       uint64
	answered bool
	// addressed is whether the datagram of a send call that is being processed names its destination.
	addressed bool
}

// fd returns the first argument as the descriptor it is.
func (c *call) fd() int { return int(int32(c.args[0])) }

// returns makes the call return value.
func (c *call) returns(value int64) { c.answer(c.session.listener.returns(c.id, value)) }

// fails makes the call fail with errno.
func (c *call) fails(errno unix.Errno) { c.answer(c.session.listener.fails(c.id, errno)) }

// continues lets the kernel execute the call.
func (c *call) continues() { c.answer(c.session.listener.continues(c.id)) }

// failsFor makes the call fail because of err.
func (c *call) failsFor(err error) {
	if isShortage(err) {
		c.session.shortage.say(c.session.logger, err)
	}
	c.fails(errnoFor(err))
}

// finish makes the call return value, or fail if there is an error.
func (c *call) finish(value int64, err error) {
	if err != nil {
		c.failsFor(err)
		return
	}
	c.returns(value)
}

func (c *call) answer(err error) {
	c.answered = true
	if err != nil {
		c.session.logger.Error("answer a client's system call", "error", err)
	}
}

// netlinkAddress is struct sockaddr_nl.
type netlinkAddress struct {
	port, groups uint32
}

const netlinkAddressSize = unix.SizeofSockaddrNetlink

// encode lays the address out as the kernel does.
func (a netlinkAddress) encode() []byte {
	b := make([]byte, netlinkAddressSize)
	binary.NativeEndian.PutUint16(b, unix.AF_NETLINK)
	binary.NativeEndian.PutUint32(b[4:], a.port)
	binary.NativeEndian.PutUint32(b[8:], a.groups)
	return b
}

// parseNetlinkAddress reads an address as bind and sendmsg of netlink do: EINVAL unless it is
// long enough and of the family.
func parseNetlinkAddress(b []byte) (netlinkAddress, error) {
	if len(b) < netlinkAddressSize || binary.NativeEndian.Uint16(b) != unix.AF_NETLINK {
		return netlinkAddress{}, unix.EINVAL
	}
	return netlinkAddress{
		port:   binary.NativeEndian.Uint32(b[4:]),
		groups: binary.NativeEndian.Uint32(b[8:]),
	}, nil
}

// largestAddress is struct sockaddr_storage.
const largestAddress = 128

// socketAddress copies an address argument, as move_addr_to_kernel does.
func (c *call) socketAddress(address uint64, length int32) ([]byte, error) {
	if length < 0 || length > largestAddress {
		return nil, unix.EINVAL
	}
	return c.task.read(address, int(length))
}

// answerAddress writes an address to where getsockname's arguments say, as move_addr_to_user does.
func (c *call) answerAddress(b []byte) {
	c.finish(0, c.writeAddress(b))
}

// writeAddress is answerAddress without the answer.
func (c *call) writeAddress(b []byte) error {
	size, err := c.readLength(c.args[2])
	if err != nil {
		return err
	}
	if size < 0 {
		return unix.EINVAL
	}
	if err := c.task.write(c.args[1], b[:min(int(size), len(b))]); err != nil {
		return err
	}
	return c.writeLength(c.args[2], len(b))
}

// readLength reads the int that a length argument points to.
func (c *call) readLength(address uint64) (int32, error) {
	b, err := c.task.read(address, 4)
	if err != nil {
		return 0, err
	}
	return int32(binary.NativeEndian.Uint32(b)), nil
}

// writeLength writes the int that a length argument points to.
func (c *call) writeLength(address uint64, n int) error {
	return c.task.write(address, binary.NativeEndian.AppendUint32(nil, uint32(n)))
}

// optionLevel and optionName are the arguments of setsockopt and getsockopt.
func (c *call) optionLevel() int { return int(int32(c.args[1])) }
func (c *call) optionName() int  { return int(int32(c.args[2])) }

// optionValue copies the value that setsockopt passes.
func (c *call) optionValue() ([]byte, error) {
	const largest = 4096 // nothing that this package looks at comes near it
	size := int32(c.args[4])
	if size < 0 || size > largest {
		return nil, unix.EINVAL
	}
	return c.task.read(c.args[3], int(size))
}

// intOptionValue is optionValue where the kernel reads an int, however long the value is said to be; it is empty if the
// length has no room for one.
func (c *call) intOptionValue() ([]byte, error) {
	switch size := int32(c.args[4]); {
	case size < 0:
		return nil, unix.EINVAL
	case size < 4:
		return nil, nil
	}
	return c.task.read(c.args[3], 4)
}

// answerOption writes an option's value to where getsockopt's arguments say. The length that is
// reported may exceed what fits, as for NETLINK_LIST_MEMBERSHIPS.
func (c *call) answerOption(get func(size int) ([]byte, error)) {
	c.finish(0, func() error {
		size, err := c.readLength(c.args[4])
		if err != nil {
			return err
		}
		if size < 0 {
			return unix.EINVAL
		}
		value, err := get(int(size))
		if err != nil {
			return err
		}
		if err := c.task.write(c.args[3], value[:min(int(size), len(value))]); err != nil {
			return err
		}
		return c.writeLength(c.args[4], len(value))
	}())
}
