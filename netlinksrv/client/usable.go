package client

import (
	"errors"

	"golang.org/x/sys/unix"
)

// loopback is the index of the loopback interface in every namespace, which is never of kind ovpn.
const loopback = 1

// Usable asks something that changes nothing and takes the same rights as everything else. It returns nil if the family answers
// the caller, ErrNoFamily if there is none, and EPERM if the caller has not the rights: a family that can be looked up proves nothing, as
// Linux's module wants CAP_NET_ADMIN in the initial user namespace.
func (c *Conn) Usable() error {
	_, err := c.Peers(loopback)
	if errors.Is(err, unix.EINVAL) {
		return nil // the interface is not of kind ovpn: so far only those come who may
	}
	return err
}
