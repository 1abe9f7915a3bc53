package exec

import (
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv"
)

// fakeConnections are connections by the cookie of what replaced them.
type fakeConnections struct {
	mu   sync.Mutex
	byID map[uint64]*os.File
}

func (c *fakeConnections) HasConnections() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.byID) > 0
}

func (c *fakeConnections) Connection(cookie uint64) (*os.File, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	file := c.byID[cookie]
	if file == nil {
		return nil, nil
	}
	fd, err := unix.Dup(int(file.Fd()))
	return os.NewFile(uintptr(fd), "connection"), err
}

func (c *fakeConnections) SetMark(uint64, int) bool { return false }

func (c *fakeConnections) close() {
	for _, file := range c.byID {
		file.Close()
	}
}

// substitutes returns a server that puts one end of a pair in place of the descriptor that a request names, and
// the connections that it took.
func substitutes(t testing.TB) (*fakeServer, *fakeConnections) {
	c := &fakeConnections{byID: map[uint64]*os.File{}}
	t.Cleanup(c.close)
	s := newFakeServer()
	s.seen = func(task netlinksrv.Task, datagram []byte) {
		fd := int(binary.NativeEndian.Uint32(datagram[16:]))
		conn, err := task.File(fd)
		if err != nil {
			t.Error(err)
			return
		}
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Error(err)
			return
		}
		cookie, err := unix.GetsockoptUint64(pair[1], unix.SOL_SOCKET, unix.SO_COOKIE)
		if err != nil {
			t.Error(err)
		}
		c.mu.Lock()
		c.byID[cookie] = conn
		c.mu.Unlock()
		ours, theirs := os.NewFile(uintptr(pair[0]), "our end"), os.NewFile(uintptr(pair[1]), "client's end")
		defer theirs.Close()
		t.Cleanup(func() { ours.Close() })
		if err := task.Replace(inodeOf(t, conn), theirs); err != nil {
			t.Error(err)
		}
	}
	return s, c
}

// connectTCP returns both ends of a TCP connection over the loopback interface.
func connectTCP(loopback unix.Sockaddr, family int) (a, b int, err error) {
	listener, err := unix.Socket(family, unix.SOCK_STREAM, 0)
	if err != nil {
		return 0, 0, err
	}
	defer unix.Close(listener)
	if err := unix.Bind(listener, loopback); err != nil {
		return 0, 0, err
	}
	if err := unix.Listen(listener, 1); err != nil {
		return 0, 0, err
	}
	address, err := unix.Getsockname(listener)
	if err != nil {
		return 0, 0, err
	}
	if a, err = unix.Socket(family, unix.SOCK_STREAM, 0); err != nil {
		return 0, 0, err
	}
	if err := unix.Connect(a, address); err != nil {
		return 0, 0, err
	}
	b, _, err = unix.Accept(listener)
	return a, b, err
}

// surrender has the server replace a descriptor.
func surrender(fd int) error {
	conn, err := openNetlink(0, unix.NETLINK_GENERIC)
	if err != nil {
		return err
	}
	defer unix.Close(conn)
	if err := toKernel(conn)(request(1, string(binary.NativeEndian.AppendUint32(nil, uint32(fd))))); err != nil {
		return err
	}
	for range 2 {
		if _, err := unix.Read(conn, make([]byte, 100)); err != nil {
			return err
		}
	}
	return nil
}

