package exec

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	osexec "os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv"
	"ovpn-go/tun/netns"
)

// linkRequest is a route message about a link.
func linkRequest(kind, flags uint16, sequence uint32, index int32, attributes ...[]byte) []byte {
	b := make([]byte, unix.NLMSG_HDRLEN+unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint16(b[4:], kind)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST|flags)
	binary.NativeEndian.PutUint32(b[8:], sequence)
	binary.NativeEndian.PutUint32(b[20:], uint32(index))
	for _, a := range attributes {
		b = append(b, a...)
	}
	binary.NativeEndian.PutUint32(b[0:], uint32(len(b)))
	return b
}

// attribute is a netlink attribute with its padding.
func attribute(kind uint16, payload []byte) []byte {
	b := make([]byte, 4, 4+len(payload)+3)
	binary.NativeEndian.PutUint16(b[0:], uint16(4+len(payload)))
	binary.NativeEndian.PutUint16(b[2:], kind)
	b = append(b, payload...)
	return append(b, make([]byte, -len(b)&3)...)
}

// setMTU is a request that changes the loopback interface, which is announced to its group.
func setMTU(sequence, mtu uint32) []byte {
	return linkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK, sequence, 1, attribute(unix.IFLA_MTU, binary.NativeEndian.AppendUint32(nil, mtu)))
}

// getLoopback asks for the loopback interface.
func getLoopback(sequence uint32) []byte {
	return linkRequest(unix.RTM_GETLINK, 0, sequence, 1)
}

// routeReply is what a library can see of a datagram.
type routeReply struct {
	kind     uint16
	sequence uint32
	port     uint32
	errno    int32 // of an NLMSG_ERROR
	body     []byte
}

// receiveRoute receives one datagram that must be there.
func receiveRoute(fd int) (routeReply, error) {
	buf := make([]byte, 16384)
	n, _, flags, from, err := receive(fd, buf, nil, unix.MSG_DONTWAIT)
	switch {
	case err != nil:
		return routeReply{}, fmt.Errorf("recvmsg: %w", err)
	case flags != 0:
		return routeReply{}, fmt.Errorf("flags %#x", flags)
	case len(from) != netlinkAddressSize || !bytes.Equal(from[2:8], make([]byte, 6)):
		return routeReply{}, fmt.Errorf("source address %x", from)
	case n < unix.NLMSG_HDRLEN:
		return routeReply{}, fmt.Errorf("%d bytes", n)
	}
	b := buf[:n]
	r := routeReply{kind: messageType(b), sequence: binary.NativeEndian.Uint32(b[8:]), port: binary.NativeEndian.Uint32(b[12:]), body: b[16:]}
	if r.kind == unix.NLMSG_ERROR {
		r.errno = int32(binary.NativeEndian.Uint32(b[16:]))
	}
	return r, nil
}

// exchange sends a request and returns the answer, which must be there when the send returns.
func exchange(fd int, request []byte) (routeReply, error) {
	if err := toKernel(fd)(request); err != nil {
		return routeReply{}, fmt.Errorf("send: %w", err)
	}
	r, err := receiveRoute(fd)
	if err == nil && r.sequence != binary.NativeEndian.Uint32(request[8:]) {
		err = fmt.Errorf("sequence %d", r.sequence)
	}
	return r, err
}

// expectError sends a request and expects an NLMSG_ERROR with an errno, 0 for an acknowledgement.
func expectError(fd int, request []byte, errno unix.Errno) (routeReply, error) {
	r, err := exchange(fd, request)
	if err == nil && r.kind != unix.NLMSG_ERROR {
		err = fmt.Errorf("answer of type %d", r.kind)
	}
	if err == nil && r.errno != -int32(errno) {
		err = fmt.Errorf("answer is error %d, want %d", r.errno, -int32(errno))
	}
	return r, err
}

// expectLoopback asks for the loopback interface and says under which name it comes.
func expectLoopback(fd int, sequence uint32, name string) error {
	r, err := exchange(fd, getLoopback(sequence))
	if err != nil {
		return err
	}
	if r.kind != unix.RTM_NEWLINK || !bytes.Contains(r.body, attribute(unix.IFLA_IFNAME, []byte(name+"\x00"))) {
		return fmt.Errorf("answer of type %d: %q", r.kind, r.body)
	}
	port, err := boundPort(fd)
	return expect("the answer's port", r.port, err, port)
}

