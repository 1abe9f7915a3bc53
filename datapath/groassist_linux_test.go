package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ovpn-go/crypto"
	"ovpn-go/tun/netns"
)

// ethtool calls one of the old switches (linux/ethtool.h: ETHTOOL_S*).
func ethtool(t testing.TB, ns *netns.NS, link string, command, value uint32) {
	t.Helper()
	err := ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		arg := [2]uint32{command, value}
		ifreq := struct {
			name [unix.IFNAMSIZ]byte
			data unsafe.Pointer
			_    [16]byte
		}{data: unsafe.Pointer(&arg)}
		copy(ifreq.name[:], link)
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifreq))); errno != 0 {
			return errno
		}
		return nil
	})
	if err != nil {
		t.Fatalf("ethtool command %#x on %s: %v", command, link, err)
	}
}

// groNet is two namespaces with a link between them on which datagrams travel one by one and are merged by the
// receiver's GRO, as on a network card.
func groNet(t testing.TB) (server, peer *netns.NS) {
	t.Helper()
	const stso, sgro = 0x1f, 0x2c // ETHTOOL_STSO, ETHTOOL_SGRO
	server, peer = freshNS(t), freshNS(t)
	addVeth(t, server, "veth0", peer, "veth0")
	for ns, host := range map[*netns.NS]int{server: 1, peer: 2} {
		addAddr(t, nlHandle(t, ns), "veth0", fmt.Sprintf("198.51.100.%d/24", host))
		addAddr(t, nlHandle(t, ns), "veth0", fmt.Sprintf("2001:db8::%d/64", host))
	}
	ethtool(t, server, "veth0", sgro, 1)
	ethtool(t, peer, "veth0", stso, 0) // veth merges only what comes from a sender without TSO
	h := nlHandle(t, peer)
	link, err := h.LinkByName("veth0")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.LinkSetGSOMaxSegs(link, 1); err != nil {
		t.Fatal(err)
	}
	return server, peer
}

// sendBurst sends count packets with opcode first and then a short one with opcode last, close together.
func sendBurst(t testing.TB, sock *os.File, to netip.AddrPort, count int, first, last byte) {
	t.Helper()
	const size = 1000
	burst := make([]byte, size*count+50)
	for i := range count {
		burst[size*i] = first << 3
	}
	burst[size*count] = last << 3
	family := unix.AF_INET
	if to.Addr().Is6() {
		family = unix.AF_INET6
	}
	if err := netns.Control(sock, func(fd int) error {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT, size); err != nil {
			return err
		}
		return unix.Sendto(fd, burst, 0, sockaddr(family, to))
	}); err != nil {
		t.Fatal(err)
	}
}

// gro is what one receive call returned: datagrams of one sender.
type gro struct {
	packets [][]byte
	from    netip.AddrPort
	to      netip.Addr
}

// receiveGRO makes one receive call, if there is something to receive.
func receiveGRO(t testing.TB, fd int) (g gro, ok bool) {
	t.Helper()
	buf, oob := make([]byte, 65536), make([]byte, 256)
	n, oobn, _, sender, err := unix.Recvmsg(fd, buf, oob, unix.MSG_DONTWAIT)
	if err == unix.EAGAIN {
		return g, false
	}
	if err != nil {
		t.Fatal(err)
	}
	switch sa := sender.(type) {
	case *unix.SockaddrInet4:
		g.from = netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		g.from = netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		t.Fatal(err)
	}
	stride := n
	for _, m := range msgs {
		switch {
		case m.Header.Level == unix.IPPROTO_UDP:
			stride = int(binary.NativeEndian.Uint32(m.Data))
		case m.Header.Level == unix.IPPROTO_IP:
			g.to = netip.AddrFrom4([4]byte(m.Data[8:12]))
		case m.Header.Level == unix.IPPROTO_IPV6 && !g.to.IsValid():
			g.to = netip.AddrFrom16([16]byte(m.Data[:16])).Unmap()
		}
	}
	g.packets = slices.Collect(slices.Chunk(buf[:n], stride))
	return g, true
}

