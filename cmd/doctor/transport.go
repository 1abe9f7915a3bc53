package doctor

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// What the transport sockets can do.

// udp opens a UDP socket on the loopback address with room for others.
func udp() (fd int, address *unix.SockaddrInet4, err error) {
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return -1, nil, fmt.Errorf("socket: %w", err)
	}
	address = &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
	if err := unix.Bind(fd, address); err != nil {
		unix.Close(fd)
		return -1, nil, fmt.Errorf("bind: %w", err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		unix.Close(fd)
		return -1, nil, fmt.Errorf("getsockname: %w", err)
	}
	address.Port = name.(*unix.SockaddrInet4).Port
	return fd, address, nil
}

func (Doctor) portSharing() Finding {
	const effect = "data packets can't be told from control packets on a client's UDP port: OpenVPN works over TCP only"
	first, address, err := udp()
	if err != nil {
		return failed(err.Error(), effect, "")
	}
	defer unix.Close(first)
	// As with a client's socket, which was bound without a thought of others.
	if err := unix.SetsockoptInt(first, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		return failed(fmt.Sprintf("SO_REUSEPORT: %v", err), effect, "allow setsockopt in the container's seccomp profile")
	}
	second, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return failed(fmt.Sprintf("socket: %v", err), effect, "")
	}
	defer unix.Close(second)
	if err := unix.SetsockoptInt(second, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		return failed(fmt.Sprintf("SO_REUSEPORT: %v", err), effect, "")
	}
	if err := unix.Bind(second, address); err != nil {
		return failed(fmt.Sprintf("bind a second socket to the port: %v", err), effect, "")
	}
	// The program chooses the first socket, whatever comes.
	program := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K}}
	if err := unix.SetsockoptSockFprog(second, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF,
		&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}); err != nil {
		return failed(fmt.Sprintf("SO_ATTACH_REUSEPORT_CBPF: %v", err), effect, "allow setsockopt in the container's seccomp profile")
	}
	return ok("data packets can be told from control packets on a client's UDP port")
}

// segments sends three datagrams in one call and returns how the receiver got the first.
func segments(coalesce bool) (first int, err error) {
	const size, total = 100, 300
	receiver, address, err := udp()
	if err != nil {
		return 0, err
	}
	defer unix.Close(receiver)
	sender, _, err := udp()
	if err != nil {
		return 0, err
	}
	defer unix.Close(sender)
	if err := unix.SetsockoptInt(sender, unix.IPPROTO_UDP, unix.UDP_SEGMENT, size); err != nil {
		return 0, fmt.Errorf("UDP_SEGMENT: %w", err)
	}
	if coalesce {
		if err := unix.SetsockoptInt(receiver, unix.IPPROTO_UDP, unix.UDP_GRO, 1); err != nil {
			return 0, fmt.Errorf("UDP_GRO: %w", err)
		}
	}
	timeout := unix.NsecToTimeval(time.Second.Nanoseconds())
	if err := unix.SetsockoptTimeval(receiver, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return 0, fmt.Errorf("SO_RCVTIMEO: %w", err)
	}
	if err := unix.Sendto(sender, make([]byte, total), 0, address); err != nil {
		return 0, fmt.Errorf("send: %w", err)
	}
	n, _, err := unix.Recvfrom(receiver, make([]byte, 2*total), 0)
	if err != nil {
		return 0, fmt.Errorf("receive: %w", err)
	}
	return n, nil
}

// loopbackDown is the finding where the loopback interface is down, as in a namespace that nobody has set up.
func loopbackDown() Finding {
	return degraded("it can't be tried: the loopback interface is down",
		"packets are received one by one, as the client's could not be given back", "ip link set lo up")
}

func (Doctor) udpSegmentation() Finding {
	_, err := segments(false)
	if errors.Is(err, unix.ENETUNREACH) {
		return loopbackDown()
	}
	if err != nil {
		return degraded(err.Error(), "each packet is sent by itself, about a fifth of the speed", "use Linux 4.18 or later")
	}
	return ok("many packets are sent in one call (UDP_SEGMENT)")
}

func (Doctor) udpCoalescing() Finding {
	n, err := segments(true)
	if errors.Is(err, unix.ENETUNREACH) {
		return loopbackDown()
	}
	if err != nil {
		return degraded(err.Error(), "each packet is received by itself, about a third of the speed", "use Linux 5.12 or later")
	}
	return ok("many packets are received in one call (UDP_GRO): %d bytes", n)
}

// controlPackets that were merged with data packets on the way in are given back to the client through a raw socket.
func (Doctor) controlPackets() Finding {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return degraded(fmt.Sprintf("raw sockets: %v", err), "packets are received one by one, so that none of the client's gets lost among them", "add the capability NET_RAW")
	}
	unix.Close(fd)
	return ok("raw sockets can be opened")
}

func (Doctor) socketBuffers() Finding {
	const wanted = 7 << 20 // bytes
	fd, _, err := udp()
	if err != nil {
		return degraded(err.Error(), "", "")
	}
	defer unix.Close(fd)
	for _, side := range []struct {
		name          string
		force, option int
	}{
		{"receive", unix.SO_RCVBUFFORCE, unix.SO_RCVBUF},
		{"send", unix.SO_SNDBUFFORCE, unix.SO_SNDBUF},
	} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, side.force, wanted) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, side.option, wanted) // what came of it is read below
		}
		got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, side.option)
		if err != nil {
			return degraded(fmt.Sprintf("getsockopt: %v", err), "", "")
		}
		got /= 2 // the kernel shows twice what can be used
		if got < wanted {
			return degraded(fmt.Sprintf("a socket's %s buffer has at most %d KiB", side.name, got>>10),
				"bursts of packets get lost at high rates", fmt.Sprintf("sysctl -w net.core.rmem_max=%d net.core.wmem_max=%d", wanted, wanted))
		}
	}
	return ok("buffers of %d MiB", wanted>>20)
}

// socketWatch is how the end of a socket is noticed that nobody announces.
func (Doctor) socketWatch() Finding {
	fail := func(call string, err error) Finding {
		return degraded(fmt.Sprintf("%s: %v", call, err), "a transport socket that its client closes without a word is noticed late",
			"use a kernel with CONFIG_INET_DIAG and CONFIG_INET_UDP_DIAG")
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return fail("socket", err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fail("bind", err)
	}
	const udpDestroy = 2 // SKNLGRP_INET_UDP_DESTROY
	if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, udpDestroy); err != nil {
		return fail("join the group of closed sockets", err)
	}
	return ok("the end of sockets is announced")
}
