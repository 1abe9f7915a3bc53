package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"ovpn-go/crypto"
	"ovpn-go/tun/netns"
)

// controlOpcodes are those of OpenVPN's control channel.
var controlOpcodes = []byte{1, 2, 3, 4, 5, 7, 8, 10, 11}

// udpSocketIn opens a UDP socket in ns, applies setup and returns it.
func udpSocketIn(t testing.TB, ns *netns.NS, family int, setup func(fd int) error) *os.File {
	t.Helper()
	var file *os.File
	err := ns.Do(func() error {
		fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		file = os.NewFile(uintptr(fd), "udp")
		return setup(fd)
	})
	if file != nil {
		t.Cleanup(func() { file.Close() })
	}
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// bound returns a setup that sets options and binds to addr.
func bound(addr string, opts ...option) func(fd int) error {
	return func(fd int) error {
		for _, o := range opts {
			if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
				return fmt.Errorf("option %v: %w", o, err)
			}
		}
		domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
		if err != nil {
			return err
		}
		return unix.Bind(fd, sockaddr(domain, netip.MustParseAddrPort(addr)))
	}
}

// connectedTo9 is a setup that connects to a port that nobody listens at.
func connectedTo9(fd int) error {
	return unix.Connect(fd, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{127, 0, 0, 1}})
}

// loopbackUDP opens a UDP socket in this namespace and returns the port of 127.0.0.1 that it is bound to.
func loopbackUDP(t testing.TB) (fd int, at netip.AddrPort) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := bound("127.0.0.1:0")(fd); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fd, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(name.(*unix.SockaddrInet4).Port))
}

func sockaddr(family int, ap netip.AddrPort) unix.Sockaddr {
	if family == unix.AF_INET {
		return &unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(ap.Port()), Addr: ap.Addr().As16()}
}

// sendUDP sends one datagram from a new socket in ns.
func sendUDP(t testing.TB, ns *netns.NS, to netip.AddrPort, payload []byte) {
	t.Helper()
	family := unix.AF_INET
	if to.Addr().Is6() {
		family = unix.AF_INET6
	}
	s := udpSocketIn(t, ns, family, func(int) error { return nil })
	defer s.Close()
	if err := netns.Control(s, func(fd int) error { return unix.Sendto(fd, payload, 0, sockaddr(family, to)) }); err != nil {
		t.Fatalf("send to %v: %v", to, err)
	}
}

// share shares client with n sockets and closes those with the test.
func share(t testing.TB, client *os.File, n int) ([]int, udpInfo) {
	t.Helper()
	fds, info, err := shareUDP(client, n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeAll(&fds) })
	return fds, info
}

func closeAll(fds *[]int) {
	for _, fd := range *fds {
		unix.Close(fd)
	}
	*fds = nil
}

// arrival waits for a datagram on any of the descriptors and returns which one it was.
func arrival(t testing.TB, fds ...int) (index int, payload []byte) {
	t.Helper()
	polled := make([]unix.PollFd, len(fds))
	for i, fd := range fds {
		polled[i] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
	}
	for {
		n, err := unix.Poll(polled, 10_000)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n != 1 {
			t.Fatalf("poll = %d, %v, want exactly one readable socket", n, err)
		}
		break
	}
	index = slices.IndexFunc(polled, func(p unix.PollFd) bool { return p.Revents != 0 })
	buf := make([]byte, 65536)
	got, _, err := unix.Recvfrom(fds[index], buf, unix.MSG_DONTWAIT)
	if err != nil {
		t.Fatal(err)
	}
	return index, buf[:got]
}

func rawFD(t testing.TB, f *os.File) (fd int) {
	t.Helper()
	if err := netns.Control(f, func(n int) error { fd = n; return nil }); err != nil {
		t.Fatal(err)
	}
	return fd
}