func boundPort(fd int) (uint32, error) {
	raw, err := socketName(fd)
	if err != nil {
		return 0, err
	}
	address, err := parseNetlinkAddress(raw)
	return address.port, err
}

// isPair says whether the descriptor is a UNIX socket, whatever it says of itself.
func isPair(fd int) (bool, error) {
	low, err := unix.Dup(fd) // is not notified
	if err != nil {
		return false, err
	}
	defer unix.Close(low)
	domain, err := unix.GetsockoptInt(low, unix.SOL_SOCKET, unix.SO_DOMAIN)
	return domain == unix.AF_UNIX, err
}

func expectPair(fd int, want bool) error {
	got, err := isPair(fd)
	return expect("is a pair", got, err, want)
}

// routeServer relays GETLINK, upper-cases the loopback interface's name on the way, and has its
// own answers for requests with an interface name that is a verdict.
func routeServer() *fakeServer {
	s := newFakeServer()
	s.routed = func(_ netlinksrv.Task, _ *netns.NS, datagram []byte) netlinksrv.Verdict {
		for m := range messages(datagram) {
			switch {
			case bytes.Contains(m, []byte("acknowledge\x00")):
				return netlinksrv.Acknowledge
			case bytes.Contains(m, []byte("refuse\x00")):
				return netlinksrv.Refuse(unix.ERANGE)
			case messageType(m) == unix.RTM_GETLINK:
				return netlinksrv.Relay
			}
		}
		return netlinksrv.Native
	}
	s.rewrite = func(_ netns.ID, datagram []byte) []byte {
		return bytes.ReplaceAll(datagram, attribute(unix.IFLA_IFNAME, []byte("lo\x00")), attribute(unix.IFLA_IFNAME, []byte("LO\x00")))
	}
	return s
}

func named(kind, flags uint16, sequence uint32, name string) []byte {
	return linkRequest(kind, flags, sequence, 0, attribute(unix.IFLA_IFNAME, []byte(name+"\x00")))
}

