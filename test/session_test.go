package test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/crypto"
	"ovpn-go/netlinksrv/client"
	"ovpn-go/tun/tuntest"
)

// sessionVariable makes the test binary a client that goes through a session over the transport it names, "udp" or "tcp". Its first
// argument says how; see runSession.
const sessionVariable = "OVPN_GO_TEST_SESSION"

func init() {
	transport := os.Getenv(sessionVariable)
	if transport == "" {
		return
	}
	if err := runSession(transport, os.Args[1]); err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// A session is all that a client does with a link that has one peer, whose other side it is as well.
type session struct {
	*ovpnClient
	transport string
	monitor   *client.Monitor
	near, far int          // the transport: the peer's socket, and the other side's
	inner     *net.UDPConn // what sends and receives through the tunnel
	seal      *crypto.Key  // of the other side
	packets   uint32       // how many it has sent
}

const (
	sessionLink = "ovpn0"
	sessionPeer = 7
)

type sessionStep struct {
	name string
	do   func(*session) error
}

// sessionSteps are the steps of a session by name. Those from linkMade on leave a link until linkDeleted.
var sessionSteps = []sessionStep{
	{"family resolved", (*session).resolve},
	{linkMade, (*session).makeLink},
	{"socket opened", (*session).openSockets},
	{"peer made", (*session).makePeer},
	{"key made", func(s *session) error { return s.makeKey(client.Primary, 0) }},
	{"peer set", (*session).setPeer},
	{"traffic", func(s *session) error { return errors.Join(s.useKey(0), s.exchange()) }},
	{"second key made", func(s *session) error { return s.makeKey(client.Secondary, 1) }},
	{"keys swapped", func(s *session) error { return s.SwapKeys(s.ifindex, sessionPeer) }},
	{"traffic under the second key", func(s *session) error { return errors.Join(s.useKey(1), s.exchange()) }},
	{"first key deleted", func(s *session) error { return s.DeleteKey(s.ifindex, sessionPeer, client.Secondary) }},
	{"peer deleted", (*session).endPeer},
	{linkDeleted, func(s *session) error { return s.DeleteLink(sessionLink) }},
}

const (
	linkMade    = "link made"
	linkDeleted = "link deleted"
)

// runSession is the client. With "step" it says its process id, then each step when that is done, and reads a line before it goes on; with
// "hurry" it only says its process id. With "clear" it waits until a session's link, if it was left, has no peers, and deletes it. "insist" is
// insist.
func runSession(transport, how string) error {
	in := bufio.NewScanner(os.Stdin)
	switch how {
	case "clear":
		return clearSession()
	case "insist":
		return insist(transport, in)
	}
	fmt.Println(os.Getpid())
	s := session{transport: transport}
	for _, step := range sessionSteps {
		if err := step.do(&s); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
		if how == "step" {
			fmt.Println(step.name)
			if !in.Scan() {
				return nil
			}
		}
	}
	return nil
}

func clearSession() error {
	c, err := client.Dial()
	if err != nil {
		return err
	}
	link, err := c.Link(sessionLink)
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		left, err := c.Peers(link.Index)
		if err != nil {
			return err
		}
		if len(left) == 0 {
			return c.DeleteLink(sessionLink)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d peers are left without their socket", len(left))
		}
	}
}

func (s *session) resolve() error {
	conn, err := client.Dial()
	if err != nil {
		return err
	}
	if err := conn.Usable(); err != nil {
		return err
	}
	s.ovpnClient = &ovpnClient{Conn: conn}
	s.monitor, err = client.OpenMonitor()
	return err
}

func (s *session) makeLink() error {
	if err := s.NewLink(client.LinkConfig{Name: sessionLink, Mode: client.MP}); err != nil {
		return err
	}
	link, err := s.Link(sessionLink)
	if err != nil {
		return err
	}
	s.ifindex = link.Index
	if err := setUpInterface(sessionLink, tunnelEnds[0]); err != nil {
		return err
	}
	return s.listen()
}

// listen opens what sends and receives through the tunnel.
func (s *session) listen() (err error) {
	s.inner, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(tunnelEnds[0], 0)))
	return err
}

// setUpInterface gives an interface an address in a network of 24 bits and sets it up. It does without netlink, as not every library takes
// what answers under the program's filter for a netlink socket.
func setUpInterface(name string, addr netip.Addr) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, set := range []struct {
		request uint
		value   func(*unix.Ifreq) error
	}{
		{unix.SIOCSIFADDR, func(r *unix.Ifreq) error { return r.SetInet4Addr(addr.AsSlice()) }},
		{unix.SIOCSIFNETMASK, func(r *unix.Ifreq) error { return r.SetInet4Addr(net.CIDRMask(24, 32)) }},
		{unix.SIOCSIFFLAGS, func(r *unix.Ifreq) error { r.SetUint16(unix.IFF_UP); return nil }},
	} {
		r, err := unix.NewIfreq(name)
		if err == nil {
			err = set.value(r)
		}
		if err == nil {
			err = unix.IoctlIfreq(fd, set.request, r)
		}
		if err != nil {
			return fmt.Errorf("set up %s: %w", name, err)
		}
	}
	return nil
}

// sessionAt is the peer's socket over UDP. Another session can bind to it only if nothing of the last one is left.
var sessionAt = netip.MustParseAddrPort("127.0.0.1:1194")