// checkSplit sends every kind of datagram to each address: the control channel's must arrive at the client's
// socket and at no other, the module's at one of ours and at no other.
func checkSplit(t *testing.T, ns *netns.NS, client *os.File, ours []int, to ...netip.AddrPort) {
	t.Helper()
	all := append([]int{rawFD(t, client)}, ours...)
	for _, addr := range to {
		for range 8 { // each from another source port, so that a choice by hash would not pass
			for _, op := range controlOpcodes {
				packet := append([]byte{op<<3 | 2}, "control"...)
				sendUDP(t, ns, addr, packet)
				if i, got := arrival(t, all...); i != 0 || !slices.Equal(got, packet) {
					t.Fatalf("opcode %d to %v arrived at socket %d as %x, want the client's", op, addr, i, got)
				}
			}
			peer := rand.Uint32N(crypto.MaxPeerID + 1)
			packet := binary.BigEndian.AppendUint32(nil, crypto.Op(1, peer))
			packet = append(packet, make([]byte, 40)...)
			sendUDP(t, ns, addr, packet)
			if i, _ := arrival(t, all...); i != 1+int(peer)%len(ours) {
				t.Fatalf("DATA_V2 of peer %d to %v arrived at socket %d of %d", peer, addr, i, len(all))
			}
			for _, packet := range [][]byte{{}, {4 << 3}, {4 << 3, 1, 2}, {6 << 3, 0, 0, 0, 0}} {
				sendUDP(t, ns, addr, packet)
				if i, _ := arrival(t, all...); i != 1 {
					t.Fatalf("%x to %v arrived at socket %d, want ours", packet, addr, i)
				}
			}
		}
	}
}

var (
	reusePort = option{unix.SOL_SOCKET, unix.SO_REUSEPORT, 1}
	reuseAddr = option{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1}
	v6only    = option{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1}
	dualStack = option{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0}
)

func TestShareUDPSplitsByOpcode(t *testing.T) {
	for _, tt := range []struct {
		name   string
		family int
		setup  func(fd int) error
		to     []string
		want   udpInfo
	}{
		{"IPv4 any address", unix.AF_INET, bound("0.0.0.0:1194"),
			[]string{"127.0.0.1:1194", "192.0.2.1:1194"}, udpInfo{Family: unix.AF_INET, LocalPort: 1194}},
		{"IPv4 one address", unix.AF_INET, bound("192.0.2.1:1194"),
			[]string{"192.0.2.1:1194"}, udpInfo{Family: unix.AF_INET, LocalPort: 1194}},
		{"IPv6 only", unix.AF_INET6, bound("[::]:1194", v6only),
			[]string{"[::1]:1194", "[2001:db8::1]:1194"}, udpInfo{Family: unix.AF_INET6, LocalPort: 1194}},
		// Binding to an IPv6 address makes the kernel set IPV6_V6ONLY.
		{"IPv6 one address", unix.AF_INET6, bound("[2001:db8::1]:1194"),
			[]string{"[2001:db8::1]:1194"}, udpInfo{Family: unix.AF_INET6, LocalPort: 1194}},
		{"dual stack", unix.AF_INET6, bound("[::]:1194", dualStack),
			[]string{"[::1]:1194", "127.0.0.1:1194", "192.0.2.1:1194"}, udpInfo{Family: unix.AF_INET6, LocalPort: 1194, DualStack: true}},
		{"dual stack bound to a mapped IPv4 address", unix.AF_INET6, bound("[::ffff:192.0.2.1]:1194", dualStack),
			[]string{"192.0.2.1:1194"}, udpInfo{Family: unix.AF_INET6, LocalPort: 1194, DualStack: true}},
		{"bound to a device", unix.AF_INET, bound("0.0.0.0:1194", option{unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, 1}),
			[]string{"192.0.2.1:1194"}, udpInfo{Family: unix.AF_INET, LocalPort: 1194, Ifindex: 1}},
		{"marked", unix.AF_INET, bound("0.0.0.0:1194", option{unix.SOL_SOCKET, unix.SO_MARK, 7}),
			[]string{"192.0.2.1:1194"}, udpInfo{Family: unix.AF_INET, LocalPort: 1194, Mark: 7}},
		{"address that is nobody's, IP_FREEBIND", unix.AF_INET, bound("127.9.9.9:1194", option{unix.IPPROTO_IP, unix.IP_FREEBIND, 1}),
			[]string{"127.9.9.9:1194"}, udpInfo{Family: unix.AF_INET, LocalPort: 1194}},
		{"IPV6_TRANSPARENT", unix.AF_INET6, bound("[2001:db8::99]:1194", option{unix.IPPROTO_IPV6, unix.IPV6_TRANSPARENT, 1}),
			nil, udpInfo{Family: unix.AF_INET6, LocalPort: 1194}},
		{"SO_REUSEADDR", unix.AF_INET, bound("0.0.0.0:1194", reuseAddr),
			[]string{"192.0.2.1:1194"}, udpInfo{Family: unix.AF_INET, LocalPort: 1194}},
		{"alone in its own reuseport group", unix.AF_INET, bound("0.0.0.0:1194", reusePort),
			[]string{"192.0.2.1:1194"}, udpInfo{Family: unix.AF_INET, LocalPort: 1194}},
	} {
		for _, n := range []int{1, 3} {
			t.Run(fmt.Sprintf("%s/%d", tt.name, n), func(t *testing.T) {
				ns := freshNS(t)
				h := nlHandle(t, ns)
				addAddr(t, h, "lo", "192.0.2.1/32")
				addAddr(t, h, "lo", "2001:db8::1/128")
				client := udpSocketIn(t, ns, tt.family, tt.setup)
				want := tt.want
				want.Cookie, _ = socketCookie(client)

				var to []netip.AddrPort
				for _, s := range tt.to {
					to = append(to, netip.MustParseAddrPort(s))
				}
				for round := range 2 {
					ours, info := share(t, client, n)
					if diff := cmp.Diff(want, info); diff != "" {
						t.Errorf("info (-want +got):\n%s", diff)
					}
					checkSplit(t, ns, client, ours, to...)

					// Without ours, everything is the client's again.
					closeAll(&ours)
					for _, addr := range to {
						for _, op := range append([]byte{6, 9}, controlOpcodes...) {
							sendUDP(t, ns, addr, []byte{op << 3, 1, 2, 3, 4})
							if i, _ := arrival(t, rawFD(t, client)); i != 0 {
								t.Fatalf("round %d: opcode %d did not arrive", round, op)
							}
						}
					}
				}
			})
		}
	}
}

