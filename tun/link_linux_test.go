package tun_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	wireguard "golang.zx2c4.com/wireguard/tun"

	"ovpn-go/tun"
	"ovpn-go/tun/netns"
)

// site is one end of a tunnel: a namespace with a device that is up and has addresses.
type site struct {
	ns     *netns.NS
	device *tun.Device
	addr4  netip.Addr
	addr6  netip.Addr
}

func newSite(t testing.TB, number byte) *site {
	t.Helper()
	s := &site{
		ns:    newNetNS(t),
		addr4: netip.AddrFrom4([4]byte{10, 8, 0, number}),
		addr6: netip.AddrFrom16([16]byte{0: 0xfd, 15: number}),
	}
	s.device = openDevice(t, tun.Config{NetNS: s.ns, Name: "vpn", Carrier: true})
	change(t, s.ns, "vpn", func(link netlink.Link) error {
		for addr, bits := range map[netip.Addr]int{s.addr4: 24, s.addr6: 64} {
			prefix := &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(bits, addr.BitLen())}
			// The address is to be used at once, so no duplicate address detection.
			err := netlink.AddrAdd(link, &netlink.Addr{IPNet: prefix, Flags: unix.IFA_F_NODAD})
			if err != nil {
				return fmt.Errorf("add %v: %w", addr, err)
			}
		}
		return netlink.LinkSetUp(link)
	})
	// A worker of the kernel's makes an IPv6 address the system's own, some time after the link is up.
	inside(t, s.ns, func() error {
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			routes, err := netlink.RouteGet(s.addr6.AsSlice())
			if err == nil && routes[0].Type == unix.RTN_LOCAL {
				return nil
			}
			if time.Now().After(end) {
				return fmt.Errorf("%v is not the system's own: %v, %v", s.addr6, routes, err)
			}
		}
	})
	return s
}

// direction counts what went one way between two sites.
type direction struct {
	super   [256]int // super-frames read, by segmentation type
	packets uint64
	writes  uint64
	dropped int // packets that the queue refused
	err     error
}

// pump carries the frames of one queue to another as a tunnel does, until stop is readable.
func pump(from, to *tun.Queue, stop int) (d direction) {
	c := tun.NewCoalescer(to)
	defer func() { d.packets, d.writes = c.Stats().Packets, c.Stats().Writes }()
	var s tun.Splitter
	frame := make([]byte, tun.MaxFrame)
	for {
		n, err := from.Read(frame)
		if err == unix.EAGAIN {
			d.dropped += c.Flush()
			if done, err := wait(from.FD(), stop); done || err != nil {
				d.err = err
				return d
			}
			continue
		}
		if err != nil {
			d.err = fmt.Errorf("read: %w", err)
			return d
		}
		if err := s.Reset(frame[:n]); err != nil {
			d.err = fmt.Errorf("frame %x of %d bytes: %w", frame[:80], n, err)
			return d
		}
		if s.Packets() > 1 {
			d.super[frame[1]]++
		}
		for {
			p, ok := s.Next()
			if !ok {
				break
			}
			copy(c.Next(len(p)), p)
			d.dropped += c.Commit()
		}
	}
}

// wait returns when one of two descriptors is readable, and whether it is the second.
func wait(fd, stop int) (stopped bool, err error) {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(stop), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(fds, -1); err != unix.EINTR {
			return fds[1].Revents != 0, err
		}
	}
}