func init() {
	roles["route"] = func([]string) error {
		fd, err := openNetlink(unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		port := uint32(os.Getpid())
		return steps{
			{"it is a real socket", func() error { return expectPair(fd, false) }},
			{"an unbound socket is acknowledged and bound as by its own send", func() error {
				r, err := expectError(fd, named(unix.RTM_NEWLINK, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, 1, "acknowledge"), 0)
				if err != nil {
					return err
				}
				if err := expect("payload of an acknowledgement", len(r.body), nil, 20); err != nil {
					return err
				}
				// The type is a no-operation's; all the rest of the header is the request's.
				want := named(unix.RTM_NEWLINK, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, 1, "acknowledge")[:16]
				binary.NativeEndian.PutUint16(want[4:], unix.NLMSG_NOOP)
				if err := expect("echoed header", string(r.body[4:]), nil, string(want)); err != nil {
					return err
				}
				if err := expect("port", r.port, nil, port); err != nil {
					return err
				}
				return expectName(fd, port)
			}},
			{"no acknowledgement for who does not ask", func() error {
				if err := toKernel(fd)(named(unix.RTM_NEWLINK, 0, 2, "acknowledge")); err != nil {
					return err
				}
				return expectEmpty(fd)
			}},
			{"it is still a real socket", func() error { return expectPair(fd, false) }},
			{"a refusal", func() error {
				r, err := expectError(fd, named(unix.RTM_NEWLINK, unix.NLM_F_ACK, 3, "refuse"), unix.ERANGE)
				if err != nil {
					return err
				}
				return expect("echoed request", string(r.body[4:]), nil, string(named(unix.RTM_NEWLINK, unix.NLM_F_ACK, 3, "refuse")))
			}},
			{"it is a pair now", func() error { return expectPair(fd, true) }},
			{"with the same port", func() error { return expectName(fd, port) }},
			{"and the same flags", func() error {
				flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
				if err := expect("F_GETFD", flags, err, unix.FD_CLOEXEC); err != nil {
					return err
				}
				flags, err = unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
				return expect("F_GETFL", flags, err, unix.O_RDWR)
			}},
			{"and what a netlink socket says of itself", func() error {
				for option, want := range map[int]int{unix.SO_DOMAIN: unix.AF_NETLINK, unix.SO_TYPE: unix.SOCK_RAW, unix.SO_PROTOCOL: unix.NETLINK_ROUTE} {
					got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, option)
					if err := expect(fmt.Sprint("option ", option), got, err, want); err != nil {
						return err
					}
				}
				raw, err := peerName(fd)
				return expect("peer name", string(raw), err, string(netlinkAddress{}.encode()))
			}},
			{"options reach the real socket", func() error {
				if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1); err != nil {
					return err
				}
				got, err := unix.GetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK)
				if err := expect("NETLINK_CAP_ACK", got, err, 1); err != nil {
					return err
				}
				r, err := expectError(fd, named(unix.RTM_NEWLINK, unix.NLM_F_ACK, 4, "refuse"), unix.ERANGE)
				return expect("payload of a capped refusal", len(r.body), err, 20)
			}},
			{"answers are rewritten", func() error { return expectLoopback(fd, 5, "LO") }},
			{"an acknowledgement through a pair", func() error {
				_, err := expectError(fd, named(unix.RTM_NEWLINK, unix.NLM_F_ACK, 6, "acknowledge"), 0)
				return err
			}},
			{"a dump", func() error {
				if err := toKernel(fd)(linkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP, 7, 0)); err != nil {
					return err
				}
				for {
					r, err := receiveRoute(fd)
					if err != nil {
						return err
					}
					if r.kind == unix.NLMSG_DONE {
						return expectEmpty(fd)
					}
				}
			}},
			{"a change is the client's own", func() error {
				_, err := expectError(fd, setMTU(8, 1301), 0)
				if err != nil {
					return err
				}
				return expectPair(fd, false)
			}},
			{"the port stays", func() error { return expectName(fd, port) }},
			{"and back again", func() error {
				if err := expectLoopback(fd, 9, "LO"); err != nil {
					return err
				}
				return expectPair(fd, true)
			}},
			{"several datagrams at once", func() error {
				// The second can't go with the first, so that the client has to come again.
				quiet := named(unix.RTM_NEWLINK, 0, 10, "acknowledge")
				lengths, err := sendMany(fd, quiet, setMTU(11, 1302))
				if err := expect("datagrams sent", len(lengths), err, 1); err != nil {
					return err
				}
				if err := expectEmpty(fd); err != nil {
					return err
				}
				lengths, err = sendMany(fd, setMTU(11, 1303))
				if err := expect("datagrams sent", len(lengths), err, 1); err != nil {
					return err
				}
				r, err := receiveRoute(fd)
				return expect("acknowledged", r.sequence, err, 11)
			}},
			{"notifications of a group come through a pair", func() error {
				if err := expectLoopback(fd, 12, "LO"); err != nil {
					return err
				}
				if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.RTNLGRP_LINK); err != nil {
					return err
				}
				other, err := openNetlink(0, unix.NETLINK_ROUTE)
				if err != nil {
					return err
				}
				if _, err := expectError(other, setMTU(13, 1304), 0); err != nil {
					return err
				}
				if err := awaitInput(fd); err != nil {
					return err
				}
				r, err := receiveRoute(fd)
				if err := expect("type", r.kind, err, unix.RTM_NEWLINK); err != nil {
					return err
				}
				return expect("names the interface", bytes.Contains(r.body, []byte("LO\x00")), nil, true)
			}},
			{"what is unread is not lost by a change", func() error {
				if err := toKernel(fd)(getLoopback(14)); err != nil {
					return err
				}
				if err := toKernel(fd)(setMTU(15, 1305)); err != nil {
					return err
				}
				seen := map[uint32]bool{}
				for len(seen) < 3 { // two answers and the notification
					if err := awaitInput(fd); err != nil {
						return err
					}
					r, err := receiveRoute(fd)
					if err != nil {
						return err
					}
					seen[r.sequence] = true
				}
				return expect("answers", seen[14] && seen[15], nil, true)
			}},
		}.run()
	}
	roles["route epoll"] = func([]string) error {
		fd, err := openNetlink(unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		set, err := unix.EpollCreate1(0)
		if err != nil {
			return err
		}
		other, err := unix.EpollCreate1(0)
		if err != nil {
			return err
		}
		event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: 17, Pad: 18}
		if err := unix.EpollCtl(set, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
			return err
		}
		if err := unix.EpollCtl(other, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: 17, Pad: 18}); err != nil {
			return err
		}
		// A registration of the same number that is another file's must stay as it is.
		spare, err := unix.Eventfd(1, 0)
		if err != nil {
			return err
		}
		return steps{
			{"nothing yet", func() error { return expectEvent(set, 0, 0) }},
			{"replaced while watched", func() error {
				if err := toKernel(fd)(getLoopback(1)); err != nil {
					return err
				}
				return expectPair(fd, true)
			}},
			{"level-triggered", func() error { return expectEvent(other, 20000, unix.EPOLLIN) }},
			{"edge-triggered", func() error { return expectEvent(set, 20000, unix.EPOLLIN) }},
			{"only once", func() error { return expectEvent(set, 0, 0) }},
			{"level-triggered again", func() error { return expectEvent(other, 0, unix.EPOLLIN) }},
			{"read", func() error { _, err := receiveRoute(fd); return err }},
			{"no longer", func() error { return expectEvent(other, 0, 0) }},
			{"the client can change it", func() error {
				if err := unix.EpollCtl(other, unix.EPOLL_CTL_MOD, fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT, Fd: 17, Pad: 18}); err != nil {
					return err
				}
				return expectEvent(other, 20000, unix.EPOLLOUT)
			}},
			{"back to the real socket", func() error {
				if err := toKernel(fd)(setMTU(2, 1306)); err != nil {
					return err
				}
				if err := expectPair(fd, false); err != nil {
					return err
				}
				if err := expectEvent(set, 20000, unix.EPOLLIN); err != nil {
					return err
				}
				_, err := receiveRoute(fd)
				return err
			}},
			{"the client can delete it", func() error {
				if err := unix.EpollCtl(set, unix.EPOLL_CTL_DEL, fd, nil); err != nil {
					return err
				}
				return unix.EpollCtl(set, unix.EPOLL_CTL_ADD, spare, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: 17, Pad: 18})
			}},
			{"which leaves the others", func() error { return expectEvent(set, 0, unix.EPOLLIN) }},
		}.run()
	}
}