func TestShareUDPGivesAPort(t *testing.T) {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		ns := freshNS(t)
		to := netip.MustParseAddrPort("127.0.0.1:9")
		if family == unix.AF_INET6 {
			to = netip.MustParseAddrPort("[::1]:9")
		}

		used := udpSocketIn(t, ns, family, func(fd int) error {
			return unix.Sendto(fd, []byte("x"), 0, sockaddr(family, to))
		})
		ours, info := share(t, used, 1)
		if info.Autobound || info.LocalPort == 0 {
			t.Errorf("socket that has sent: %+v", info)
		}
		checkSplit(t, ns, used, ours, netip.AddrPortFrom(to.Addr(), info.LocalPort))

		fresh := udpSocketIn(t, ns, family, func(int) error { return nil })
		ours, info = share(t, fresh, 1)
		if !info.Autobound || info.LocalPort == 0 {
			t.Errorf("socket that was never used: %+v", info)
		}
		checkSplit(t, ns, fresh, ours, netip.AddrPortFrom(to.Addr(), info.LocalPort))
	}
}

func TestShareUDPRefuses(t *testing.T) {
	ns := freshNS(t)
	open := func(domain, typ, proto int) *os.File {
		var file *os.File
		err := ns.Do(func() error {
			fd, err := unix.Socket(domain, typ|unix.SOCK_CLOEXEC, proto)
			if err == nil {
				file = os.NewFile(uintptr(fd), "socket")
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { file.Close() })
		return file
	}
	pipe, other, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	defer other.Close()

	shared := udpSocketIn(t, ns, unix.AF_INET, bound("0.0.0.0:1000", reusePort))
	udpSocketIn(t, ns, unix.AF_INET, bound("0.0.0.0:1000", reusePort))
	for _, tt := range []struct {
		name   string
		client *os.File
		want   error
	}{
		{"no socket", pipe, errProtocol},
		{"TCP", open(unix.AF_INET, unix.SOCK_STREAM, 0), errProtocol},
		{"raw socket with UDP's protocol number", open(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_UDP), errProtocol},
		{"UNIX socket", open(unix.AF_UNIX, unix.SOCK_DGRAM, 0), errProtocol},
		{"connected", udpSocketIn(t, ns, unix.AF_INET, connectedTo9), errConnected},
		{"encapsulation of another kind", udpSocketIn(t, ns, unix.AF_INET, func(fd int) error {
			return unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_ENCAP, unix.UDP_ENCAP_ESPINUDP)
		}), unix.EBUSY},
		{"reuseport group with another socket", shared, errShared},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fds, _, err := shareUDP(tt.client, 1)
			if !errors.Is(err, tt.want) || fds != nil {
				t.Errorf("shareUDP = %v, %v, want %v", fds, err, tt.want)
			}
		})
	}
}