func init() {
	roles["connection"] = func(args []string) error {
		var loopback unix.Sockaddr = &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
		family := unix.AF_INET
		if args[0] == "6" {
			loopback, family = &unix.SockaddrInet6{Addr: [16]byte{15: 1}}, unix.AF_INET6
		}
		fd, other, err := connectTCP(loopback, family)
		if err != nil {
			return err
		}
		name, err := socketName(fd)
		if err != nil {
			return err
		}
		peer, err := peerName(fd)
		if err != nil {
			return err
		}
		cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
		if err != nil {
			return err
		}
		if err := surrender(fd); err != nil {
			return err
		}

		got, err := socketName(fd)
		if err := expect("getsockname", string(got), err, string(name)); err != nil {
			return err
		}
		got, err = peerName(fd)
		if err := expect("getpeername", string(got), err, string(peer)); err != nil {
			return err
		}
		again, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
		if err := expect("SO_COOKIE", again, err, cookie); err != nil {
			return err
		}
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return fmt.Errorf("TCP_INFO: %w", err)
		}
		if err := expect("TCP_INFO's state", info.State, nil, 1); err != nil {
			return err
		}
		for _, option := range []struct {
			text        string
			level, name int
			want        int
		}{
			{"SO_DOMAIN", unix.SOL_SOCKET, unix.SO_DOMAIN, family},
			{"SO_TYPE", unix.SOL_SOCKET, unix.SO_TYPE, unix.SOCK_STREAM},
			{"SO_PROTOCOL", unix.SOL_SOCKET, unix.SO_PROTOCOL, unix.IPPROTO_TCP},
			{"SO_ERROR", unix.SOL_SOCKET, unix.SO_ERROR, 0},
			{"TCP_NODELAY", unix.IPPROTO_TCP, unix.TCP_NODELAY, 0},
		} {
			value, err := unix.GetsockoptInt(fd, option.level, option.name)
			if err := expect(option.text, value, err, option.want); err != nil {
				return err
			}
		}
		for _, option := range []struct {
			text        string
			level, name int
			set, get    int
		}{
			{"TCP_NODELAY", unix.IPPROTO_TCP, unix.TCP_NODELAY, 1, 1},
			{"TCP_USER_TIMEOUT", unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 1234, 1234},
			{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1, 1},
			{"SO_SNDBUF", unix.SOL_SOCKET, unix.SO_SNDBUF, 50000, 100000},
			{"IP_TOS", unix.IPPROTO_IP, unix.IP_TOS, 0x10, 0x10},
			// The client's own receiving: it stays with what the client receives from.
			{"SO_RCVLOWAT", unix.SOL_SOCKET, unix.SO_RCVLOWAT, 7, 7},
		} {
			if err := unix.SetsockoptInt(fd, option.level, option.name, option.set); err != nil {
				return fmt.Errorf("set %s: %w", option.text, err)
			}
			value, err := unix.GetsockoptInt(fd, option.level, option.name)
			if err := expect(option.text, value, err, option.get); err != nil {
				return err
			}
		}
		// An option whose value would have the server's memory read is not passed on.
		err = unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_ULP, "tls")
		if err := expectErrno("TCP_ULP", err, unix.EOPNOTSUPP); err != nil {
			return err
		}
		// A length that the value does not fit is the kernel's to judge.
		err = unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, "x")
		if err := expectErrno("TCP_NODELAY of one byte", err, unix.EINVAL); err != nil {
			return err
		}
		// Another connection answers for itself.
		value, err := unix.GetsockoptInt(other, unix.IPPROTO_TCP, unix.TCP_NODELAY)
		return expect("the other end's TCP_NODELAY", value, err, 0)
	}

	// asks prints how long a getsockopt takes, in nanoseconds, with "another" or "own" connection replaced.
	roles["asks"] = func(args []string) error {
		fd, other, err := connectTCP(&unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}, unix.AF_INET)
		if err != nil {
			return err
		}
		switch args[0] {
		case "another":
			err = surrender(other)
		case "own":
			err = surrender(fd)
		}
		if err != nil {
			return err
		}
		n, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		start := time.Now()
		for range n {
			if _, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY); err != nil {
				return err
			}
		}
		fmt.Println(time.Since(start).Nanoseconds() / int64(n))
		return nil
	}
}

func TestConnectionAnswersForItsSubstitute(t *testing.T) {
	for _, family := range []string{"4", "6"} {
		t.Run("IPv"+family, func(t *testing.T) {
			s, c := substitutes(t)
			o := underSupervisor(t, s, func(o *options) { o.session.connections = c }, roleCommand("connection", family)...)
			if o.err != nil || o.status != (Status{}) {
				t.Fatalf("%v, %v\n%s", o.status, o.err, o.output)
			}
			// What the client set lies with the connection.
			for _, file := range c.byID {
				for _, option := range []struct{ level, name, want int }{
					{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
					{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
					{unix.SOL_SOCKET, unix.SO_RCVLOWAT, 1},
				} {
					if value, err := unix.GetsockoptInt(int(file.Fd()), option.level, option.name); err != nil || value != option.want {
						t.Errorf("connection's option %+v is %d, %v", option, value, err)
					}
				}
			}
		})
	}
}

// BenchmarkAsking is what a client pays for a call that is notified for every descriptor: as long as no connection
// is replaced, while another one is, and for one that is.
func BenchmarkAsking(b *testing.B) {
	for _, held := range []string{"nothing", "another", "own"} {
		b.Run(held, func(b *testing.B) {
			s, c := substitutes(b)
			o := underSupervisor(b, s, func(o *options) { o.session.connections = c }, roleCommand("asks", held, strconv.Itoa(b.N))...)
			ns, err := strconv.Atoi(strings.TrimSpace(o.output))
			if err != nil {
				b.Fatalf("%v, %v\n%s", o.status, o.err, o.output)
			}
			b.ReportMetric(float64(ns), "ns/op") // without starting the client
		})
	}
}