// join runs a tunnel between two sites; the function returned ends it and says what it carried.
func join(t testing.TB, a, b *site) func() (there, back direction) {
	t.Helper()
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	var there, back direction
	var group sync.WaitGroup
	group.Go(func() { there = pump(a.device.Queues()[0], b.device.Queues()[0], stop) })
	group.Go(func() { back = pump(b.device.Queues()[0], a.device.Queues()[0], stop) })
	end := sync.OnceFunc(func() {
		unix.Write(stop, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		group.Wait()
		unix.Close(stop)
	})
	t.Cleanup(end)
	return func() (direction, direction) {
		end()
		for _, d := range []direction{there, back} {
			if d.err != nil {
				t.Fatal(d.err)
			}
			if d.dropped != 0 {
				t.Errorf("%d packets dropped", d.dropped)
			}
		}
		return there, back
	}
}

// joinWireguard is join with wireguard-go's tun package in place of ours at b, so that its splitting
// and merging judges ours. It drives a duplicate of the descriptor.
func joinWireguard(t testing.TB, a, b *site) func() (there, back direction) {
	t.Helper()
	fd, err := unix.FcntlInt(uintptr(b.device.Queues()[0].FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	other, _, err := wireguard.CreateUnmonitoredTUNFromFD(fd)
	if err != nil {
		t.Fatal(err)
	}
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	var there, back direction
	var writer, reader sync.WaitGroup
	writer.Go(func() { there.super, there.err = toWireguard(a.device.Queues()[0], other, stop) })
	reader.Go(func() { back = fromWireguard(other, a.device.Queues()[0]) })
	end := sync.OnceFunc(func() {
		unix.Write(stop, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		writer.Wait()
		other.Close() // ends the reader
		reader.Wait()
		unix.Close(stop)
	})
	t.Cleanup(end)
	return func() (direction, direction) {
		end()
		for _, d := range []direction{there, back} {
			if d.err != nil {
				t.Fatal(d.err)
			}
			if d.dropped != 0 {
				t.Errorf("%d packets dropped", d.dropped)
			}
		}
		return there, back
	}
}

// wireguardOffset is the room that wireguard-go wants in front of a packet, for a vnet header.
const wireguardOffset = tun.VnetHdrLen

// toWireguard splits the frames of a queue into wireguard-go's Write.
func toWireguard(from *tun.Queue, to wireguard.Device, stop int) (super [256]int, err error) {
	var s tun.Splitter
	frame := make([]byte, tun.MaxFrame)
	for {
		n, err := from.Read(frame)
		if err == unix.EAGAIN {
			if done, err := wait(from.FD(), stop); done || err != nil {
				return super, err
			}
			continue
		}
		if err == nil {
			err = s.Reset(frame[:n])
		}
		if err != nil {
			return super, err
		}
		if s.Packets() > 1 {
			super[frame[1]]++
		}
		var bufs [][]byte
		for {
			p, ok := s.Next()
			if !ok {
				break
			}
			// It merges into the first buffer's capacity.
			buf := make([]byte, wireguardOffset, wireguardOffset+65535)
			bufs = append(bufs, append(buf, p...))
		}
		if _, err := to.Write(bufs, wireguardOffset); err != nil {
			return super, fmt.Errorf("wireguard-go refuses %d packets: %w", len(bufs), err)
		}
	}
}

// fromWireguard merges what wireguard-go's Read has split.
func fromWireguard(from wireguard.Device, to *tun.Queue) (d direction) {
	c := tun.NewCoalescer(to)
	defer func() { d.packets, d.writes = c.Stats().Packets, c.Stats().Writes }()
	bufs, sizes := make([][]byte, from.BatchSize()), make([]int, from.BatchSize())
	for i := range bufs {
		bufs[i] = make([]byte, tun.MaxFrame)
	}
	for {
		n, err := from.Read(bufs, sizes, 0)
		if errors.Is(err, os.ErrClosed) {
			return d
		}
		if err != nil {
			d.err = err
			return d
		}
		for i := range n {
			copy(c.Next(sizes[i]), bufs[i][:sizes[i]])
			d.dropped += c.Commit()
		}
		d.dropped += c.Flush()
	}
}

// exchange sends random bytes both ways over one TCP connection and compares their hashes.
func exchange(t testing.TB, a, b *site, addr netip.Addr, size int64) {
	t.Helper()
	var listener net.Listener
	inside(t, b.ns, func() (err error) {
		listener, err = net.Listen("tcp", netip.AddrPortFrom(addr, 5001).String())
		return err
	})
	defer listener.Close()

	type result struct {
		sent, received [sha256.Size]byte
		err            error
	}
	talk := func(conn net.Conn, seed byte) (r result) {
		conn.SetDeadline(time.Now().Add(60 * time.Second))
		sending := make(chan error, 1)
		go func() {
			sum := sha256.New()
			random := rand.NewChaCha8([32]byte{seed})
			_, err := io.Copy(conn, io.TeeReader(io.LimitReader(random, size), sum))
			sum.Sum(r.sent[:0])
			sending <- errors.Join(err, conn.(*net.TCPConn).CloseWrite())
		}()
		sum := sha256.New()
		n, err := io.Copy(sum, conn)
		if n != size && err == nil {
			err = fmt.Errorf("received %d bytes, want %d", n, size)
		}
		sum.Sum(r.received[:0])
		r.err = errors.Join(err, <-sending, conn.Close())
		return r
	}

	server := make(chan result, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			server <- result{err: err}
			return
		}
		server <- talk(conn, 1)
	}()
	var conn net.Conn
	inside(t, a.ns, func() (err error) {
		conn, err = net.DialTimeout("tcp", listener.Addr().String(), 30*time.Second)
		return err
	})
	here := talk(conn, 2)
	there := <-server
	if err := errors.Join(here.err, there.err); err != nil {
		t.Fatal(err)
	}
	if here.sent != there.received || there.sent != here.received {
		t.Error("the bytes received are not those sent")
	}
}

func TestLinkCarriesTCP(t *testing.T) {
	for _, row := range []struct {
		name string
		join func(testing.TB, *site, *site) func() (direction, direction)
	}{
		{"both ends ours", join},
		{"wireguard-go at the other end", joinWireguard},
	} {
		for _, version := range []string{"IPv4", "IPv6"} {
			t.Run(row.name+", "+version, func(t *testing.T) {
				a, b := newSite(t, 1), newSite(t, 2)
				end := row.join(t, a, b)
				addr, gso := b.addr4, unix.VIRTIO_NET_HDR_GSO_TCPV4
				if version == "IPv6" {
					addr, gso = b.addr6, unix.VIRTIO_NET_HDR_GSO_TCPV6
				}
				exchange(t, a, b, addr, 8<<20)
				there, back := end()
				if there.super[gso] == 0 {
					t.Error("no super-frame was read")
				}
				if back.packets <= back.writes {
					t.Errorf("%d packets in %d writes: no super-frame was written", back.packets, back.writes)
				}
				if row.name == "both ends ours" && (back.super[gso] == 0 || there.packets <= there.writes) {
					t.Errorf("no super-frames the other way: %d read, %d packets in %d writes",
						back.super[gso], there.packets, there.writes)
				}
			})
		}
	}
}

// TestLinkCarriesUDPSuperFrames sends with UDP_SEGMENT and receives datagram by datagram.
func TestLinkCarriesUDPSuperFrames(t *testing.T) {
	a, b := newSite(t, 1), newSite(t, 2)
	if !a.device.Features().USO {
		t.Skip("needs UDP segmentation offload of TUN devices (Linux 6.2)")
	}
	end := join(t, a, b)
	const size, last, count = 1000, 300, 40
	for _, addrs := range [][2]netip.Addr{{a.addr4, b.addr4}, {a.addr6, b.addr6}} {
		var from, to *net.UDPConn
		inside(t, a.ns, func() (err error) {
			from, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addrs[0], 4000)))
			return err
		})
		defer from.Close()
		inside(t, b.ns, func() (err error) {
			to, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addrs[1], 5000)))
			return err
		})
		defer to.Close()
		raw, err := from.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var optErr error
		err = raw.Control(func(fd uintptr) {
			optErr = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, size)
		})
		if err := errors.Join(err, optErr); err != nil {
			t.Fatal(err)
		}
		to.SetReadDeadline(time.Now().Add(30 * time.Second))
		random := newRandom(t)
		for range 20 {
			data := randomBytes(random, (count-1)*size+last)
			if _, err := from.WriteToUDPAddrPort(data, netip.AddrPortFrom(addrs[1], 5000)); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 2000)
			for i := range count {
				n, sender, err := to.ReadFromUDPAddrPort(buf)
				if err != nil {
					t.Fatalf("datagram %d: %v", i, err)
				}
				if want := data[i*size : min(i*size+size, len(data))]; !bytes.Equal(buf[:n], want) {
					t.Fatalf("datagram %d has %d bytes, want others (%d)", i, n, len(want))
				}
				if got := sender.Addr().Unmap(); got != addrs[0] {
					t.Fatalf("sender %v, want %v", got, addrs[0])
				}
			}
		}
	}
	there, _ := end()
	if there.super[unix.VIRTIO_NET_HDR_GSO_UDP_L4] == 0 {
		t.Error("no super-frame was read")
	}
	if there.packets <= there.writes {
		t.Errorf("%d packets in %d writes: no super-frame was written", there.packets, there.writes)
	}
}