func TestGROAssistVotesForMerging(t *testing.T) {
	server, peer := groNet(t)
	client := udpSocketIn(t, server, unix.AF_INET, bound("0.0.0.0:1194"))
	ours, info := share(t, client, 1)
	g, err := assistGRO(client, info)
	if err != nil {
		t.Fatal(err)
	}
	defer g.close()
	to := netip.MustParseAddrPort("198.51.100.1:1194")
	merged := 0
	const senders = 40
	for port := range senders {
		sock := udpSocketIn(t, peer, unix.AF_INET, bound(fmt.Sprintf("198.51.100.2:%d", 2000+port)))
		sendBurst(t, sock, to, 7, crypto.OpcodeDataV2, crypto.OpcodeDataV2)
		got := 0
		eventually(t, "the burst arrives", func() bool {
			g, _ := receiveGRO(t, ours[0])
			got += len(g.packets)
			if len(g.packets) == 8 {
				merged++
			}
			return got == 8
		})
	}
	// The kernel's choice goes by CPU where it can: then all are. By chance alone half would be.
	t.Logf("%d of %d bursts were merged, with %d decoys", merged, senders, len(g.decoys))
	if merged < senders*2/3 {
		t.Errorf("%d of %d bursts were merged", merged, senders)
	}
}

// TestGROAssistGivesControlBack: control packets that were merged behind data packets reach the client all the
// same, with the right sender.
func TestGROAssistGivesControlBack(t *testing.T) {
	for _, tt := range []struct {
		name, client string
		family       int
		opts         []option
		from, to     string
	}{
		{"IPv4", "0.0.0.0:1194", unix.AF_INET, nil, "198.51.100.2:2000", "198.51.100.1:1194"},
		{"IPv4 one address", "198.51.100.1:1194", unix.AF_INET, nil, "198.51.100.2:2000", "198.51.100.1:1194"},
		{"IPv6", "[::]:1194", unix.AF_INET6, []option{v6only}, "[2001:db8::2]:2000", "[2001:db8::1]:1194"},
		{"dual stack, IPv6", "[::]:1194", unix.AF_INET6, []option{dualStack}, "[2001:db8::2]:2000", "[2001:db8::1]:1194"},
		{"dual stack, IPv4", "[::]:1194", unix.AF_INET6, []option{dualStack}, "198.51.100.2:2000", "198.51.100.1:1194"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server, peer := groNet(t)
			client := udpSocketIn(t, server, tt.family, bound(tt.client, tt.opts...))
			ours, info := share(t, client, 1)
			g, err := assistGRO(client, info)
			if err != nil {
				t.Fatal(err)
			}
			defer g.close()
			from, to := netip.MustParseAddrPort(tt.from), netip.MustParseAddrPort(tt.to)
			family := unix.AF_INET
			if from.Addr().Is6() {
				family = unix.AF_INET6
			}
			sock := udpSocketIn(t, peer, family, bound(tt.from))
			swallowed := 0
			const rounds = 20
			for range rounds {
				sendBurst(t, sock, to, 5, crypto.OpcodeDataV2, 4)
				data := 0
				eventually(t, "the data packets arrive", func() bool {
					in, _ := receiveGRO(t, ours[0])
					for _, packet := range in.packets {
						if crypto.Opcode(packet[0]) == crypto.OpcodeDataV2 {
							data++
							continue
						}
						swallowed++
						if !g.giveBack(packet, in.from, in.to) {
							t.Error("the kernel refused a control packet")
						}
					}
					return data == 5
				})
				var sender unix.Sockaddr
				packet := make([]byte, 100)
				eventually(t, "the control packet arrives", func() bool {
					n, from, err := unix.Recvfrom(rawFD(t, client), packet[:100], unix.MSG_DONTWAIT)
					packet, sender = packet[:max(n, 0)], from
					return err == nil
				})
				if len(packet) != 50 || crypto.Opcode(packet[0]) != 4 {
					t.Fatalf("the client received %x", packet)
				}
				addr := from.Addr()
				if tt.family == unix.AF_INET6 {
					addr = netip.AddrFrom16(addr.As16())
				}
				if diff := cmp.Diff(sockaddr(tt.family, netip.AddrPortFrom(addr, from.Port())), sender,
					cmp.AllowUnexported(unix.SockaddrInet4{}, unix.SockaddrInet6{}, unix.RawSockaddrInet4{}, unix.RawSockaddrInet6{})); diff != "" {
					t.Fatalf("sender (-want +got):\n%s", diff)
				}
			}
			t.Logf("%d of %d control packets were merged with data packets", swallowed, rounds)
			if swallowed == 0 {
				t.Error("no control packet was merged with data packets: nothing was tested")
			}
		})
	}
}

