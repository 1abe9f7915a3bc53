package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"syscall"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"ovpn-go/crypto"
	"ovpn-go/tun/netns"
)

// A connected UDP socket gets the datagrams of its peer before any reuseport group is looked at. It stays the client's
// all the same, with every duplicate that any process has of it: a socket filter hides data packets from it, and we take
// them elsewhere.
//
//   - A raw socket sees every datagram of the two addresses, wherever it comes in. Its filter leaves the data packets.
//     Nothing is merged there, so it is slow.
//   - A second UDP socket, connected alike but bound to the interface by which the data packets come, is preferred to the
//     client's there and receives merged datagrams. Control packets are given back to the client over the loopback
//     interface (groAssist), for which that socket steps aside. It follows the data packets to another interface.
//
// What we send leaves through a socket that receives nothing.

// errFiltered: the client's socket has a filter that can't be combined with ours.
var errFiltered = errors.New("the socket's filter can't be changed")

// connection is what there is for a connected client's socket beside the socket we send on. It belongs to the
// worker of the socket's device.
type connection struct {
	remote, local netip.AddrPort // unmapped
	raw           source
	front         source // fd -1: there is none
	ifindex       uint32 // where front is, 0 = nowhere
	came          uint32 // where the last data packet came in that front did not get
	moved         int64  // when it went there, boot-time seconds
}

// connectUDP makes the sockets for a client's connected socket: n to send on, and those of the connection. The errors are
// those of shareUDP, and errFiltered.
func connectUDP(client *os.File, n int) (out []int, conn *connection, info udpInfo, err error) {
	conn = &connection{raw: source{fd: -1}, front: source{fd: -1}}
	err = netns.Control(client, func(fd int) error {
		c, err := inspectUDP(fd)
		if err != nil {
			return err
		}
		info = c.udpInfo
		conn.remote, conn.local = c.remote, addrPortOf(c.addr)
		ns, err := netns.OfSocket(client)
		if err != nil {
			return err
		}
		defer ns.Close()
		return ns.Do(func() error {
			for range n {
				fd, err := c.beside()
				if err != nil {
					return err
				}
				out = append(out, fd)
			}
			if conn.front.fd, err = c.beside(); err != nil {
				return err
			}
			if err := conn.openRaw(c); err != nil {
				return err
			}
			return c.hideData()
		})
	})
	if err != nil {
		conn.close()
		for _, fd := range out {
			unix.Close(fd)
		}
		return nil, nil, info, fmt.Errorf("share connected UDP socket: %w", err)
	}
	return out, conn, info, nil
}

// close closes the descriptors, between turns.
func (conn *connection) close() {
	conn.abandonFront()
	if conn.raw.fd >= 0 {
		conn.raw.unpoll()
		unix.Close(conn.raw.fd)
		conn.raw.fd = -1
	}
}

// abandonFront leaves everything to the raw socket.
func (conn *connection) abandonFront() {
	if conn.front.fd >= 0 {
		conn.front.unpoll()
		unix.Close(conn.front.fd)
		conn.front.fd = -1
	}
}

// poll has the worker receive.
func (conn *connection) poll(w *worker) error {
	if conn.front.fd >= 0 {
		if err := w.poll(&conn.front, unix.EPOLLIN); err != nil {
			return err
		}
	}
	return w.poll(&conn.raw, unix.EPOLLIN)
}

// beside opens a socket at the client's address that receives nothing. It runs inside the client's namespace.
func (c *clientSocket) beside() (_ int, err error) {
	fd, err := unix.Socket(c.Family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_UDP)
	if err != nil {
		return -1, fmt.Errorf("open UDP socket: %w", err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	if err := c.imitate(fd); err != nil {
		return -1, err
	}
	if err := attachFilter(fd, []bpf.Instruction{bpf.RetConstant{Val: 0}}); err != nil {
		return -1, err
	}
	// The client's socket shares its address for the moment of the bind only: nobody else is to join. In a group the
	// kernel would put an IPv6 socket of ours behind the client's.
	reuse, err := unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR)
	if err != nil {
		return -1, fmt.Errorf("read SO_REUSEADDR of the client's socket: %w", err)
	}
	for _, o := range []struct{ fd, name, value int }{
		{fd, unix.SO_REUSEPORT, 0}, {fd, unix.SO_REUSEADDR, 1}, {c.fd, unix.SO_REUSEADDR, 1},
	} {
		if err := unix.SetsockoptInt(o.fd, unix.SOL_SOCKET, o.name, o.value); err != nil {
			return -1, fmt.Errorf("share the client's address: %w", err)
		}
	}
	err = unix.Bind(fd, c.addr)
	_ = unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, reuse)
	if err != nil {
		return -1, fmt.Errorf("bind beside the client's socket: %w", err)
	}
	return fd, nil
}