// TestShareUDPFailureLeavesNoTrace: an error restores the client's option and opens nothing.
func TestShareUDPFailureLeavesNoTrace(t *testing.T) {
	ns := freshNS(t)
	client := udpSocketIn(t, ns, unix.AF_INET, bound("0.0.0.0:1194"))
	before := descriptors(t)
	if _, _, err := shareUDP(client, 0); !errors.Is(err, unix.EINVAL) {
		t.Errorf("shareUDP with no sockets: %v, want EINVAL", err)
	}
	got, err := unix.GetsockoptInt(rawFD(t, client), unix.SOL_SOCKET, unix.SO_REUSEPORT)
	if err != nil || got != 0 {
		t.Errorf("SO_REUSEPORT = %d, %v, want 0 again", got, err)
	}
	if after := descriptors(t); after > before {
		t.Errorf("descriptors = %d, want %d", after, before)
	}
}

// descriptors counts the process's open descriptors.
func descriptors(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestShareUDPLetsTheClientBindAgain(t *testing.T) {
	ns := freshNS(t)
	for range 20 {
		client := udpSocketIn(t, ns, unix.AF_INET, bound("0.0.0.0:1194"))
		ours, _ := share(t, client, 2)
		sendUDP(t, ns, netip.MustParseAddrPort("127.0.0.1:1194"), []byte{9 << 3, 0, 0, 0, 0})
		client.Close()
		closeAll(&ours)
		udpSocketIn(t, ns, unix.AF_INET, bound("0.0.0.0:1194")).Close()
	}
}

// TestShareUDPReceivesBursts: what one GSO send put on the wire is received by ours in one call.
func TestShareUDPReceivesBursts(t *testing.T) {
	a, b := freshNS(t), freshNS(t)
	addVeth(t, a, "veth0", b, "veth0")
	addAddr(t, nlHandle(t, a), "veth0", "198.51.100.1/24")
	addAddr(t, nlHandle(t, b), "veth0", "198.51.100.2/24")
	client := udpSocketIn(t, a, unix.AF_INET, bound("198.51.100.1:1194", option{unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, ifindex(t, a, "veth0")}))
	ours, _ := share(t, client, 1)

	const size, count = 1200, 40
	burst := make([]byte, size*count)
	for i := range count {
		binary.BigEndian.PutUint32(burst[i*size:], crypto.Op(0, 5))
	}
	sender := udpSocketIn(t, b, unix.AF_INET, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT, size)
	})
	if err := netns.Control(sender, func(fd int) error {
		return unix.Sendto(fd, burst, 0, sockaddr(unix.AF_INET, netip.MustParseAddrPort("198.51.100.1:1194")))
	}); err != nil {
		t.Fatal(err)
	}

	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(ours[0]), Events: unix.POLLIN}}, 10_000); err != nil {
		t.Fatal(err)
	}
	oob := make([]byte, 256)
	n, oobn, _, _, err := unix.Recvmsg(ours[0], make([]byte, 65536), oob, unix.MSG_DONTWAIT)
	if err != nil {
		t.Fatal(err)
	}
	if n != len(burst) {
		t.Errorf("received %d bytes at once, want %d", n, len(burst))
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		t.Fatal(err)
	}
	got := map[int32]uint32{}
	for _, m := range msgs {
		if m.Header.Level == unix.IPPROTO_UDP {
			got[m.Header.Type] = binary.NativeEndian.Uint32(m.Data)
		}
	}
	if diff := cmp.Diff(map[int32]uint32{unix.UDP_GRO: size}, got); diff != "" {
		t.Errorf("UDP control messages (-want +got):\n%s", diff)
	}
}

func ifindex(t testing.TB, ns *netns.NS, name string) int {
	t.Helper()
	l, err := nlHandle(t, ns).LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return l.Attrs().Index
}

func TestSelectorProgram(t *testing.T) {
	for _, n := range []int{1, 2, 3, 7, 16} {
		vm, err := bpf.NewVM(selectorProgram(n))
		if err != nil {
			t.Fatal(err)
		}
		for op := range byte(32) {
			for key := range byte(8) {
				for _, peer := range []uint32{0, 1, 2, 3, 255, 256, 0x10000, 0xfffffe, 0xffffff} {
					for _, size := range []int{0, 1, 3, 4, 5, 40} {
						packet := binary.BigEndian.AppendUint32(nil, uint32(op)<<27|uint32(key)<<24|peer)
						packet = append(packet, make([]byte, 36)...)[:size]
						want := 0
						switch {
						case size < 4 || op == crypto.OpcodeDataV1:
							want = 1
						case op == crypto.OpcodeDataV2:
							want = 1 + int(peer)%n
						}
						got, err := vm.Run(packet)
						if err != nil || got != want {
							t.Fatalf("n %d, opcode %d, key %d, peer %#x, %d bytes: socket %d, %v, want %d", n, op, key, peer, size, got, err, want)
						}
					}
				}
			}
		}
	}
}
