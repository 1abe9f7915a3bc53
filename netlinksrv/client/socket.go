package client

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv/daemon/wire"
)

// ErrDaemonGone says that the daemon that answered has ended.
var ErrDaemonGone = errors.New("the daemon is gone")

// A dialer opens netlink sockets: netlink.Dial, or what dialDaemon returns.
type dialer func(protocol int, cfg *netlink.Config) (*netlink.Conn, error)

// generic opens a generic netlink socket.
func (dial dialer) generic(cfg *netlink.Config) (*genetlink.Conn, error) {
	conn, err := dial(unix.NETLINK_GENERIC, cfg)
	if err != nil {
		return nil, fmt.Errorf("open generic netlink socket: %w", err)
	}
	return genetlink.NewConn(conn), nil
}

// dialDaemon returns a dialer that opens a socket of the daemon's if there is one, or else of the kernel's. A socket that comes with
// an answer of the daemon's is put into replacement.
func dialDaemon(replacement *atomic.Pointer[os.File]) dialer {
	return func(protocol int, cfg *netlink.Config) (*netlink.Conn, error) {
		return openDaemon(protocol, cfg, replacement)
	}
}

func openDaemon(protocol int, cfg *netlink.Config, replacement *atomic.Pointer[os.File]) (*netlink.Conn, error) {
	hello, err := wire.Find()
	if errors.Is(err, wire.ErrNoDaemon) {
		return netlink.Dial(protocol, cfg)
	}
	if err != nil {
		return nil, err
	}
	s, port, err := openSocket(hello, protocol)
	if err != nil {
		hello.Close()
		return nil, err
	}
	s.replacement = replacement
	if cfg != nil && cfg.Strict {
		for _, option := range []int{unix.NETLINK_EXT_ACK, unix.NETLINK_GET_STRICT_CHK} {
			if err := s.setOption(option, 1); err != nil {
				s.Close()
				return nil, fmt.Errorf("set netlink option %d: %w", option, err)
			}
		}
	}
	return netlink.NewConn(s, port), nil
}

// socket is a netlink socket of the daemon's, for the netlink library. It may be used as a netlink.Conn uses one.
type socket struct {
	hello *wire.Hello
	data  *net.UnixConn // each packet is a datagram
	raw   syscall.RawConn
	// replacement is where a socket is put that came with a datagram.
	replacement *atomic.Pointer[os.File]
}

// openSocket asks for a socket in the network namespace of the calling thread.
func openSocket(hello *wire.Hello, protocol int) (s *socket, port uint32, err error) {
	reply, files, err := beginHere(hello, wire.Request{Type: wire.TypeNetlink, Protocol: protocol})
	if err != nil {
		return nil, 0, err
	}
	defer func() {
		for _, file := range files {
			file.Close()
		}
	}()
	if len(files) != 1 {
		return nil, 0, fmt.Errorf("the daemon sent %d descriptors", len(files))
	}
	conn, err := net.FileConn(files[0])
	if err != nil {
		return nil, 0, fmt.Errorf("adopt the daemon's netlink socket: %w", err)
	}
	data, ok := conn.(*net.UnixConn)
	if !ok {
		conn.Close()
		return nil, 0, fmt.Errorf("the daemon sent a %T", conn)
	}
	raw, err := data.SyscallConn()
	if err != nil {
		data.Close()
		return nil, 0, err
	}
	return &socket{hello: hello, data: data, raw: raw}, reply.Port, nil
}

// beginHere says what the connection is for, in the network namespace of the calling thread.
func beginHere(hello *wire.Hello, r wire.Request) (wire.Reply, []*os.File, error) {
	ns, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return wire.Reply{}, nil, err
	}
	defer ns.Close()
	return hello.Begin(r, ns)
}

// Close ends the socket, and a Receive that waits.
func (s *socket) Close() error { return errors.Join(s.data.Close(), s.hello.Close()) }

// Send sends one message in a datagram.
func (s *socket) Send(m netlink.Message) error { return s.SendMessages([]netlink.Message{m}) }

// SendMessages sends several in one datagram.
func (s *socket) SendMessages(messages []netlink.Message) error {
	var datagram []byte
	for _, m := range messages {
		b, err := m.MarshalBinary()
		if err != nil {
			return err
		}
		datagram = append(datagram, b...)
	}
	var inner error
	err := s.raw.Write(func(fd uintptr) bool {
		inner = unix.Sendmsg(int(fd), datagram, nil, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
		return inner != unix.EAGAIN
	})
	return ended(errors.Join(err, inner))
}

// ended names the daemon's end.
func ended(err error) error {
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, io.EOF) {
		return ErrDaemonGone
	}
	return err
}

