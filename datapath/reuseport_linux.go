package datapath

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"ovpn-go/crypto"
	"ovpn-go/tun/netns"
)

// How a client's UDP socket is shared: sockets of ours are bound to the same address, as members of one
// SO_REUSEPORT group with the client's, and a classic-BPF program chooses the member by a datagram's first
// byte. DATA_V2 goes to ours, all else stays with the client, who notices nothing. No datagram passes
// through this process on its way to the client.
//
// The kernel numbers the members of a group in the order in which they joined, so the client's socket is
// number 0 and ours are 1 to n. When a member leaves, the last one takes its number: as long as the client's
// socket is open it stays number 0. A number that nobody has is ignored and the datagram goes to a member
// chosen by hash, hence to the client's when ours are gone.

var (
	// errConnected: the client's socket has a peer of its own. The kernel delivers to it before it looks at
	// the group, so it takes connectUDP.
	errConnected = errors.New("the socket is connected")
	// errProtocol: no UDP socket over IPv4 or IPv6.
	errProtocol = errors.New("not a UDP socket")
	// errShared: another process receives on the same address through SO_REUSEPORT, so which number in the
	// group is the client's can't be known.
	errShared = errors.New("the address is shared with another socket by SO_REUSEPORT")
)

// udpBuffer is the size asked for each of our sockets' buffers: wireguard-go's, enough for 10 ms at 5 Gbit/s.
const udpBuffer = 7 << 20

// udpInfo is what sharing found out about a client's socket.
type udpInfo struct {
	Family    int    // unix.AF_INET or unix.AF_INET6
	LocalPort uint16 // host byte order, never 0
	Cookie    uint64 // SO_COOKIE of the client's socket
	DualStack bool   // an AF_INET6 socket that carries IPv4 too
	Mark      int    // SO_MARK, 0 = none
	Ifindex   int    // SO_BINDTODEVICE, 0 = none
	Autobound bool   // the socket had no port until it was shared
}

// shareUDP opens n sockets beside the client's: in its namespace, bound to its address, and receiving every
// datagram that the kernel module would keep from the client (kernel behaviour: udp.c) while the client's
// socket receives the others. Datagrams of one peer id always reach the same socket. client may be closed
// afterwards; the caller owns the descriptors, which are non-blocking. Closing them ends the sharing at once;
// SO_REUSEPORT stays on the client's socket.
//
// A socket without a port is given one, as its first send would do: the kernel module would send from port 0,
// where no answer arrives. The client can't bind it any more.
//
// The errors are errConnected, errProtocol and errShared, and others that wrap a unix.Errno. After an error
// the client's socket is as it was, but for a port it may have got.
func shareUDP(client *os.File, n int) (fds []int, info udpInfo, err error) {
	err = netns.Control(client, func(fd int) error {
		c, err := inspectUDP(fd)
		if err != nil {
			return err
		}
		info = c.udpInfo
		if c.remote.IsValid() {
			return errConnected
		}
		ns, err := netns.OfSocket(client)
		if err != nil {
			return err
		}
		defer ns.Close()
		if err := c.checkAlone(ns); err != nil {
			return err
		}
		return ns.Do(func() (err error) {
			fds, err = c.share(n)
			return err
		})
	})
	if err != nil {
		return nil, info, fmt.Errorf("share UDP socket: %w", err)
	}
	return fds, info, nil
}

// clientSocket is a client's UDP socket and those of its properties that our own sockets need.
type clientSocket struct {
	udpInfo
	fd        int
	addr      unix.Sockaddr
	remote    netip.AddrPort // unmapped; invalid unless it is connected
	uid       int
	reusePort int
	options   []option
}

// option is an integer socket option.
type option struct{ level, name, value int }