func TestAssistGRORefuses(t *testing.T) {
	ns := freshNS(t)
	before := descriptors(t)
	device := udpSocketIn(t, ns, unix.AF_INET, bound("0.0.0.0:1194", option{unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, 1}))
	if _, err := assistGRO(device, udpInfo{Family: unix.AF_INET, LocalPort: 1194, Ifindex: 1}); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("bound to a device: %v, want EOPNOTSUPP", err)
	}
	device.Close()
	h := nlHandle(t, ns)
	lo, err := h.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.LinkSetDown(lo); err != nil {
		t.Fatal(err)
	}
	client := udpSocketIn(t, ns, unix.AF_INET6, bound("[::]:1194", dualStack))
	if _, err := assistGRO(client, udpInfo{Family: unix.AF_INET6, LocalPort: 1194, DualStack: true}); !errors.Is(err, unix.ENETDOWN) {
		t.Errorf("loopback device down: %v, want ENETDOWN", err)
	}
	client.Close()
	h.Close()
	if after := descriptors(t); after > before {
		t.Errorf("descriptors = %d, want %d", after, before)
	}
}

// TestGROAssistDoesNotReceive: decoys get nothing, and the address is free when all is closed.
func TestGROAssistDoesNotReceive(t *testing.T) {
	ns := freshNS(t)
	for range 3 {
		client := udpSocketIn(t, ns, unix.AF_INET, bound("0.0.0.0:1194"))
		ours, info := share(t, client, 2)
		g, err := assistGRO(client, info)
		if err != nil {
			t.Fatal(err)
		}
		checkSplit(t, ns, client, ours, netip.MustParseAddrPort("127.0.0.1:1194"))
		client.Close()
		g.close()
		closeAll(&ours)
	}
	udpSocketIn(t, ns, unix.AF_INET, bound("0.0.0.0:1194"))
}

// TestAppendIPv6Checksum: the receiver's sum over pseudo-header and datagram is all ones (RFC 1071).
func TestAppendIPv6Checksum(t *testing.T) {
	from, to := netip.MustParseAddrPort("[2001:db8::2]:2000"), netip.MustParseAddrPort("[2001:db8::1]:1194")
	for size := range 70 {
		datagram := make([]byte, size)
		for i := range datagram {
			datagram[i] = byte(0xf7 * (i + size))
		}
		packet := appendIPv6([]byte("slack"), datagram, from, to)[len("slack"):]
		udp := packet[ipv6HeaderLen:]
		pseudo := append(slices.Clone(packet[8:40]), 0, 0, 0, byte(len(udp)), 0, 0, 0, unix.IPPROTO_UDP)
		sum := 0
		for _, part := range [][]byte{pseudo, append(slices.Clone(udp), 0)} {
			for i := 0; i+1 < len(part); i += 2 {
				sum += int(binary.BigEndian.Uint16(part[i:]))
			}
		}
		if sum%0xffff != 0 {
			t.Fatalf("%d bytes: sum %#x", size, sum)
		}
		if got := binary.BigEndian.Uint16(packet[4:]); int(got) != len(udp) || !slices.Equal(udp[udpHeaderLen:], datagram) {
			t.Fatalf("%d bytes: payload length %d, datagram %x", size, got, udp)
		}
	}
}

// TestSetGRO: without assistance datagrams stay apart, and the program sees each.
func TestSetGRO(t *testing.T) {
	server, peer := groNet(t)
	client := udpSocketIn(t, server, unix.AF_INET, bound("0.0.0.0:1194"))
	ours, _ := share(t, client, 1)
	if err := setGRO(ours[0], false); err != nil {
		t.Fatal(err)
	}
	for port := range 10 {
		sock := udpSocketIn(t, peer, unix.AF_INET, bound(fmt.Sprintf("198.51.100.2:%d", 2000+port)))
		sendBurst(t, sock, netip.MustParseAddrPort("198.51.100.1:1194"), 5, crypto.OpcodeDataV2, 4)
		if _, packet := arrival(t, rawFD(t, client)); len(packet) != 50 {
			t.Errorf("the client received %x", packet)
		}
		got := 0
		eventually(t, "the data packets arrive", func() bool {
			g, ok := receiveGRO(t, ours[0])
			if ok {
				got++
			}
			if len(g.packets) > 1 {
				t.Errorf("%d datagrams were merged", len(g.packets))
			}
			return got == 5
		})
	}
}
