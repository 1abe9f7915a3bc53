package exec

import (
	"encoding/binary"
	"os"

	"golang.org/x/sys/unix"

	"ovpn-go/tun/netns"
)

// connections are the clients' transport sockets: the TCP connections in whose place a client holds one end of a pair, and
// the UDP sockets beside which the datapath has its own.
type connections interface {
	// HasConnections reports whether there is any.
	HasConnections() bool
	// Connection returns a duplicate of the connection in whose place the client holds the socket with that
	// cookie, nil if there is none. The caller closes it.
	Connection(cookie uint64) (*os.File, error)
	// SetMark sets SO_MARK on what sends in the stead of the UDP socket with that cookie. It reports false if nothing does.
	SetMark(cookie uint64, mark int) bool
}

// noConnections is where nobody replaces any.
type noConnections struct{}

func (noConnections) HasConnections() bool                { return false }
func (noConnections) Connection(uint64) (*os.File, error) { return nil, nil }
func (noConnections) SetMark(uint64, int) bool            { return false }

// asks says whether a call is one of those that a connection answers in its substitute's stead. They are
// notified for every descriptor.
func asks(nr int) bool {
	switch nr {
	case unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME, unix.SYS_GETSOCKOPT, unix.SYS_SETSOCKOPT:
		return true
	}
	return false
}

// socketOptionID names an option.
type socketOptionID struct{ level, name int }

// optionAccess says what a client may do to an option of its connection through us.
type optionAccess uint8

const (
	optionGet optionAccess = 1 << iota
	optionSet
	// optionAdmin options take CAP_NET_ADMIN to set, which the kernel would look for in us and not in the client.
	optionAdmin

	optionBoth = optionGet | optionSet
)

// connectionOptions are the options that belong to a connection. What is not here stays with the pair: the options
// that are about the client's own receiving and sending, such as time limits and filters, belong there, and
// what the pair does not know is refused. Options whose values hold pointers or that give more than values must not
// come in here, for it is our memory and our rights that they would act on.
var connectionOptions = map[socketOptionID]optionAccess{
	{unix.SOL_SOCKET, unix.SO_TYPE}:            optionGet,
	{unix.SOL_SOCKET, unix.SO_DOMAIN}:          optionGet,
	{unix.SOL_SOCKET, unix.SO_PROTOCOL}:        optionGet,
	{unix.SOL_SOCKET, unix.SO_ERROR}:           optionGet,
	{unix.SOL_SOCKET, unix.SO_ACCEPTCONN}:      optionGet,
	{unix.SOL_SOCKET, unix.SO_COOKIE}:          optionGet,
	{unix.SOL_SOCKET, unix.SO_NETNS_COOKIE}:    optionGet,
	{unix.SOL_SOCKET, unix.SO_INCOMING_CPU}:    optionGet,
	{unix.SOL_SOCKET, unix.SO_PEERNAME}:        optionGet,
	{unix.SOL_SOCKET, unix.SO_BINDTODEVICE}:    optionGet,
	{unix.SOL_SOCKET, unix.SO_REUSEADDR}:       optionBoth,
	{unix.SOL_SOCKET, unix.SO_REUSEPORT}:       optionBoth,
	{unix.SOL_SOCKET, unix.SO_KEEPALIVE}:       optionBoth,
	{unix.SOL_SOCKET, unix.SO_SNDBUF}:          optionBoth,
	{unix.SOL_SOCKET, unix.SO_RCVBUF}:          optionBoth,
	{unix.SOL_SOCKET, unix.SO_LINGER}:          optionBoth,
	{unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE}: optionBoth,
	{unix.SOL_SOCKET, unix.SO_PRIORITY}:        optionBoth | optionAdmin,
	{unix.SOL_SOCKET, unix.SO_MARK}:            optionBoth | optionAdmin,

	{unix.IPPROTO_TCP, unix.TCP_INFO}:          optionGet,
	{unix.IPPROTO_TCP, unix.TCP_CC_INFO}:       optionGet,
	{unix.IPPROTO_TCP, unix.TCP_NODELAY}:       optionBoth,
	{unix.IPPROTO_TCP, unix.TCP_MAXSEG}:        optionBoth,
	{unix.IPPROTO_TCP, unix.TCP_CORK}:          optionBoth,
	{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE}:      optionBoth,
	{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL}:     optionBoth,
	{unix.IPPROTO_TCP, unix.TCP_KEEPCNT}:       optionBoth,
	{unix.IPPROTO_TCP, unix.TCP_SYNCNT}:        optionBoth,
	{unix.IPPROTO_TCP, unix.TCP_LINGER2}:       optionBoth,
	{unix.IPPROTO_TCP, unix.TCP_WINDOW_CLAMP}:  optionBoth,
	{unix.IPPROTO_TCP, unix.TCP_QUICKACK}:      optionBoth,
	{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT}:  optionBoth,
	{unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT}: optionBoth,
	{unix.IPPROTO_TCP, unix.TCP_CONGESTION}:    optionBoth | optionAdmin,

	{unix.IPPROTO_IP, unix.IP_TOS}:          optionBoth,
	{unix.IPPROTO_IP, unix.IP_TTL}:          optionBoth,
	{unix.IPPROTO_IP, unix.IP_MTU_DISCOVER}: optionBoth,
	{unix.IPPROTO_IP, unix.IP_MTU}:          optionGet,

	{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY}:       optionGet,
	{unix.IPPROTO_IPV6, unix.IPV6_TCLASS}:       optionBoth,
	{unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS}: optionBoth,
	{unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER}: optionBoth,
	{unix.IPPROTO_IPV6, unix.IPV6_MTU}:          optionGet,
}