func init() {
	// count prints how many links a dump has. It reads slowly, as a client may.
	roles["count"] = func([]string) error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		if err := toKernel(fd)(linkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP, 1, 0)); err != nil {
			return err
		}
		links := 0
		buf := make([]byte, 32768)
		for {
			n, err := ignoringEINTR(func() (int, error) { return unix.Read(fd, buf) })
			if err != nil {
				return err
			}
			for m := range messages(buf[:n]) {
				switch messageType(m) {
				case unix.RTM_NEWLINK:
					links++
				case unix.NLMSG_DONE:
					fmt.Println(links)
					return expectEmpty(fd)
				}
			}
		}
	}
}

// What has no room at the client's end waits with the kernel.
func TestDumpLargerThanThePair(t *testing.T) {
	requireTool(t, "ip")
	defer func(size int) { pairBuffer = size }(pairBuffer)
	pairBuffer = 8192
	inNewNamespace(t, func() {
		const bridges = 150
		var batch strings.Builder
		for i := range bridges {
			fmt.Fprintf(&batch, "link add br%d type bridge\n", i)
		}
		ip := osexec.Command("ip", "-batch", "-")
		ip.Stdin = strings.NewReader(batch.String())
		if out, err := ip.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
			return
		}
		relayed := false
		s := routeServer()
		s.rewrite = func(_ netns.ID, datagram []byte) []byte { relayed = true; return datagram }
		o := underSupervisor(t, s, nil, roleCommand("count")...)
		if want := fmt.Sprintln(bridges + 1); o.output != want || !relayed {
			t.Errorf("%v links, want %s", o, want)
		}
	})
}

// inNewNamespace runs a test's body on a thread in a network namespace of its own.
func inNewNamespace(t *testing.T, body func()) {
	t.Helper()
	requireRoot(t)
	ns, err := netns.Create()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if err := ns.Do(func() error { body(); return nil }); err != nil {
		t.Fatal(err)
	}
}

func TestRouteSocket(t *testing.T) {
	inNewNamespace(t, func() {
		before := openDescriptors(t)
		o := underSupervisor(t, routeServer(), nil, roleCommand("route")...)
		if o.err != nil || o.status != (Status{}) {
			t.Errorf("%v, %v\n%s", o.status, o.err, o.output)
		}
		if after := openDescriptors(t); after != before {
			t.Errorf("%d descriptors open, %d before", after, before)
		}
	})
}

func TestEpollFollowsTheDescriptor(t *testing.T) {
	inNewNamespace(t, func() {
		o := underSupervisor(t, routeServer(), nil, roleCommand("route epoll")...)
		if o.err != nil || o.status != (Status{}) {
			t.Errorf("%v, %v\n%s", o.status, o.err, o.output)
		}
	})
}