// openRaw opens the raw socket. It runs inside the client's namespace and needs CAP_NET_RAW there.
func (conn *connection) openRaw(c *clientSocket) error {
	family, pktinfo := unix.AF_INET, option{unix.IPPROTO_IP, unix.IP_PKTINFO, 1}
	if conn.remote.Addr().Is6() {
		family, pktinfo = unix.AF_INET6, option{unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1}
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_UDP)
	if err != nil {
		return fmt.Errorf("open raw socket: %w", err)
	}
	conn.raw.fd = fd
	if err := conn.filterRaw(0); err != nil {
		return err
	}
	for _, o := range []option{pktinfo, {unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, c.Ifindex}} {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return fmt.Errorf("set socket option %d of level %d: %w", o.name, o.level, err)
		}
	}
	growBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF)
	var zone uint32
	if a, ok := c.addr.(*unix.SockaddrInet6); ok {
		zone = a.ZoneId
	}
	if err := unix.Bind(fd, sockaddrOf(conn.local.Addr(), zone)); err != nil {
		return fmt.Errorf("bind raw socket: %w", err)
	}
	if err := unix.Connect(fd, sockaddrOf(conn.remote.Addr(), zone)); err != nil {
		return fmt.Errorf("connect raw socket: %w", err)
	}
	return nil
}

// sockaddrOf is an address without a port.
func sockaddrOf(a netip.Addr, zone uint32) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Addr: a.As16(), ZoneId: zone}
}

// addrPortOf returns a socket's address, unmapped; invalid unless it is IPv4 or IPv6.
func addrPortOf(sa unix.Sockaddr) netip.AddrPort {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port))
	}
	return netip.AddrPort{}
}

// filterRaw lets the raw socket receive data packets of the connection, but none that come by the interface besides.
func (conn *connection) filterRaw(besides uint32) error {
	program := []bpf.Instruction{
		// A load beyond the packet drops it. An IPv6 raw socket sees the UDP header first.
		bpf.LoadConstant{Dst: bpf.RegX, Val: 0},
		bpf.LoadIndirect{Off: 0, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(conn.remote.Port()), SkipTrue: 8},
		bpf.LoadIndirect{Off: 2, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(conn.local.Port()), SkipTrue: 6},
		bpf.LoadExtension{Num: bpf.ExtInterfaceIndex},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: besides, SkipTrue: 4},
		bpf.LoadIndirect{Off: udpHeaderLen, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 3},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: crypto.OpcodeDataV2, SkipTrue: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: crypto.OpcodeDataV1, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
		bpf.RetConstant{Val: 1 << 18},
	}
	if conn.remote.Addr().Is4() {
		program[0] = bpf.LoadMemShift{Off: 0} // an IPv4 one the IP header
	}
	return attachFilter(conn.raw.fd, program)
}

// hiding begins the client's filter: what is of no use to the client is dropped, the rest goes on behind it. A socket
// filter sees the UDP header as well.
func hiding() []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtLen},
		bpf.JumpIf{Cond: bpf.JumpLessThan, Val: udpHeaderLen + 4, SkipTrue: 4},
		bpf.LoadAbsolute{Off: udpHeaderLen, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 3},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: crypto.OpcodeDataV2, SkipTrue: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: crypto.OpcodeDataV1, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
		// The filter that was there before starts with a clean accumulator.
		bpf.LoadConstant{Dst: bpf.RegA, Val: 0},
	}
}

// hideData puts our filter before the client's own. It is found there already if the socket was attached before.
func (c *clientSocket) hideData() error {
	ours, err := bpf.Assemble(hiding())
	if err != nil {
		return fmt.Errorf("assemble filter: %w", err)
	}
	theirs, err := filterOf(c.fd)
	if err != nil {
		return err
	}
	if len(theirs) > len(ours) && slices.Equal(theirs[:len(ours)], ours) {
		return nil
	}
	if len(theirs) == 0 {
		theirs = []bpf.RawInstruction{{Op: unix.BPF_RET | unix.BPF_K, K: 1 << 18}}
	}
	if err := attachRawFilter(c.fd, slices.Concat(ours, theirs)); err != nil {
		return fmt.Errorf("%w: %w", errFiltered, err)
	}
	return nil
}

