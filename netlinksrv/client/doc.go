// Package client speaks to Linux's generic-netlink family "ovpn" and makes links of its kind. Who answers is not its
// concern: the kernel's module, this program where the caller runs under "ovpn-go exec", or the daemon "ovpn-go serve", which is asked
// where it is found (package netlinksrv/daemon/wire).
//
// A Conn sends requests, one at a time, and returns what is answered. A Monitor receives what is announced. Both work in
// one network namespace, that of the thread that dials. An error that the other side answered with carries the errno
// for errors.Is, and in its text the explanation that Linux adds (NETLINK_EXT_ACK).
//
// What the requests mean, and when each fails, is the kernel's: Documentation/netlink/specs/ovpn.yaml.
package client
