package selftests

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// roundVariable makes this binary the client of the round with github.com/mdlayher/genetlink.
const roundVariable = "OVPN_GO_TEST_ROUND"

// Of include/uapi/linux/ovpn.h, once more: the code under test is not to judge itself.
const (
	peerNew, peerSet, peerGet, peerDel, peerDelNtf = 1, 2, 3, 4, 5
	keyNew, keyGet, keySwap, keyDel                = 6, 7, 8, 10
)

// genetlinkRound is the round of a Go program.
func genetlinkRound() error {
	if err := makeLink("tun0"); err != nil {
		return fmt.Errorf("new link: %w", err)
	}
	link, err := net.InterfaceByName("tun0")
	if err != nil {
		return err
	}
	transport, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return err
	}
	defer transport.Close()
	file, err := transport.File()
	if err != nil {
		return err
	}
	defer file.Close()

	requests, err := genetlink.Dial(nil)
	if err != nil {
		return err
	}
	defer requests.Close()
	family, err := requests.GetFamily("ovpn")
	if err != nil {
		return err
	}
	notices, err := genetlink.Dial(nil)
	if err != nil {
		return err
	}
	defer notices.Close()
	if err := notices.JoinGroup(family.Groups[0].ID); err != nil {
		return err
	}
	ask := func(cmd uint8, flags netlink.HeaderFlags, fill func(e *netlink.AttributeEncoder)) ([]genetlink.Message, error) {
		e := netlink.NewAttributeEncoder()
		e.Uint32(1, uint32(link.Index))
		if fill != nil {
			fill(e)
		}
		data, err := e.Encode()
		if err != nil {
			return nil, err
		}
		return requests.Execute(genetlink.Message{Header: genetlink.Header{Command: cmd, Version: family.Version}, Data: data},
			family.ID, netlink.Request|flags)
	}
	peer := func(fill func(e *netlink.AttributeEncoder) error) func(e *netlink.AttributeEncoder) {
		return func(e *netlink.AttributeEncoder) {
			e.Nested(2, func(e *netlink.AttributeEncoder) error {
				e.Uint32(1, 3)
				return fill(e)
			})
		}
	}
	only := func(*netlink.AttributeEncoder) error { return nil }
	key := func(fill func(e *netlink.AttributeEncoder)) func(e *netlink.AttributeEncoder) {
		return func(e *netlink.AttributeEncoder) {
			e.Nested(3, func(e *netlink.AttributeEncoder) error {
				e.Uint32(1, 3)
				if fill != nil {
					fill(e)
				}
				return nil
			})
		}
	}
	slot := func(n uint32) func(e *netlink.AttributeEncoder) {
		return key(func(e *netlink.AttributeEncoder) { e.Uint32(2, n) })
	}
	direction := func(e *netlink.AttributeEncoder) error {
		e.Bytes(1, make([]byte, 32))
		e.Bytes(2, make([]byte, 8))
		return nil
	}
	for _, step := range []struct {
		name  string
		cmd   uint8
		flags netlink.HeaderFlags
		fill  func(e *netlink.AttributeEncoder)
		// answers is how many messages come beside the acknowledgement, and refusal what the request is refused with.
		answers int
		refusal error
	}{
		{"new peer", peerNew, netlink.Acknowledge, peer(func(e *netlink.AttributeEncoder) error {
			e.Bytes(2, []byte{127, 0, 0, 1})
			e.Bytes(5, []byte{0, 9})
			e.Uint32(6, uint32(file.Fd()))
			return nil
		}), 0, nil},
		{"new key", keyNew, netlink.Acknowledge, key(func(e *netlink.AttributeEncoder) {
			e.Uint32(2, 0)
			e.Uint32(3, 5)
			e.Uint32(4, 1)
			e.Nested(5, direction)
			e.Nested(6, direction)
		}), 0, nil},
		{"key", keyGet, 0, slot(0), 1, nil},
		{"no key", keyGet, 0, slot(1), 0, unix.ENOENT},
		{"change peer", peerSet, netlink.Acknowledge, peer(func(e *netlink.AttributeEncoder) error {
			e.Uint32(13, 60)
			e.Uint32(14, 120)
			return nil
		}), 0, nil},
		{"peer", peerGet, 0, peer(only), 1, nil},
		{"peers", peerGet, netlink.Dump, nil, 1, nil},
		{"swap keys", keySwap, netlink.Acknowledge, key(nil), 0, nil},
		{"delete key", keyDel, netlink.Acknowledge, slot(1), 0, nil},
		{"delete peer", peerDel, netlink.Acknowledge, peer(only), 0, nil},
		{"delete peer again", peerDel, netlink.Acknowledge, peer(only), 0, unix.ENOENT},
	} {
		answers, err := ask(step.cmd, step.flags, step.fill)
		if !errors.Is(err, step.refusal) {
			return fmt.Errorf("%s: %v, want %v", step.name, err, step.refusal)
		}
		count := 0
		for _, m := range answers {
			if m.Header.Command == step.cmd && len(m.Data) > 0 {
				count++
			}
		}
		if count != step.answers {
			return fmt.Errorf("%s: %d answers, want %d", step.name, count, step.answers)
		}
	}
	if err := notices.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	heard, _, err := notices.Receive()
	if err != nil {
		return fmt.Errorf("notification: %w", err)
	}
	if len(heard) != 1 || heard[0].Header.Command != peerDelNtf {
		return fmt.Errorf("heard %v", heard)
	}
	_, err = fmt.Fprintln(os.Stdout, done)
	return err
}

// makeLink makes a link of kind ovpn.
func makeLink(name string) error {
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	e := netlink.NewAttributeEncoder()
	e.String(unix.IFLA_IFNAME, name)
	e.Nested(unix.IFLA_LINKINFO, func(e *netlink.AttributeEncoder) error {
		e.String(unix.IFLA_INFO_KIND, "ovpn")
		return nil
	})
	attributes, err := e.Encode()
	if err != nil {
		return err
	}
	_, err = conn.Execute(netlink.Message{
		Header: netlink.Header{
			Type: unix.RTM_NEWLINK, Flags: netlink.Request | netlink.Acknowledge | netlink.Create | netlink.Excl,
		},
		Data: append(binary.NativeEndian.AppendUint32(nil, 0), append(make([]byte, unix.SizeofIfInfomsg-4), attributes...)...),
	})
	return err
}
