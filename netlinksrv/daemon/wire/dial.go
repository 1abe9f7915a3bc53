package wire

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// Variable is the environment variable that says where the daemon's socket is. None in it says that no daemon is wanted.
	Variable = "OVPN_GO_SOCKET"
	// None says, in place of a path, that no daemon is wanted.
	None = "none"
	// DefaultPath is where the socket is unless something else is said.
	DefaultPath = "/run/ovpn-go/socket"
)

// ErrNoDaemon says that there is no daemon, and that nobody demanded one.
var ErrNoDaemon = errors.New("no daemon")

// Path returns where the daemon's socket is, "" if none is wanted, and whether somebody has said so.
func Path() (path string, said bool) {
	switch path := os.Getenv(Variable); path {
	case "":
		return DefaultPath, false
	case None:
		return "", true
	default:
		return path, true
	}
}

// Find connects to the daemon that Path speaks of. The error is ErrNoDaemon if none is wanted, and also if nobody has said
// that there is one and it can't be reached.
func Find() (*Hello, error) {
	path, said := Path()
	if path == "" {
		return nil, ErrNoDaemon
	}
	c, err := Dial(path)
	if err != nil && !said {
		return nil, fmt.Errorf("%w: %w", ErrNoDaemon, err)
	}
	return c, err
}

// Hello is a connection on which both sides have greeted each other. What it is for is the next request.
type Hello struct {
	*Conn
	nonce uint64
}

// Dial connects to the daemon at path.
func Dial(path string) (*Hello, error) {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		if errors.Is(err, unix.EPROTOTYPE) {
			return nil, fmt.Errorf("%w: it is not a daemon's socket", err)
		}
		return nil, fmt.Errorf("reach the daemon: %w", err)
	}
	c := NewConn(conn)
	reply, _, err := c.Ask(Request{Type: TypeHello})
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("reach the daemon at %s: %w", path, err)
	}
	return &Hello{c, reply.Nonce}, nil
}

// Begin makes the request that the connection is for.
func (h *Hello) Begin(r Request, files ...*os.File) (Reply, []*os.File, error) {
	r.Nonce = h.nonce
	return h.Ask(r, files...)
}
