package hold

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Command is the argument that makes a program a holder; see Main.
const Command = "hold-socket"

// patience is how long either side waits for the other's next word.
const patience = 10 * time.Second

// A Claim is a socket that a holder keeps for a peer that is about to be added.
type Claim struct {
	// Socket is a duplicate of the holder's.
	Socket *os.File
	conn   *net.UnixConn
}

// claim is what is told to the holder: whom the socket is for.
type claim struct {
	Ifindex int    `json:"ifindex"`
	Peer    uint32 `json:"peer"`
}

// Acquire returns the UDP socket bound to local in the calling thread's network namespace, for a peer of the interface. If no
// holder has it, it starts one: the program at path with the argument Command. The peer is added between Acquire and
// Keep.
func Acquire(path string, local netip.AddrPort, ifindex int, peer uint32) (*Claim, error) {
	for attempt := 0; ; attempt++ {
		conn, err := dial(name(local))
		if errors.Is(err, unix.ECONNREFUSED) {
			socket, bound, startErr := open(local)
			if startErr == nil {
				startErr = start(path, name(bound), socket)
			}
			if startErr != nil {
				return nil, fmt.Errorf("hold a socket at %v: %w", local, startErr)
			}
			conn, err = dial(name(bound))
		}
		if err != nil {
			return nil, fmt.Errorf("reach the holder of %v: %w", local, err)
		}
		c := &Claim{conn: conn}
		if err = c.ask(claim{ifindex, peer}); err == nil {
			return c, nil
		}
		conn.Close()
		// A holder whose last peer was just removed has ended without an answer.
		ended := errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
		if !ended || attempt == 2 {
			return nil, fmt.Errorf("ask the holder of %v: %w", local, err)
		}
	}
}

// name is the address of the holder of a UDP socket. Abstract names belong to the network namespace.
func name(local netip.AddrPort) *net.UnixAddr {
	return &net.UnixAddr{Name: "@ovpn-go/udp/" + local.String(), Net: "unixpacket"}
}

func dial(holder *net.UnixAddr) (*net.UnixConn, error) {
	conn, err := net.DialUnix("unixpacket", nil, holder)
	if err != nil {
		return nil, err
	}
	// Anybody may take a name that is free.
	if err := sameUser(conn); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// sameUser checks that the other end runs as the same user as we do.
func sameUser(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var credentials *unix.Ucred
	if controlErr := raw.Control(func(fd uintptr) {
		credentials, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); controlErr != nil {
		return controlErr
	}
	if err != nil {
		return fmt.Errorf("ask who the other end is: %w", err)
	}
	if int(credentials.Uid) != os.Geteuid() {
		return fmt.Errorf("process %d of user %d has taken the name of the holder: %w", credentials.Pid, credentials.Uid, unix.EPERM)
	}
	return nil
}

// start hands a socket to a new holder of that name, which outlives the caller, and closes it here.
func start(path string, holder *net.UnixAddr, socket *os.File) error {
	defer socket.Close()
	listener, err := net.ListenUnix("unixpacket", holder)
	if err != nil {
		return err
	}
	defer listener.Close()
	listening, err := listener.File()
	if err != nil {
		return err
	}
	defer listening.Close()
	cmd := exec.Command(path, Command)
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{listening, socket}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	return cmd.Process.Release()
}

// open makes the socket as OpenVPN does: not connected, and on an unspecified IPv6 address for IPv4 as well.
func open(local netip.AddrPort) (socket *os.File, bound netip.AddrPort, err error) {
	// Without a zone's digits the address would be bound somewhere else.
	if local.Addr().Zone() != "" {
		return nil, bound, fmt.Errorf("bind %v: an address with a zone is not supported: %w", local, unix.EINVAL)
	}
	domain := unix.AF_INET6
	var address unix.Sockaddr = &unix.SockaddrInet6{Port: int(local.Port()), Addr: local.Addr().As16()}
	if local.Addr().Is4() {
		domain = unix.AF_INET
		address = &unix.SockaddrInet4{Port: int(local.Port()), Addr: local.Addr().As4()}
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return nil, bound, os.NewSyscallError("socket", err)
	}
	socket = os.NewFile(uintptr(fd), "udp "+local.String())
	port, err := bind(fd, domain, address)
	if err != nil {
		socket.Close()
		return nil, bound, err
	}
	return socket, netip.AddrPortFrom(local.Addr(), port), nil
}

// bind returns the port that the socket has got.
func bind(fd, domain int, address unix.Sockaddr) (port uint16, err error) {
	if domain == unix.AF_INET6 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0); err != nil {
			return 0, os.NewSyscallError("setsockopt IPV6_V6ONLY", err)
		}
	}
	if err := unix.Bind(fd, address); err != nil {
		return 0, os.NewSyscallError("bind", err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return 0, os.NewSyscallError("getsockname", err)
	}
	switch name := name.(type) {
	case *unix.SockaddrInet4:
		port = uint16(name.Port)
	case *unix.SockaddrInet6:
		port = uint16(name.Port)
	}
	return port, nil
}

// ask registers the claim and receives the socket.
func (c *Claim) ask(what claim) error {
	message, err := json.Marshal(what)
	if err != nil {
		return err
	}
	if err := c.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := c.conn.Write(message); err != nil {
		return err
	}
	_, c.Socket, err = receive(c.conn, make([]byte, 1))
	return err
}

// receive reads a message that comes with a socket.
func receive(conn *net.UnixConn, b []byte) (size int, socket *os.File, err error) {
	oob := make([]byte, unix.CmsgSpace(4))
	size, n, _, _, err := conn.ReadMsgUnix(b, oob)
	if err != nil {
		return 0, nil, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return 0, nil, err
	}
	if len(messages) != 1 {
		return 0, nil, errors.New("it sent no socket")
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return 0, nil, err
	}
	unix.CloseOnExec(fds[0])
	return size, os.NewFile(uintptr(fds[0]), "transport socket"), nil
}

// Keep says that the peer was added. From then on the holder keeps the socket until the peer is gone: what Socket is now, as
// adding a TCP peer may have replaced it.
func (c *Claim) Keep() error {
	if _, _, err := c.conn.WriteMsgUnix([]byte("keep"), unix.UnixRights(int(c.Socket.Fd())), nil); err != nil {
		return fmt.Errorf("tell the holder to keep the socket: %w", err)
	}
	if _, err := c.conn.Read(make([]byte, 1)); err != nil {
		return fmt.Errorf("tell the holder to keep the socket: %w", err)
	}
	return nil
}

// Close ends the conversation and closes the duplicate. Without Keep the holder forgets the claim.
func (c *Claim) Close() error { return errors.Join(c.Socket.Close(), c.conn.Close()) }
