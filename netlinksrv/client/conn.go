package client

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv/uapi"
)

// ErrNoFamily says that nobody answers for the family: the module is not loaded, and the caller does not run
// under a program that stands in for it.
var ErrNoFamily = errors.New(`no netlink family "ovpn"`)

// Error is what a request was answered with.
type Error struct {
	Errno unix.Errno
	// Message is Linux's explanation; empty if it gave none.
	Message string
}

func (e *Error) Error() string {
	if e.Message == "" {
		return e.Errno.Error()
	}
	return fmt.Sprintf("%s (%v)", e.Message, e.Errno)
}

// Unwrap makes the errno comparable by errors.Is.
func (e *Error) Unwrap() error { return e.Errno }

// answered turns the library's error into ours where it is the other side's.
func answered(err error) error {
	var op *netlink.OpError
	var errno unix.Errno
	if errors.As(err, &op) && errors.As(op.Err, &errno) {
		return &Error{Errno: errno, Message: strings.TrimPrefix(op.Message, uapi.FamilyName+": ")}
	}
	return err
}

// Conn sends requests to the family and to rtnetlink. It may be used concurrently; requests then wait for each
// other.
type Conn struct {
	generic *genetlink.Conn
	family  atomic.Uint32 // the family's id, 0 until it was looked up
	route   *netlink.Conn
	kernel  bool // no daemon is wanted

	adding sync.Mutex // held while a peer is added, so that replacement is that peer's
	// replacement is the socket that came with the daemon's answer and that nobody has taken yet.
	replacement atomic.Pointer[os.File]
}

// Dial opens a connection in the network namespace of the calling thread, to the daemon that package wire finds, or else to
// the kernel. It does not ask for the family yet, so that it succeeds where there are only links to be looked at.
func Dial() (*Conn, error) {
	c := &Conn{}
	return c.open(dialDaemon(&c.replacement))
}

// DialKernel is Dial without a look for a daemon.
func DialKernel() (*Conn, error) {
	c := &Conn{kernel: true}
	return c.open(netlink.Dial)
}

func (c *Conn) open(dial dialer) (_ *Conn, err error) {
	if c.generic, err = dial.generic(&netlink.Config{Strict: true}); err != nil {
		return nil, err
	}
	if c.route, err = dial(unix.NETLINK_ROUTE, &netlink.Config{Strict: true}); err != nil {
		c.generic.Close()
		return nil, fmt.Errorf("open route netlink socket: %w", err)
	}
	return c, nil
}

// Close closes the connection. Links and peers made over it stay.
func (c *Conn) Close() error { return errors.Join(c.generic.Close(), c.route.Close()) }

// request sends one message of the family about an interface.
func (c *Conn) request(command uint8, flags netlink.HeaderFlags, ifindex int, add func(*netlink.AttributeEncoder)) ([]genetlink.Message, error) {
	a := netlink.NewAttributeEncoder()
	a.Uint32(uapi.AttrIfindex, uint32(ifindex))
	if add != nil {
		add(a)
	}
	data, err := a.Encode()
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	message := genetlink.Message{
		Header: genetlink.Header{Command: command, Version: uapi.FamilyVersion},
		Data:   data,
	}
	known := c.family.Load()
	if known == 0 {
		if known, err = c.lookUp(); err != nil {
			return nil, err
		}
	}
	messages, err := c.generic.Execute(message, uint16(known), netlink.Request|flags)
	if errors.Is(err, unix.ENOENT) {
		// That is the answer of a module which has been loaded anew, with another id, as well.
		now, lookUpErr := c.lookUp()
		if lookUpErr != nil {
			return nil, lookUpErr
		}
		if now != known {
			messages, err = c.generic.Execute(message, uint16(now), netlink.Request|flags)
		}
	}
	return messages, answered(err)
}

// lookUp asks for the family's id and remembers it.
func (c *Conn) lookUp() (id uint32, err error) {
	family, err := findFamily(c.generic)
	if err != nil {
		return 0, err
	}
	c.family.Store(uint32(family.ID))
	return uint32(family.ID), nil
}

func findFamily(conn *genetlink.Conn) (genetlink.Family, error) {
	family, err := conn.GetFamily(uapi.FamilyName)
	if errors.Is(err, unix.ENOENT) {
		return family, ErrNoFamily
	}
	if err != nil {
		return family, fmt.Errorf("look up netlink family %q: %w", uapi.FamilyName, err)
	}
	return family, nil
}