func (s *session) openSockets() (err error) {
	if s.transport == "tcp" {
		s.near, s.far, err = tcpPair()
	} else {
		var fds [2]int
		for i, port := range []uint16{sessionAt.Port(), 0} {
			if fds[i], err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
				return err
			}
			if err := unix.Bind(fds[i], inet4(netip.AddrPortFrom(sessionAt.Addr(), port))); err != nil {
				return err
			}
		}
		s.near, s.far = fds[0], fds[1]
	}
	if err != nil {
		return err
	}
	patience := unix.Timeval{Sec: 10}
	return unix.SetsockoptTimeval(s.far, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience)
}

func (s *session) makePeer() error {
	cfg := client.PeerConfig{ID: sessionPeer, Socket: s.near, VPN4: tunnelEnds[1]}
	if s.transport == "udp" {
		far, err := unix.Getsockname(s.far)
		if err != nil {
			return err
		}
		cfg.Remote = netip.AddrPortFrom(sessionAt.Addr(), uint16(far.(*unix.SockaddrInet4).Port))
	}
	return s.NewPeer(s.ifindex, cfg)
}

// sessionKey is the key with an id, which is the same in both directions.
func sessionKey(id uint8) []byte { return slices.Repeat([]byte{id + 1}, 32) }

func (s *session) makeKey(slot client.Slot, id uint8) error {
	same := client.Direction{Key: sessionKey(id)}
	return s.NewKey(s.ifindex, sessionPeer, client.KeyConfig{Slot: slot, ID: id, Cipher: client.AESGCM, Encrypt: same, Decrypt: same})
}

func (s *session) setPeer() error {
	alive := client.Keepalive{Interval: 10 * time.Second, Timeout: time.Minute}
	return s.SetPeer(s.ifindex, sessionPeer, client.PeerChange{Keepalive: &alive})
}

// useKey has the other side use the key with an id.
func (s *session) useKey(id uint8) (err error) {
	same := crypto.Direction{Key: sessionKey(id)}
	s.seal, err = crypto.NewKey(crypto.KeyConfig{ID: id, Cipher: crypto.AESGCM, Encrypt: same, Decrypt: same})
	s.packets = 0
	return err
}

// exchange passes a packet each way through the tunnel.
func (s *session) exchange() error {
	const port = 9 // of the other side
	payload := []byte("through the tunnel")
	if err := s.inner.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := s.inner.WriteToUDPAddrPort(payload, netip.AddrPortFrom(tunnelEnds[1], port)); err != nil {
		return err
	}
	packet, err := s.receive()
	if err != nil {
		return fmt.Errorf("out: %w", err)
	}
	if len(packet) < crypto.Overhead || crypto.KeyID(packet[0]) != s.seal.ID() || crypto.PeerID(packet) != sessionPeer {
		return fmt.Errorf("out: packet %x", packet)
	}
	plain := make([]byte, len(packet)-crypto.Overhead)
	if err := s.seal.Open(plain, packet); err != nil || !bytes.HasSuffix(plain, payload) {
		return fmt.Errorf("out: %x: %w", plain, err)
	}
	ip := tuntest.IP{Src: tunnelEnds[1], Dst: tunnelEnds[0]}
	own := s.inner.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	plain = ip.UDP(tuntest.UDP{Src: port, Dst: own}, payload)
	packet = make([]byte, crypto.Overhead+len(plain), crypto.Overhead+len(plain)+crypto.TagSize)
	s.packets++
	s.seal.Seal(packet, plain, crypto.Op(s.seal.ID(), sessionPeer), s.packets)
	if err := s.send(packet); err != nil {
		return fmt.Errorf("in: %w", err)
	}
	got := make([]byte, 100)
	n, err := s.inner.Read(got)
	if err != nil || !bytes.Equal(got[:n], payload) {
		return fmt.Errorf("in: %x: %w", got[:n], err)
	}
	return nil
}

// receive waits for a packet at the other side.
func (s *session) receive() ([]byte, error) {
	buf := make([]byte, 2000)
	if s.transport == "udp" {
		n, err := s.read(buf)
		return buf[:max(n, 0)], err
	}
	for have := 0; ; {
		n, err := s.read(buf[have:])
		if err == nil && n == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, err
		}
		have += n
		if have > 2 && have >= 2+int(binary.BigEndian.Uint16(buf)) {
			return buf[2:have], nil
		}
	}
}

// read reads at the other side. A read with a time limit is not restarted after a signal, such as those of Go's scheduler.
func (s *session) read(buf []byte) (n int, err error) {
	for {
		if n, err = unix.Read(s.far, buf); err != unix.EINTR {
			return n, err
		}
	}
}

// send sends a packet from the other side.
func (s *session) send(packet []byte) error {
	if s.transport == "udp" {
		return unix.Sendto(s.far, packet, 0, inet4(sessionAt))
	}
	_, err := unix.Write(s.far, append(binary.BigEndian.AppendUint16(nil, uint16(len(packet))), packet...))
	return err
}

// endPeer deletes the peer and hears of it.
func (s *session) endPeer() error {
	if err := s.DeletePeer(s.ifindex, sessionPeer); err != nil {
		return err
	}
	ev, err := s.monitor.Next()
	if err == nil && (ev.Kind != client.PeerDeleted || ev.Reason != client.Userspace || ev.PeerID != sessionPeer) {
		err = fmt.Errorf("%+v was announced", ev)
	}
	return err
}