// filterOf returns a socket's filter, nil if it has none.
func filterOf(fd int) ([]bpf.RawInstruction, error) {
	const getFilter = unix.SO_ATTACH_FILTER // SO_GET_FILTER; its length counts instructions
	var filter [4096]unix.SockFilter        // BPF_MAXINSNS
	n := uint32(len(filter))
	_, _, errno := syscall.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, getFilter,
		uintptr(ptr(&filter[0])), uintptr(ptr(&n)), 0)
	if errno != 0 {
		return nil, fmt.Errorf("%w: %w", errFiltered, errno) // EACCES: no classic one
	}
	var program []bpf.RawInstruction
	for _, in := range filter[:min(int(n), len(filter))] {
		program = append(program, bpf.RawInstruction{Op: in.Code, Jt: in.Jt, Jf: in.Jf, K: in.K})
	}
	return program, nil
}

func attachFilter(fd int, program []bpf.Instruction) error {
	raw, err := bpf.Assemble(program)
	if err != nil {
		return fmt.Errorf("assemble filter: %w", err)
	}
	return attachRawFilter(fd, raw)
}

func attachRawFilter(fd int, program []bpf.RawInstruction) error {
	filter := make([]unix.SockFilter, len(program))
	for i, in := range program {
		filter[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
	if err != nil {
		return fmt.Errorf("attach filter: %w", err)
	}
	return nil
}

// unwrap takes the headers off what the raw socket received and reports whether it was whole.
func (conn *connection) unwrap(in *received) bool {
	data := in.data
	if conn.remote.Addr().Is4() {
		if len(data) < ipv4Header {
			return false
		}
		header := int(data[0]&0xf) * 4
		if len(data) < header {
			return false
		}
		data = data[header:]
	}
	if len(data) < udpHeaderLen {
		return false
	}
	size := int(binary.BigEndian.Uint16(data[4:]))
	if size < udpHeaderLen || size > len(data) {
		return false
	}
	in.data = data[udpHeaderLen:size]
	in.stride = len(in.data)
	in.remote = conn.remote
	conn.came = in.ifindex
	return true
}

// loopback is the index of the loopback interface in every namespace.
const loopback = 1

// frontGap is the shortest time in seconds between two moves of the preferred socket.
const frontGap = 1

// follow brings the preferred socket to the interface by which the last data packet came past it. Where it can't go the
// raw socket does its work.
func (conn *connection) follow(now int64) error {
	here := conn.ifindex == conn.came || conn.came == 0 || conn.came == loopback
	if conn.front.fd < 0 || here || conn.ifindex != 0 && now < conn.moved+frontGap {
		return nil
	}
	conn.moved = now
	err := conn.bindFront(conn.came)
	if err == nil && conn.ifindex == 0 {
		err = conn.connectFront()
	}
	if err == nil {
		conn.ifindex = conn.came
		return conn.filterRaw(conn.ifindex)
	}
	conn.abandonFront()
	return errors.Join(fmt.Errorf("follow to interface %d: %w", conn.came, err), conn.filterRaw(0))
}

// connectFront makes the preferred socket receive.
func (conn *connection) connectFront() error {
	family, err := unix.GetsockoptInt(conn.front.fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return fmt.Errorf("family of socket: %w", err)
	}
	var to unix.Sockaddr = &unix.SockaddrInet6{Port: int(conn.remote.Port()), Addr: conn.remote.Addr().As16()}
	if family == unix.AF_INET {
		to = &unix.SockaddrInet4{Port: int(conn.remote.Port()), Addr: conn.remote.Addr().As4()}
	}
	if err := unix.Connect(conn.front.fd, to); err != nil {
		return fmt.Errorf("connect beside the client's socket: %w", err)
	}
	if err := unix.SetsockoptInt(conn.front.fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0); err != nil {
		return fmt.Errorf("open filter: %w", err)
	}
	return nil
}

// giveBack is groAssist.giveBack. It is called by the worker that received the datagram.
func (sock *udpSocket) giveBack(datagram []byte, in *received) bool {
	if sock.assist == nil {
		return false
	}
	conn := sock.conn
	if conn == nil || conn.ifindex == 0 {
		return sock.assist.giveBack(datagram, in.remote, in.local)
	}
	// To the kernel a packet between a host's addresses came by the interface that has them, which is where the preferred
	// socket is. What comes meanwhile is left to the raw socket; a packet that both see is a replay. Should the kernel take its time and deliver the
	// packet to us again, it is given back again.
	if conn.filterRaw(0) != nil || conn.bindFront(loopback) != nil {
		return false
	}
	taken := sock.assist.giveBack(datagram, in.remote, in.local)
	if err := conn.bindFront(conn.ifindex); err == nil {
		_ = conn.filterRaw(conn.ifindex) // should it fail, data packets are seen twice and dropped once
	}
	return taken
}

// bindFront has the preferred socket listen on another interface.
func (conn *connection) bindFront(ifindex uint32) error {
	return unix.SetsockoptInt(conn.front.fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, int(ifindex))
}
