package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/rpc"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	ovpn "ovpn-go/netlinksrv/client"
)

// An End is the process at one end of a tunnel: it has the sockets and speaks netlink, to the kernel or, under
// "ovpn-go exec", to the program. Its exported methods are called over the socket it listens on; they may be called
// concurrently.
type End struct {
	conn    *ovpn.Conn
	ifindex atomic.Int64

	mu      sync.Mutex
	sockets map[int]bool  // guarded by mu: open descriptors
	notices []ovpn.Event  // guarded by mu
	news    chan struct{} // guarded by mu: closed and replaced with each notice
}

// None stands for no argument and for no result.
type None struct{}

// serveEnd listens on the path and, if there is a command, runs it: it has the same namespace and is
// answered by the same side. The exit status is the command's.
func serveEnd(path string, command []string) (status int, err error) {
	conn, err := ovpn.Dial()
	if err != nil {
		return 0, err
	}
	end := &End{conn: conn, sockets: map[int]bool{}, news: make(chan struct{})}
	if err := end.listen(); err != nil {
		return 0, err
	}
	server := rpc.NewServer()
	if err := server.Register(end); err != nil {
		return 0, err
	}
	// The path appears with a socket that already answers.
	listener, err := net.Listen("unix", path+".new")
	if err != nil {
		return 0, err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return 0, err
	}
	if len(command) == 0 {
		server.Accept(listener) // until somebody ends the process
		return 0, nil
	}
	go server.Accept(listener)
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGUSR1)
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	go func() {
		for s := range signals {
			// It may have ended by itself.
			_ = cmd.Process.Signal(s)
		}
	}()
	var exit *exec.ExitError
	if err := cmd.Wait(); errors.As(err, &exit) {
		return exit.ExitCode(), nil
	} else if err != nil {
		return 0, err
	}
	return 0, nil
}

// listen collects announcements.
func (e *End) listen() error {
	monitor, err := ovpn.OpenMonitor()
	if err != nil {
		return err
	}
	go func() {
		for {
			event, err := monitor.Next()
			if err != nil {
				fmt.Fprintln(os.Stderr, "announcements:", err)
				return
			}
			event.Ifindex = 0 // whatever it is
			e.mu.Lock()
			e.notices = append(e.notices, event)
			close(e.news)
			e.news = make(chan struct{})
			e.mu.Unlock()
		}
	}()
	return nil
}

// NewLink makes the device.
func (e *End) NewLink(l ovpn.LinkConfig, _ *None) error {
	if err := e.conn.NewLink(l); err != nil {
		return err
	}
	return e.UseLink(l.Name, nil)
}

// UseLink takes a device that somebody else has made.
func (e *End) UseLink(name string, _ *None) error {
	link, err := e.conn.Link(name)
	e.ifindex.Store(int64(link.Index))
	return err
}

// DelLink deletes the device, and closes the sockets and forgets the notices.
func (e *End) DelLink(name string, _ *None) error {
	err := e.conn.DeleteLink(name)
	e.mu.Lock()
	defer e.mu.Unlock()
	for fd := range e.sockets {
		err = errors.Join(err, unix.Close(fd))
	}
	clear(e.sockets)
	e.notices = nil
	return err
}

// Endpoint is a socket's address, and its family: an IPv4 address on a socket of both families is mapped to IPv6.
type Endpoint struct {
	Address netip.AddrPort
	// Only6 makes a socket of IPv6 refuse the other family.
	Only6 bool
}

// Bind opens a UDP socket and returns its id.
func (e *End) Bind(at Endpoint, id *int) error {
	fd, err := open(at, unix.SOCK_DGRAM)
	*id = fd
	return e.keep(fd, err)
}

// Listen opens a TCP socket that listens.
func (e *End) Listen(at Endpoint, id *int) error {
	fd, err := open(at, unix.SOCK_STREAM)
	if err == nil {
		err = unix.Listen(fd, 1)
	}
	*id = fd
	return e.keep(fd, err)
}

// Accept takes the next connection of a socket that listens and closes that.
func (e *End) Accept(listener int, id *int) error {
	fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
	*id = fd
	return errors.Join(e.keep(fd, err), e.Close(listener, nil))
}

// Dial opens a TCP connection.
func (e *End) Dial(to Endpoint, id *int) error {
	any := netip.IPv4Unspecified()
	if to.Address.Addr().Is6() {
		any = netip.IPv6Unspecified()
	}
	fd, err := open(Endpoint{Address: netip.AddrPortFrom(any, 0)}, unix.SOCK_STREAM)
	if err == nil {
		err = unix.Connect(fd, sockaddr(to.Address))
	}
	*id = fd
	return e.keep(fd, err)
}

func (e *End) keep(fd int, err error) error {
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.sockets[fd] = true
	return nil
}

// Close closes a socket.
func (e *End) Close(id int, _ *None) error {
	e.mu.Lock()
	delete(e.sockets, id)
	e.mu.Unlock()
	return unix.Close(id)
}

func open(at Endpoint, kind int) (int, error) {
	domain := unix.AF_INET
	if at.Address.Addr().Is6() {
		domain = unix.AF_INET6
	}
	fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if domain == unix.AF_INET6 {
		only := 0
		if at.Only6 {
			only = 1
		}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only); err != nil {
			return fd, err
		}
	}
	return fd, unix.Bind(fd, sockaddr(at.Address))
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// NewPeer adds a peer.
func (e *End) NewPeer(p ovpn.PeerConfig, _ *None) error { return e.conn.NewPeer(e.index(), p) }

// SetKeepalive sets a peer's times.
func (e *End) SetKeepalive(k ovpn.Keepalive, _ *None) error {
	return e.conn.SetPeer(e.index(), thePeer, ovpn.PeerChange{Keepalive: &k})
}

// NewKey installs a key.
func (e *End) NewKey(k ovpn.KeyConfig, _ *None) error { return e.conn.NewKey(e.index(), thePeer, k) }

// SwapKeys swaps the peer's slots.
func (e *End) SwapKeys(None, *None) error { return e.conn.SwapKeys(e.index(), thePeer) }

// DelKey empties a slot.
func (e *End) DelKey(s ovpn.Slot, _ *None) error { return e.conn.DeleteKey(e.index(), thePeer, s) }

// Peers dumps the device's peers.
func (e *End) Peers(_ None, all *[]ovpn.Peer) (err error) {
	*all, err = e.conn.Peers(e.index())
	return err
}

func (e *End) index() int { return int(e.ifindex.Load()) }

// Notices returns the announcements so far, as soon as there are more than the caller has seen.
func (e *End) Notices(seen int, all *[]ovpn.Event) error {
	for {
		e.mu.Lock()
		notices, news := slices.Clone(e.notices), e.news
		e.mu.Unlock()
		if len(notices) > seen {
			*all = notices
			return nil
		}
		<-news
	}
}
