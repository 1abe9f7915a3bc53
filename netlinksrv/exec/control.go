package exec

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// messageKind says what a control message means.
type messageKind uint8

const (
	// From the guard.
	messageListener messageKind = iota + 1 // the filter is installed; a, b: window; carries the listener
	messageStarted                         // the client runs; a: pid
	messageFailed                          // the client could not be started; a: errno, text: the step
	messageExited                          // nothing is left; a: the client's wait status

	// To the guard.
	messageReach  // before anything else; a: 1 if descriptors must be kept, as none can be taken from the client
	messageSignal // the supervisor received a signal; a: number
)

// message is what supervisor and guard tell each other, one per datagram.
type message struct {
	kind messageKind
	a, b uint32
	text string
}

const messageHeader = 9

func (m message) encode() []byte {
	b := make([]byte, messageHeader, messageHeader+len(m.text))
	b[0] = byte(m.kind)
	binary.NativeEndian.PutUint32(b[1:], m.a)
	binary.NativeEndian.PutUint32(b[5:], m.b)
	return append(b, m.text...)
}

func decodeMessage(b []byte) (message, error) {
	if len(b) < messageHeader {
		return message{}, io.ErrUnexpectedEOF
	}
	return message{
		kind: messageKind(b[0]),
		a:    binary.NativeEndian.Uint32(b[1:]),
		b:    binary.NativeEndian.Uint32(b[5:]),
		text: string(b[messageHeader:]),
	}, nil
}

// control is one end of the socketpair between supervisor and guard. Its end of file is how each
// learns of the other's death, whatever the cause, so nobody else may hold a copy.
type control struct {
	file *os.File
	conn syscall.RawConn
}

// newControl takes ownership of the descriptor.
func newControl(fd int) (*control, error) {
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	file := os.NewFile(uintptr(fd), "control")
	conn, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, err
	}
	return &control{file, conn}, nil
}

// send sends a message, with a copy of the descriptor fd unless that is negative.
func (c *control) send(m message, fd int) error {
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	var inner error
	err := c.conn.Write(func(conn uintptr) bool {
		inner = unix.Sendmsg(int(conn), m.encode(), rights, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
		return inner != unix.EAGAIN
	})
	if err == nil {
		err = inner
	}
	return err
}

// receive waits for a message and returns the descriptor that came with it, or -1. io.EOF means
// that the other side is gone.
func (c *control) receive() (message, int, error) {
	buf := make([]byte, 4096)
	oob := make([]byte, unix.CmsgSpace(4))
	var n, oobn int
	var inner error
	err := c.conn.Read(func(conn uintptr) bool {
		n, oobn, _, _, inner = unix.Recvmsg(int(conn), buf, oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
		return inner != unix.EAGAIN
	})
	if err == nil {
		err = inner
	}
	if err != nil {
		return message{}, -1, err
	}
	if n == 0 {
		return message{}, -1, io.EOF
	}
	fd, err := receivedDescriptor(oob[:oobn])
	if err != nil {
		return message{}, -1, err
	}
	m, err := decodeMessage(buf[:n])
	return m, fd, err
}

// hangUp looks like our death to the other side; its own messages still arrive.
func (c *control) hangUp() {
	c.conn.Control(func(fd uintptr) { unix.Shutdown(int(fd), unix.SHUT_WR) })
}

func (c *control) close() error { return c.file.Close() }

// receivedDescriptor returns the one descriptor in a control buffer, or -1.
func receivedDescriptor(oob []byte) (int, error) {
	if len(oob) == 0 {
		return -1, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return -1, err
	}
	for _, m := range messages {
		if m.Header.Level != unix.SOL_SOCKET || m.Header.Type != unix.SCM_RIGHTS {
			continue
		}
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return -1, err
		}
		if len(fds) != 1 {
			for _, fd := range fds {
				unix.Close(fd)
			}
			return -1, fmt.Errorf("%d descriptors in one message", len(fds))
		}
		return fds[0], nil
	}
	return -1, nil
}
