package exec

import (
	"bytes"
	"encoding/binary"
	"fmt"
	osexec "os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Who is a member of the group of links is told of ours as of links of kind ovpn, however it joined and whoever
// changes them.
func TestMembersOfTheGroupOfLinks(t *testing.T) {
	requireTool(t, "ip")
	for _, role := range []string{"members-by-bind", "members-by-option", "members-unbound"} {
		t.Run(role, func(t *testing.T) { withRealServer(t, roleCommand(role)...) })
	}
}

// heardOf is what a member of the group of links is told: of which link, and of which kind.
type heardOf struct {
	message    uint16
	name, kind string
	mode       string // bytes of IFLA_INFO_DATA
	change     uint32
}

// parseHeard reads an RTM_NEWLINK or RTM_DELLINK.
func parseHeard(m []byte) (h heardOf) {
	h.message, h.change = messageType(m), binary.NativeEndian.Uint32(m[28:])
	decode := func(b []byte, fn func(kind uint16, value []byte)) {
		for len(b) >= 4 {
			n := int(binary.NativeEndian.Uint16(b))
			fn(binary.NativeEndian.Uint16(b[2:])&0x3fff, b[4:n])
			b = b[min((n+3)&^3, len(b)):]
		}
	}
	decode(m[32:], func(kind uint16, value []byte) {
		switch kind {
		case unix.IFLA_IFNAME:
			h.name = string(bytes.TrimRight(value, "\x00"))
		case unix.IFLA_LINKINFO:
			decode(value, func(kind uint16, value []byte) {
				switch kind {
				case unix.IFLA_INFO_KIND:
					h.kind = string(bytes.TrimRight(value, "\x00"))
				case unix.IFLA_INFO_DATA:
					h.mode = fmt.Sprintf("%x", value)
				}
			})
		}
	})
	return h
}

// awaitHeard receives until something is said of a link of that name.
func awaitHeard(fd int, name string) (heardOf, error) {
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, 20000); n != 1 {
			return heardOf{}, fmt.Errorf("nothing of %s: %v", name, err)
		}
		buf := make([]byte, 16384)
		n, _, _, from, err := receive(fd, buf, nil, unix.MSG_DONTWAIT)
		if err != nil {
			return heardOf{}, err
		}
		if len(from) != netlinkAddressSize || !bytes.Equal(from[4:8], make([]byte, 4)) {
			return heardOf{}, fmt.Errorf("source address %x", from)
		}
		for m := range messages(buf[:n]) {
			switch messageType(m) {
			case unix.RTM_NEWLINK, unix.RTM_DELLINK:
				if h := parseHeard(m); h.name == name {
					return h, nil
				}
			}
		}
	}
}

func init() {
	const ours = "0500010000000000"
	ip := func(arguments ...string) func() error {
		return func() error {
			if out, err := osexec.Command("ip", arguments...).CombinedOutput(); err != nil {
				return fmt.Errorf("ip %s: %w\n%s", strings.Join(arguments, " "), err, out)
			}
			return nil
		}
	}
	listen := func(fd int) error {
		hears := func(want heardOf) func() error {
			return func() error {
				got, err := awaitHeard(fd, want.name)
				return expect("what was heard", got, err, want)
			}
		}
		return steps{
			{"it is a pair", func() error { return expectPair(fd, true) }},
			{"another makes a link", ip("link", "add", "tun7", "type", "ovpn")},
			{"told once, when it is complete", hears(heardOf{unix.RTM_NEWLINK, "tun7", "ovpn", ours, ^uint32(0)})},
			{"another renames it", ip("link", "set", "tun7", "name", "tun8")},
			{"told of the new name", hears(heardOf{unix.RTM_NEWLINK, "tun8", "ovpn", ours, 0})},
			{"another makes a TUN interface", ip("tuntap", "add", "mode", "tun", "name", "alien")},
			{"which stays one", func() error {
				got, err := awaitHeard(fd, "alien")
				return expect("kind", got.kind, err, "tun")
			}},
			{"an answer comes behind what it announces", func() error {
				request := linkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK, 77, 0, attribute(unix.IFLA_IFNAME, []byte("tun8\x00")),
					attribute(unix.IFLA_MTU, binary.NativeEndian.AppendUint32(nil, 1300)))
				if err := toKernel(fd)(request); err != nil {
					return err
				}
				r, err := receiveRoute(fd)
				if err := expect("first", r.kind, err, uint16(unix.RTM_NEWLINK)); err != nil {
					return err
				}
				r, err = receiveRoute(fd)
				if err := expect("then", r.kind, err, uint16(unix.NLMSG_ERROR)); err != nil {
					return err
				}
				return expect("errno", r.errno, nil, int32(0))
			}},
			{"it still is a pair", func() error { return expectPair(fd, true) }},
			{"another deletes the link", ip("link", "del", "tun8")},
			{"told of the end", hears(heardOf{unix.RTM_DELLINK, "tun8", "ovpn", ours, ^uint32(0)})},
			{"it leaves the group", func() error {
				return unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_DROP_MEMBERSHIP, unix.RTNLGRP_LINK)
			}},
			{"and sends what is no question", func() error {
				_, err := expectError(fd, setMTU(78, 60000), 0)
				return err
			}},
			{"which gives it the real socket back", func() error { return expectPair(fd, false) }},
		}.run()
	}
	join := func(fd int) error {
		return unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.RTNLGRP_LINK)
	}
	roles["members-by-bind"] = func([]string) error {
		fd, err := openNetlink(unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: linkGroups | 1<<(unix.RTNLGRP_NEIGH-1)}); err != nil {
			return err
		}
		raw, err := socketName(fd)
		if err != nil {
			return err
		}
		address, err := parseNetlinkAddress(raw)
		want := netlinkAddress{uint32(unix.Getpid()), linkGroups | 1<<(unix.RTNLGRP_NEIGH-1)}
		if err := expect("name", address, err, want); err != nil {
			return err
		}
		return listen(fd)
	}
	roles["members-by-option"] = func([]string) error {
		fd, err := openNetlink(unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return err
		}
		if err := expectPair(fd, false); err != nil {
			return err
		}
		if err := join(fd); err != nil {
			return err
		}
		return listen(fd)
	}
	// Whoever asks for control data or for other groups keeps the real socket.
	roles["members-unbound"] = func([]string) error {
		other, err := openNetlink(unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		if err := unix.SetsockoptInt(other, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.RTNLGRP_IPV4_ROUTE); err != nil {
			return err
		}
		if err := expectPair(other, false); err != nil {
			return err
		}
		if err := unix.SetsockoptInt(other, unix.SOL_NETLINK, unix.NETLINK_PKTINFO, 1); err != nil {
			return err
		}
		if err := join(other); err != nil {
			return err
		}
		if err := expectPair(other, false); err != nil {
			return fmt.Errorf("with NETLINK_PKTINFO: %w", err)
		}
		late, err := openNetlink(unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		if err := join(late); err != nil {
			return err
		}
		if err := unix.SetsockoptInt(late, unix.SOL_NETLINK, unix.NETLINK_PKTINFO, 1); err != nil {
			return err
		}
		if err := expectPair(late, false); err != nil {
			return fmt.Errorf("with NETLINK_PKTINFO after joining: %w", err)
		}
		fd, err := openNetlink(unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		if err := join(fd); err != nil {
			return err
		}
		if port, err := boundPort(fd); err != nil || port != 0 {
			return fmt.Errorf("port %d before the first request, %v", port, err)
		}
		if err := expectLoopback(fd, 5, "lo"); err != nil {
			return err
		}
		return listen(fd)
	}
}