// Receive waits for a datagram and returns its messages.
func (s *socket) Receive() ([]netlink.Message, error) {
	datagram, err := s.receive()
	if err != nil {
		return nil, ended(err)
	}
	return parseMessages(datagram)
}

// ReceiveIter is Receive, message by message.
func (s *socket) ReceiveIter() iter.Seq2[netlink.Message, error] {
	return func(yield func(netlink.Message, error) bool) {
		messages, err := s.Receive()
		if err != nil {
			yield(netlink.Message{}, err)
			return
		}
		for _, m := range messages {
			if !yield(m, nil) {
				return
			}
		}
	}
}

func (s *socket) receive() (datagram []byte, err error) {
	var inner error
	err = s.raw.Read(func(fd uintptr) bool {
		var size int
		size, _, inner = unix.Recvfrom(int(fd), nil, unix.MSG_PEEK|unix.MSG_TRUNC|unix.MSG_DONTWAIT)
		if inner == unix.EAGAIN {
			return false
		}
		if inner == nil && size == 0 {
			inner = io.EOF // netlink has no empty datagrams
		}
		if inner != nil {
			return true
		}
		datagram = make([]byte, size)
		rights := make([]byte, unix.CmsgSpace(4))
		var n, flags int
		size, n, flags, _, inner = unix.Recvmsg(int(fd), datagram, rights, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
		datagram = datagram[:max(size, 0)]
		if n > 0 {
			s.keep(rights[:n])
		}
		if flags&unix.MSG_CTRUNC != 0 {
			inner = unix.EMFILE // a socket came, and there was no number for it
		}
		return inner != unix.EAGAIN
	})
	return datagram, errors.Join(err, inner)
}

// keep puts the socket that came with a datagram where it is looked for.
func (s *socket) keep(rights []byte) {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil || len(messages) == 0 {
		return
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) == 0 {
		return
	}
	if old := s.replacement.Swap(os.NewFile(uintptr(fds[0]), "transport socket")); old != nil {
		old.Close()
	}
}

// parseMessages cuts a datagram. The error is that of a message that is cut off.
func parseMessages(datagram []byte) (messages []netlink.Message, err error) {
	for len(datagram) >= unix.NLMSG_HDRLEN {
		length := uint64(binary.NativeEndian.Uint32(datagram))
		if length < unix.NLMSG_HDRLEN || length > uint64(len(datagram)) {
			return nil, fmt.Errorf("netlink message of %d bytes in %d: %w", length, len(datagram), io.ErrUnexpectedEOF)
		}
		messages = append(messages, netlink.Message{
			Header: netlink.Header{
				Length:   uint32(length),
				Type:     netlink.HeaderType(binary.NativeEndian.Uint16(datagram[4:])),
				Flags:    netlink.HeaderFlags(binary.NativeEndian.Uint16(datagram[6:])),
				Sequence: binary.NativeEndian.Uint32(datagram[8:]),
				PID:      binary.NativeEndian.Uint32(datagram[12:]),
			},
			Data: datagram[unix.NLMSG_HDRLEN:length:length],
		})
		aligned := (length + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1)
		datagram = datagram[min(aligned, uint64(len(datagram))):]
	}
	return messages, nil
}

// JoinGroup makes the socket a member of a multicast group.
func (s *socket) JoinGroup(group uint32) error {
	return s.setOption(unix.NETLINK_ADD_MEMBERSHIP, group)
}

// LeaveGroup ends the membership.
func (s *socket) LeaveGroup(group uint32) error {
	return s.setOption(unix.NETLINK_DROP_MEMBERSHIP, group)
}

func (s *socket) setOption(name int, value uint32) error {
	_, _, err := s.hello.Ask(wire.Request{Type: wire.TypeOption, Name: name, Value: value})
	return err
}

// SetDeadline and its kin bound how long sending and receiving wait.
func (s *socket) SetDeadline(t time.Time) error      { return s.data.SetDeadline(t) }
func (s *socket) SetReadDeadline(t time.Time) error  { return s.data.SetReadDeadline(t) }
func (s *socket) SetWriteDeadline(t time.Time) error { return s.data.SetWriteDeadline(t) }
