package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Patience is how long each side waits for the other's next word where there must be one.
const Patience = 10 * time.Second

// Conn is either side of a connection. One goroutine may send while another receives.
type Conn struct{ conn *net.UnixConn }

// NewConn takes ownership of a connection.
func NewConn(conn *net.UnixConn) *Conn { return &Conn{conn} }

// Close closes the connection.
func (c *Conn) Close() error { return c.conn.Close() }

// Unix returns the connection itself, for its options and deadlines.
func (c *Conn) Unix() *net.UnixConn { return c.conn }

// Send sends a message, a Request or a Reply, with copies of the files, which stay the caller's. It waits for a reader at most as long as
// the other side's patience.
func (c *Conn) Send(message any, files ...*os.File) error {
	b, err := json.Marshal(message)
	if err != nil {
		return err
	}
	if len(b) > MaxMessage {
		return fmt.Errorf("message of %d bytes: %w", len(b), unix.EMSGSIZE)
	}
	rights, err := rightsOf(files)
	if err != nil {
		return err
	}
	if err := c.conn.SetWriteDeadline(time.Now().Add(Patience)); err != nil {
		return err
	}
	_, _, err = c.conn.WriteMsgUnix(b, rights, nil)
	runtime.KeepAlive(files)
	return err
}

// rightsOf is the control message that sends the files, which must stay open until it is sent. It does not use Fd, which
// would have a file block that does not.
func rightsOf(files []*os.File) ([]byte, error) {
	var fds []int
	for _, file := range files {
		conn, err := file.SyscallConn()
		if err != nil {
			return nil, err
		}
		if err := conn.Control(func(fd uintptr) { fds = append(fds, int(fd)) }); err != nil {
			return nil, err
		}
	}
	if len(fds) == 0 {
		return nil, nil
	}
	return unix.UnixRights(fds...), nil
}

// A Packet is a message as it was received.
type Packet struct {
	Message []byte
	// Files came with it and are the receiver's to close.
	Files []*os.File
	// PID is the process that sent it, in our pid namespace, where SO_PASSCRED is set; 0 where it is not, or where the process
	// can't be seen.
	PID int
}

// Close closes the files.
func (p *Packet) Close() {
	for _, file := range p.Files {
		file.Close()
	}
}

// Receive waits for a message. The error is io.EOF when the other side is gone.
func (c *Conn) Receive() (Packet, error) {
	b := make([]byte, MaxMessage)
	oob := make([]byte, unix.CmsgSpace(4*MaxFiles)+unix.CmsgSpace(unix.SizeofUcred))
	n, oobn, flags, _, err := c.conn.ReadMsgUnix(b, oob)
	if err != nil {
		if errors.Is(err, unix.ECONNRESET) {
			err = io.EOF // it closed without reading what we said
		}
		return Packet{}, err
	}
	p := Packet{Message: b[:n]}
	controlErr := p.control(oob[:oobn])
	if controlErr != nil || flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		p.Close()
		return Packet{}, errors.Join(errors.New("message is too long or has too many descriptors"), controlErr)
	}
	return p, nil
}

// control takes what came beside a message.
func (p *Packet) control(oob []byte) error {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return err
	}
	for i := range messages {
		if credentials, err := unix.ParseUnixCredentials(&messages[i]); err == nil {
			p.PID = int(credentials.Pid)
			continue
		}
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			p.Files = append(p.Files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return nil
}

// Reply waits for the daemon's next word.
func (c *Conn) Reply() (Reply, []*os.File, error) {
	p, err := c.Receive()
	if err != nil {
		return Reply{}, nil, err
	}
	var r Reply
	if err := json.Unmarshal(p.Message, &r); err != nil {
		p.Close()
		return Reply{}, nil, fmt.Errorf("read the daemon's answer: %w", err)
	}
	return r, p.Files, nil
}

// Ask sends a request and waits for the answer, whose files are the caller's to close. An answer that refuses is an error.
func (c *Conn) Ask(r Request, files ...*os.File) (Reply, []*os.File, error) {
	if err := c.Send(r, files...); err != nil {
		return Reply{}, nil, fmt.Errorf("ask the daemon: %w", err)
	}
	if err := c.conn.SetReadDeadline(time.Now().Add(Patience)); err != nil {
		return Reply{}, nil, err
	}
	reply, received, err := c.Reply()
	if err == nil {
		err = c.conn.SetReadDeadline(time.Time{})
	} else {
		err = fmt.Errorf("wait for the daemon's answer: %w", err)
	}
	if err == nil {
		err = reply.Err()
	}
	if err != nil {
		for _, file := range received {
			file.Close()
		}
		return Reply{}, nil, err
	}
	return reply, received, nil
}