func inspectUDP(fd int) (*clientSocket, error) {
	c := &clientSocket{fd: fd}
	get := func(level, name int) (value int) {
		value, _ = unix.GetsockoptInt(fd, level, name)
		return value
	}
	c.Family = get(unix.SOL_SOCKET, unix.SO_DOMAIN)
	if get(unix.SOL_SOCKET, unix.SO_PROTOCOL) != unix.IPPROTO_UDP ||
		get(unix.SOL_SOCKET, unix.SO_TYPE) != unix.SOCK_DGRAM ||
		(c.Family != unix.AF_INET && c.Family != unix.AF_INET6) {
		return nil, errProtocol
	}
	if encap := get(unix.IPPROTO_UDP, unix.UDP_ENCAP); encap != 0 {
		return nil, fmt.Errorf("socket has encapsulation type %d: %w", encap, unix.EBUSY)
	}
	if name, err := unix.Getpeername(fd); err == nil {
		c.remote = addrPortOf(name)
	}
	var err error
	if c.Cookie, err = cookieOf(fd); err != nil {
		return nil, err
	}
	if err := c.findAddress(); err != nil {
		return nil, err
	}

	c.Mark = get(unix.SOL_SOCKET, unix.SO_MARK)
	c.Ifindex = get(unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX)
	c.reusePort = get(unix.SOL_SOCKET, unix.SO_REUSEPORT)
	copied := []option{
		{unix.SOL_SOCKET, unix.SO_REUSEADDR, 0},
		{unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, 0},
		{unix.SOL_SOCKET, unix.SO_MARK, 0},
		{unix.SOL_SOCKET, unix.SO_NO_CHECK, 0},
		{unix.IPPROTO_IP, unix.IP_FREEBIND, 0},
		{unix.IPPROTO_IP, unix.IP_TRANSPARENT, 0},
	}
	if c.Family == unix.AF_INET6 {
		v6only := get(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
		c.DualStack = v6only == 0
		// Always set: the default is a sysctl.
		c.options = append(c.options, option{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, v6only})
		copied = append(copied, option{unix.IPPROTO_UDP, unix.UDP_NO_CHECK6_TX, 0})
	}
	for _, o := range copied {
		// What is off is left alone, as some of these need a capability.
		if o.value = get(o.level, o.name); o.value != 0 {
			c.options = append(c.options, o)
		}
	}

	// The owner of a socket is the owner of its inode: the creator's filesystem uid, whatever became of the
	// creator since.
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("owner of socket: %w", err)
	}
	c.uid = int(st.Uid)
	return c, nil
}

// has reports whether the socket has the option, one of those that are copied, switched on.
func (c *clientSocket) has(level, name int) bool {
	return slices.ContainsFunc(c.options, func(o option) bool {
		return o.level == level && o.name == name && o.value != 0
	})
}

// findAddress fills in the socket's address and makes sure that it has a port.
func (c *clientSocket) findAddress() (err error) {
	for {
		if c.addr, err = unix.Getsockname(c.fd); err != nil {
			return fmt.Errorf("address of socket: %w", err)
		}
		switch a := c.addr.(type) {
		case *unix.SockaddrInet4:
			c.LocalPort = uint16(a.Port)
		case *unix.SockaddrInet6:
			c.LocalPort = uint16(a.Port)
		}
		if c.LocalPort != 0 {
			return nil
		}
		if c.Autobound {
			return fmt.Errorf("give socket a port: %w", unix.EADDRNOTAVAIL)
		}
		// A send without a destination fails, but the kernel has chosen a port by then.
		c.Autobound = true
		if err := unix.Sendmsg(c.fd, nil, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL); err != nil && !errors.Is(err, unix.EDESTADDRREQ) {
			return fmt.Errorf("give socket a port: %w", err)
		}
	}
}

// checkAlone reports errShared when another socket has the client's address. Without inet_diag in the kernel
// that is not known, and the usual case, being alone, is assumed.
func (c *clientSocket) checkAlone(ns *netns.NS) error {
	if c.reusePort == 0 {
		// It has no group yet. SO_REUSEADDR may share an address too, but then one socket gets everything.
		return nil
	}
	socks, err := dumpSockets(ns, unix.IPPROTO_UDP, c.Family, c.LocalPort)
	if err != nil {
		return nil
	}
	var self *diagSocket
	for i := range socks {
		if socks[i].cookie == c.Cookie {
			self = &socks[i]
		}
	}
	if self == nil {
		return nil
	}
	for _, s := range socks {
		if s.cookie != self.cookie && s.local == self.local && s.ifindex == self.ifindex && s.v6only == self.v6only {
			return errShared
		}
	}
	return nil
}

// share runs inside the client's namespace.
func (c *clientSocket) share(n int) (fds []int, err error) {
	defer func() {
		if err != nil {
			for _, fd := range fds {
				unix.Close(fd)
			}
			_ = unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, c.reusePort)
		}
	}()
	if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		return nil, fmt.Errorf("set SO_REUSEPORT on the client's socket: %w", err)
	}
	one, err := selector(1)
	if err != nil {
		return nil, err
	}
	all, err := selector(n)
	if err != nil {
		return nil, err
	}

	// A socket that was bound with SO_REUSEPORT has its group already and takes the program now. Any other
	// gets its group when ours joins (EINVAL here); for the few microseconds until ours attaches the program
	// the kernel chooses by hash.
	_ = attachSelector(c.fd, one)
	for len(fds) < n {
		fd, err := unix.Socket(c.Family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_UDP)
		if err != nil {
			return fds, fmt.Errorf("open UDP socket: %w", err)
		}
		fds = append(fds, fd)
		if err := c.imitate(fd); err != nil {
			return fds, err
		}
		if err := unix.Bind(fd, c.addr); err != nil {
			return fds, fmt.Errorf("bind beside the client's socket: %w", err)
		}
		if len(fds) == 1 {
			// Chooses among the first two members only, until the others are there.
			if err := attachSelector(fd, one); err != nil {
				return fds, fmt.Errorf("attach selector: %w", err)
			}
		}
	}
	// Through the client's socket, which proves that it is a member of the group. One whose filters are
	// locked (SO_LOCK_FILTER) proves it by being the reason.
	err = attachSelector(c.fd, all)
	if errors.Is(err, unix.EPERM) {
		err = attachSelector(fds[0], all)
	}
	if err != nil {
		return fds, fmt.Errorf("attach selector: %w", err)
	}
	return fds, nil
}

