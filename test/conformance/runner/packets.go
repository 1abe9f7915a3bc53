package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"ovpn-go/test/conformance/script"
)

// longest is more than any packet has bytes.
const longest = 128 << 10

// reader takes what has arrived on a descriptor, without waiting.
type reader func(fd int) []script.Datagram

// openForPackets opens a socket of a kind that packets are sent and received on.
func (s *state) openForPackets(step *script.Step) (int, error) {
	switch step.Kind {
	case script.UDP:
		domain, address, err := sockaddr(step.Address)
		if err != nil {
			return -1, err
		}
		s.read(step.On, readUDP)
		return bound(domain, unix.SOCK_DGRAM, 0, address)
	case script.TCP:
		_, address, err := sockaddr(step.Address)
		if err != nil {
			return -1, err
		}
		near, far, err := connectedTCP(address)
		if err != nil {
			return -1, err
		}
		s.read(step.On, endOnce(readRecord))
		s.read(step.On+script.FarEnd, endOnce(recordsOf()))
		return near, s.name(step.On+script.FarEnd, far)
	case script.Tap:
		s.read(step.On, readTap)
		return openTap(step.Address)
	default:
		address, err := netip.ParseAddr(step.Address)
		if err != nil {
			return -1, err
		}
		domain := unix.AF_INET
		if address.Is6() {
			domain = unix.AF_INET6
		}
		return unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	}
}

func (s *state) read(name string, r reader) {
	s.packets = append(s.packets, name)
	s.readers[name] = r
}

// sockaddr reads an address with a port. With an unspecified IPv6 address a socket takes IPv4 as well.
func sockaddr(text string) (domain int, _ unix.Sockaddr, err error) {
	address, err := netip.ParseAddrPort(text)
	if err != nil {
		return 0, nil, err
	}
	if address.Addr().Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(address.Port()), Addr: address.Addr().As4()}, nil
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Port: int(address.Port()), Addr: address.Addr().As16()}, nil
}

func openTap(device string) (int, error) {
	index, err := indexOf(device)
	if err != nil {
		return -1, err
	}
	// Of no protocol until it is bound: nothing of other interfaces arrives.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
		return -1, err
	}
	return fd, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: swapped(unix.ETH_P_ALL), Ifindex: index})
}

// swapped is a number in network byte order.
func swapped(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

func indexOf(device string) (index int, err error) {
	err = control(func(fd int) error {
		request, err := unix.NewIfreq(device)
		if err != nil {
			return err
		}
		if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, request); err != nil {
			return err
		}
		index = int(request.Uint32())
		return nil
	})
	return index, err
}

// emit sends packets and notes what the system calls refuse.
func (s *state) emit(emissions []script.Emission) (notes []string, err error) {
	for i, e := range emissions {
		if err := s.emitOne(&e); err != nil {
			var number unix.Errno
			if !errors.As(err, &number) {
				return notes, err
			}
			notes = append(notes, fmt.Sprintf("packet %d: %s", i+1, unix.ErrnoName(number)))
		}
	}
	return notes, nil
}

func (s *state) emitOne(e *script.Emission) error {
	fd, ok := s.open[e.On]
	if !ok {
		return fmt.Errorf("there is no socket %q", e.On)
	}
	var to unix.Sockaddr
	switch {
	case e.Protocol != 0:
		name, err := unix.Getsockname(fd)
		if err != nil {
			return err
		}
		at, ok := name.(*unix.SockaddrLinklayer)
		if !ok {
			return fmt.Errorf("%q is no tap", e.On)
		}
		to = &unix.SockaddrLinklayer{Protocol: swapped(e.Protocol), Ifindex: at.Ifindex}
	case e.To == "":
		_, err := unix.SendmsgN(fd, e.Data, nil, nil, unix.MSG_NOSIGNAL)
		return err
	default:
		destination := e.To
		if address, err := netip.ParseAddr(destination); err == nil {
			destination = netip.AddrPortFrom(address, 0).String()
		}
		_, address, err := sockaddr(destination)
		if err != nil {
			return err
		}
		to = address
	}
	return unix.Sendto(fd, e.Data, 0, to)
}

