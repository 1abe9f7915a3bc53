package main

import (
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"ovpn-go/test/conformance/script"
)

// enter goes to a network namespace of the sequence and makes it if it is new.
func (s *state) enter(name string) error {
	fd, known := s.namespaces[name]
	if known {
		return unix.Setns(fd, unix.CLONE_NEWNET)
	}
	if name != "home" {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	s.namespaces[name] = fd
	s.open[script.NamespaceFD+name] = fd
	if err := setUp("lo", true); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}

// openSocket opens something that may be passed off as a transport socket.
func (s *state) openSocket(step *script.Step) error {
	any4 := &unix.SockaddrInet4{Port: step.Number}
	any6 := &unix.SockaddrInet6{Port: step.Number}
	var fd int
	var err error
	switch step.Kind {
	case "udp4":
		fd, err = bound(unix.AF_INET, unix.SOCK_DGRAM, 0, any4)
	case "udp4-unbound":
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	case "udp6":
		fd, err = bound(unix.AF_INET6, unix.SOCK_DGRAM, 0, any6)
	case "udp6-only":
		if fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err == nil {
			if err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err == nil {
				err = unix.Bind(fd, any6)
			}
		}
	case "udp4-connected":
		if fd, err = bound(unix.AF_INET, unix.SOCK_DGRAM, 0, any4); err == nil {
			err = unix.Connect(fd, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{127, 0, 0, 1}})
		}
	case "udp4-encap":
		if fd, err = bound(unix.AF_INET, unix.SOCK_DGRAM, 0, any4); err == nil {
			const espInUDP = 2 // UDP_ENCAP_ESPINUDP
			err = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_ENCAP, espInUDP)
		}
	case "tcp4":
		var far int
		if fd, far, err = connectedTCP(&unix.SockaddrInet4{Port: step.Number, Addr: [4]byte{127, 0, 0, 1}}); err == nil {
			s.extra = append(s.extra, far)
		}
	case "tcp4-listening":
		if fd, err = bound(unix.AF_INET, unix.SOCK_STREAM, 0, any4); err == nil {
			err = unix.Listen(fd, 1)
		}
	case "tcp4-new":
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	case "unix":
		fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	case "icmp":
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	case "netlink":
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_USERSOCK)
	case "file":
		fd, err = unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	case "epoll":
		fd, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	case "pipe":
		var ends [2]int
		err = unix.Pipe2(ends[:], unix.O_CLOEXEC)
		fd = ends[0]
		s.extra = append(s.extra, ends[1])
	case script.UDP, script.TCP, script.Tap, script.RawIP:
		fd, err = s.openForPackets(step)
	default:
		return fmt.Errorf("unknown kind of socket %q", step.Kind)
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", step.Kind, err)
	}
	return s.name(step.On, fd)
}

// name gives a descriptor its name and number.
func (s *state) name(name string, fd int) error {
	at := s.nextFD
	s.nextFD++
	if err := unix.Dup3(fd, at, unix.O_CLOEXEC); err != nil {
		return os.NewSyscallError("dup3", err)
	}
	unix.Close(fd)
	s.open[name] = at
	return nil
}

func bound(domain, kind, protocol int, address unix.Sockaddr) (int, error) {
	fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return -1, err
	}
	return fd, unix.Bind(fd, address)
}

// connectedTCP returns both ends of a connection over the loopback interface, from the local address given.
func connectedTCP(local unix.Sockaddr) (near, far int, err error) {
	domain, loopback := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	if _, ok := local.(*unix.SockaddrInet6); ok {
		domain, loopback = unix.AF_INET6, &unix.SockaddrInet6{Addr: [16]byte{15: 1}}
	}
	listener, err := bound(domain, unix.SOCK_STREAM, 0, loopback)
	if err != nil {
		return -1, -1, err
	}
	defer unix.Close(listener)
	if err := unix.Listen(listener, 1); err != nil {
		return -1, -1, err
	}
	name, err := unix.Getsockname(listener)
	if err != nil {
		return -1, -1, err
	}
	near, err = bound(domain, unix.SOCK_STREAM, 0, local)
	if err != nil {
		return -1, -1, err
	}
	if err := unix.Connect(near, name); err != nil {
		return -1, -1, err
	}
	far, _, err = unix.Accept4(listener, unix.SOCK_CLOEXEC)
	return near, far, err
}

// control runs fn with a socket for interface ioctls.
func control(fn func(fd int) error) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return fn(fd)
}

func (s *state) findInterface(name string) error {
	return control(func(fd int) error {
		request, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, request); err != nil {
			return err
		}
		s.results.Interfaces[name] = append(s.results.Interfaces[name], request.Uint32())
		return nil
	})
}

func setUp(name string, up bool) error {
	return control(func(fd int) error {
		request, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, request); err != nil {
			return err
		}
		flags := request.Uint16() &^ unix.IFF_UP
		if up {
			flags |= unix.IFF_UP
		}
		request.SetUint16(flags)
		return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
	})
}

// deleteLink deletes an interface by its name, if there is one.
func deleteLink(name string) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	value := append([]byte(name), 0)
	padded := append(value, make([]byte, (4-len(value)%4)%4)...)
	msg := binary.NativeEndian.AppendUint32(nil, uint32(16+unix.SizeofIfInfomsg+4+len(padded)))
	msg = binary.NativeEndian.AppendUint16(msg, unix.RTM_DELLINK)
	msg = binary.NativeEndian.AppendUint16(msg, unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	msg = append(msg, make([]byte, 8+unix.SizeofIfInfomsg)...)
	msg = binary.NativeEndian.AppendUint16(msg, uint16(4+len(value)))
	msg = binary.NativeEndian.AppendUint16(msg, unix.IFLA_IFNAME)
	msg = append(msg, padded...)
	if unix.Sendto(fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}) == nil {
		// The acknowledgement says no more than that the interface is gone.
		_, _, _ = unix.Recvfrom(fd, make([]byte, 4096), 0)
	}
}

// setAdmin gives the calling thread CAP_NET_ADMIN, or takes it from its effective set.
func setAdmin(on bool) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	const bit = 1 << unix.CAP_NET_ADMIN
	data[0].Effective &^= bit
	if on {
		data[0].Effective |= bit & data[0].Permitted
	}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	return nil
}