// imitate gives fd, not yet bound, what it needs to join the client's group, to send as the kernel module
// would, and to receive in batches.
func (c *clientSocket) imitate(fd int) error {
	for _, o := range c.options {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return fmt.Errorf("copy socket option %d of level %d: %w", o.name, o.level, err)
		}
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		return fmt.Errorf("set SO_REUSEPORT: %w", err)
	}
	if err := c.chown(fd); err != nil {
		return err
	}

	required := []option{{unix.IPPROTO_IP, unix.IP_PKTINFO, 1}}
	// The module's packets never have DF set and are fragmented where they must be.
	wanted := []option{
		{unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT},
		{unix.IPPROTO_UDP, unix.UDP_GRO, 1}, // Linux 5.0
		{unix.IPPROTO_IP, unix.IP_RECVFRAGSIZE, 1},
	}
	if c.Family == unix.AF_INET6 {
		required = append(required, option{unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1})
		wanted = append(wanted,
			option{unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT},
			option{unix.IPPROTO_IPV6, unix.IPV6_RECVFRAGSIZE, 1},
			option{unix.IPPROTO_IPV6, unix.IPV6_AUTOFLOWLABEL, 0})
	}
	for _, o := range required {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return fmt.Errorf("set socket option %d of level %d: %w", o.name, o.level, err)
		}
	}
	for _, o := range wanted {
		_ = unix.SetsockoptInt(fd, o.level, o.name, o.value)
	}
	growBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF)
	growBuffer(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF)
	return nil
}

// growBuffer sets a buffer to udpBuffer, as far as it may: the plain option stops at the sysctl's limit, the forced one
// needs CAP_NET_ADMIN over the initial user namespace.
func growBuffer(fd, forced, plain int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, forced, udpBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, udpBuffer)
	}
}

// chown makes the client's owner the owner of fd: a group has one owner, so that nobody else can join it and
// receive what isn't theirs.
func (c *clientSocket) chown(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("owner of socket: %w", err)
	}
	if int(st.Uid) == c.uid {
		return nil
	}
	if err := unix.Fchown(fd, c.uid, -1); err != nil {
		return fmt.Errorf("give socket to uid %d: %w", c.uid, err)
	}
	return nil
}

// selectorProgram returns the program of a group with n sockets of ours. It is run with the UDP payload and
// returns the receiving member's number. A load beyond the payload would return 0.
func selectorProgram(n int) []bpf.Instruction {
	ours := []bpf.Instruction{bpf.RetConstant{Val: 1}}
	if n > 1 {
		ours = []bpf.Instruction{
			bpf.LoadAbsolute{Off: 0, Size: 4},
			bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: crypto.PeerIDUndefined},
			bpf.ALUOpConstant{Op: bpf.ALUOpMod, Val: uint32(n)},
			bpf.ALUOpConstant{Op: bpf.ALUOpAdd, Val: 1},
			bpf.RetA{},
		}
	}
	return append([]bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtLen},
		bpf.JumpIf{Cond: bpf.JumpLessThan, Val: 4, SkipTrue: 5}, // no opcode word: ours, to be dropped
		bpf.LoadAbsolute{Off: 0, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 3},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: crypto.OpcodeDataV2, SkipTrue: 3},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: crypto.OpcodeDataV1, SkipTrue: 1}, // the module drops it
		bpf.RetConstant{Val: 0},
		bpf.RetConstant{Val: 1},
	}, ours...)
}

// selector assembles selectorProgram for the kernel.
func selector(n int) (*unix.SockFprog, error) {
	if n < 1 || n > 1<<10 {
		return nil, fmt.Errorf("share with %d sockets: %w", n, unix.EINVAL)
	}
	raw, err := bpf.Assemble(selectorProgram(n))
	if err != nil {
		return nil, fmt.Errorf("assemble selector: %w", err)
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, in := range raw {
		filter[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	return &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}, nil
}

func attachSelector(fd int, prog *unix.SockFprog) error {
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF, prog)
}

// socketCookie returns the number that identifies a socket for as long as the system runs.
func socketCookie(file *os.File) (cookie uint64, err error) {
	err = netns.Control(file, func(fd int) error {
		cookie, err = cookieOf(fd)
		return err
	})
	return cookie, err
}

// inodeOf returns the number by which a process's descriptors show a socket.
func inodeOf(file *os.File) (inode uint64, err error) {
	err = netns.Control(file, func(fd int) error {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return fmt.Errorf("inode of socket: %w", err)
		}
		inode = st.Ino
		return nil
	})
	return inode, err
}

func cookieOf(fd int) (uint64, error) {
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("cookie of socket: %w", err)
	}
	return cookie, nil
}