func readUDP(fd int) (all []script.Datagram) {
	for {
		buf := make([]byte, longest)
		n, from, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EAGAIN) {
			return all
		}
		if err != nil {
			return append(all, script.Datagram{Error: errno(err), From: "nobody"})
		}
		all = append(all, script.Datagram{Data: buf[:n], From: addressText(from)})
	}
}

func addressText(address unix.Sockaddr) string {
	switch a := address.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)).String()
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port)).String()
	}
	return "nobody"
}

func readTap(fd int) (all []script.Datagram) {
	for {
		buf := make([]byte, longest)
		n, from, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EAGAIN) {
			return all
		}
		if err != nil {
			return append(all, script.Datagram{Error: errno(err), From: "the interface"})
		}
		text := "the interface"
		if at, ok := from.(*unix.SockaddrLinklayer); ok {
			text += fmt.Sprintf(", protocol %#04x, packet type %d", swapped(at.Protocol), at.Pkttype)
		}
		all = append(all, script.Datagram{Data: buf[:n], From: text})
	}
}

// readRecord reads what each call returns: on a socket that the module has taken over, a record.
func readRecord(fd int) (all []script.Datagram) {
	for {
		buf := make([]byte, longest)
		n, _, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return all
		case err != nil:
			return append(all, script.Datagram{Error: errno(err), From: "the connection"})
		case n == 0:
			return append(all, script.Datagram{From: "the connection, which has ended"})
		}
		all = append(all, script.Datagram{Data: buf[:n], From: "the connection"})
	}
}

// recordsOf cuts a stream into records, however the reads cut it.
func recordsOf() reader {
	var stream []byte
	return func(fd int) (all []script.Datagram) {
		for _, d := range readRecord(fd) {
			if d.Error != 0 || len(d.Data) == 0 {
				all = append(all, script.Datagram{Data: stream, From: "the stream, as its last bytes"}, d)
				stream = nil
				continue
			}
			stream = append(stream, d.Data...)
			for len(stream) >= 2 {
				end := 2 + int(binary.BigEndian.Uint16(stream))
				if len(stream) < end {
					break
				}
				all = append(all, script.Datagram{Data: append([]byte(nil), stream[:end]...), From: "the stream"})
				stream = stream[end:]
			}
		}
		return all
	}
}

// endOnce says once that a stream has ended, which each read says again.
func endOnce(r reader) reader {
	ended := false
	return func(fd int) []script.Datagram {
		if ended {
			return nil
		}
		all := r(fd)
		if n := len(all); n > 0 && all[n-1].Error == 0 && len(all[n-1].Data) == 0 {
			ended = true
		}
		return all
	}
}

// stats asks for the counters of an interface.
func (s *state) stats(device string) ([]string, error) {
	index, err := indexOf(device)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	msg := binary.NativeEndian.AppendUint32(nil, 16+unix.SizeofIfInfomsg)
	msg = binary.NativeEndian.AppendUint16(msg, unix.RTM_GETLINK)
	msg = binary.NativeEndian.AppendUint16(msg, unix.NLM_F_REQUEST)
	msg = append(msg, make([]byte, 8+unix.SizeofIfInfomsg)...)
	binary.NativeEndian.PutUint32(msg[20:], uint32(index))
	if err := unix.Sendto(fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	buf := make([]byte, 64<<10)
	n, _, err := unix.Recvfrom(fd, buf, 0)
	if err != nil {
		return nil, err
	}
	if n < 16+unix.SizeofIfInfomsg || binary.NativeEndian.Uint16(buf[4:]) != unix.RTM_NEWLINK {
		return nil, fmt.Errorf("%x answers RTM_GETLINK", buf[:n])
	}
	var notes []string
	attributes(buf[16+unix.SizeofIfInfomsg:n], func(kind uint16, value []byte) {
		if kind != unix.IFLA_STATS64 || len(value) < 3*8 {
			return
		}
		// Of struct rtnl_link_stats64.
		for _, counter := range []struct {
			name   string
			offset int
		}{{"rx_packets", 0}, {"rx_bytes", 16}} {
			notes = append(notes, fmt.Sprintf("%s %d", counter.name, binary.NativeEndian.Uint64(value[counter.offset:])))
		}
	})
	return notes, nil
}
