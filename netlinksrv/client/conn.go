package client

import (
	"errors"
	"fmt"
	"strings"

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
	route   *netlink.Conn
}

// Dial opens a connection in the network namespace of the calling thread. It does not ask for the family yet, so
// that it succeeds where there are only links to be looked at.
func Dial() (*Conn, error) {
	generic, err := genetlink.Dial(&netlink.Config{Strict: true})
	if err != nil {
		return nil, fmt.Errorf("open generic netlink socket: %w", err)
	}
	route, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{Strict: true})
	if err != nil {
		generic.Close()
		return nil, fmt.Errorf("open route netlink socket: %w", err)
	}
	return &Conn{generic: generic, route: route}, nil
}

// Close closes the connection. Links and peers made over it stay.
func (c *Conn) Close() error { return errors.Join(c.generic.Close(), c.route.Close()) }

// request sends one message of the family about an interface.
func (c *Conn) request(command uint8, flags netlink.HeaderFlags, ifindex int, add func(*netlink.AttributeEncoder)) ([]genetlink.Message, error) {
	family, err := findFamily(c.generic)
	if err != nil {
		return nil, err
	}
	a := netlink.NewAttributeEncoder()
	a.Uint32(uapi.AttrIfindex, uint32(ifindex))
	if add != nil {
		add(a)
	}
	data, err := a.Encode()
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	messages, err := c.generic.Execute(genetlink.Message{
		Header: genetlink.Header{Command: command, Version: uapi.FamilyVersion},
		Data:   data,
	}, family.ID, netlink.Request|flags)
	return messages, answered(err)
}

// findFamily asks each time, because the module may have been loaded anew, with another id.
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