// largestOption bounds the buffer in which we get an option's value for a client. TCP_INFO, the longest, is a few
// hundred bytes; the size is the client's, and may be anything.
const largestOption = 4096

// connectionCall answers a call that asks about a descriptor which has replaced a connection.
func (c *call) connectionCall(conn *os.File) {
	err := netns.Control(conn, func(fd int) error {
		c.askConnection(conn, fd)
		return nil
	})
	if err != nil {
		c.failsFor(err)
	}
}

// askConnection is connectionCall with the connection's descriptor as well.
func (c *call) askConnection(conn *os.File, fd int) {
	access := connectionOptions[socketOptionID{c.optionLevel(), c.optionName()}]
	switch {
	case c.nr == unix.SYS_GETSOCKNAME || c.nr == unix.SYS_GETPEERNAME:
		name, err := nameOfSocket(fd, c.nr == unix.SYS_GETPEERNAME)
		if err != nil {
			c.failsFor(err)
			return
		}
		c.answerAddress(name)
	case c.nr == unix.SYS_GETSOCKOPT && access&optionGet != 0:
		c.answerOption(func(size int) ([]byte, error) {
			return socketOptionBytes(fd, c.optionLevel(), c.optionName(), min(size, largestOption))
		})
	case c.nr == unix.SYS_SETSOCKOPT && access&optionSet != 0:
		c.finish(0, c.setConnectionOption(conn, fd, access))
	default:
		c.continues()
	}
}

func (c *call) setConnectionOption(conn *os.File, fd int, access optionAccess) error {
	value, err := c.optionValue()
	if err != nil {
		return err
	}
	if access&optionAdmin != 0 {
		if err := c.mayAdmin(conn); err != nil {
			return err
		}
	}
	return unix.SetsockoptString(fd, c.optionLevel(), c.optionName(), string(value))
}

// mayAdmin is task.MayAdmin for the socket's namespace.
func (c *call) mayAdmin(conn *os.File) error {
	ns, err := netns.OfSocket(conn)
	switch {
	case isShortage(err):
		return err
	case err != nil:
		return unix.EPERM
	}
	defer ns.Close()
	return c.task.MayAdmin(ns)
}

// setsMark reports whether a call sets SO_MARK. The module reads a UDP socket's mark for each packet, so ours has to
// follow.
func setsMark(nr int, args *[6]uint64) bool {
	return nr == unix.SYS_SETSOCKOPT && int32(args[1]) == unix.SOL_SOCKET && int32(args[2]) == unix.SO_MARK
}

// markSocket answers a call that sets the mark of a socket, of which fd is a duplicate, and marks what sends in its stead.
// Of a client that may not administer the network the kernel decides, and only what the client sends itself is marked.
func (c *call) markSocket(fd int, cookie uint64) {
	value, err := c.optionValue()
	if err == nil && len(value) < 4 {
		err = unix.EINVAL
	}
	if err == nil {
		err = c.mayMark(fd)
	}
	if err != nil {
		c.continuesUnless(err)
		return
	}
	mark := int(int32(binary.NativeEndian.Uint32(value)))
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, mark)
	if err == nil {
		c.session.connections.SetMark(cookie, mark)
	}
	c.finish(0, err)
}

// mayMark is mayAdmin of a bare descriptor.
func (c *call) mayMark(fd int) error {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	file := os.NewFile(uintptr(own), "socket of a client")
	defer file.Close()
	return c.mayAdmin(file)
}
