package exec

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv"
)

// askAbout sends the server a descriptor and its cookie, and returns the server's verdict.
func askAbout(fd int) (string, error) {
	conn, err := openNetlink(0, unix.NETLINK_GENERIC)
	if err != nil {
		return "", err
	}
	defer unix.Close(conn)
	cookie, _ := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE) // 0 is no socket's
	body := binary.NativeEndian.AppendUint64(binary.NativeEndian.AppendUint32(nil, uint32(fd)), cookie)
	if err := toKernel(conn)(request(1, string(body))); err != nil {
		return "", err
	}
	buf := make([]byte, 200)
	for range 2 {
		if _, err := unix.Read(conn, buf); err != nil {
			return "", err
		}
	}
	n, err := unix.Read(conn, buf)
	return string(buf[:max(n, 0)]), err
}

// expectKnown checks that the server can have descriptors.
func expectKnown(fds ...int) error {
	for i, fd := range fds {
		verdict, err := askAbout(fd)
		if err := expect(fmt.Sprintf("what the server says of socket %d", i), verdict, err, "ok"); err != nil {
			return err
		}
	}
	return nil
}

// knowing returns a server that answers askAbout.
func knowing(t testing.TB) *fakeServer {
	s := newFakeServer()
	s.seen = func(task netlinksrv.Task, datagram []byte) {
		s.afterwards = []byte("ok")
		file, err := task.File(int(binary.NativeEndian.Uint32(datagram[16:])))
		if err != nil {
			s.afterwards = []byte(err.Error())
			return
		}
		defer file.Close()
		cookie, err := unix.GetsockoptUint64(int(file.Fd()), unix.SOL_SOCKET, unix.SO_COOKIE)
		if want := binary.NativeEndian.Uint64(datagram[20:]); err != nil || cookie != want {
			s.afterwards = fmt.Appendf(nil, "cookie %d, %v, want %d", cookie, err, want)
		}
	}
	return s
}

// loopback opens a socket bound to a free port of the loopback address.
func loopback(kind int) (fd int, at unix.Sockaddr, err error) {
	if fd, err = unix.Socket(unix.AF_INET, kind, 0); err != nil {
		return -1, nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return -1, nil, err
	}
	at, err = unix.Getsockname(fd)
	return fd, at, err
}

// connection makes a TCP connection and returns its two ends and the listening socket.
func connection(acceptFlags int) (client, accepted, listening int, err error) {
	listening, at, err := loopback(unix.SOCK_STREAM)
	if err != nil {
		return 0, 0, 0, err
	}
	if err := unix.Listen(listening, 5); err != nil {
		return 0, 0, 0, err
	}
	if client, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return 0, 0, 0, err
	}
	if err := unix.Connect(client, at); err != nil {
		return 0, 0, 0, err
	}
	accepted, from, err := unix.Accept4(listening, acceptFlags)
	if err != nil {
		return 0, 0, 0, err
	}
	name, err := unix.Getsockname(client)
	if err != nil {
		return 0, 0, 0, err
	}
	if from.(*unix.SockaddrInet4).Port != name.(*unix.SockaddrInet4).Port {
		return 0, 0, 0, fmt.Errorf("accepted from %v, want %v", from, name)
	}
	return client, accepted, listening, nil
}

// deadline keeps reading and accepting from waiting longer than so.
func deadline(fd int, after time.Duration) error {
	timeout := unix.NsecToTimeval(after.Nanoseconds())
	return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout)
}

func init() {
	roles["transports"] = func([]string) error {
		client, accepted, listening, err := connection(unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC)
		if err != nil {
			return err
		}
		datagrams, at, err := loopback(unix.SOCK_DGRAM)
		if err != nil {
			return err
		}
		six, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		if err := expectKnown(client, accepted, listening, datagrams, six); err != nil {
			return err
		}
		for _, socket := range []struct {
			what         string
			fd           int
			status, flag int
		}{
			{"the accepted socket", accepted, unix.O_NONBLOCK, unix.FD_CLOEXEC},
			{"the listening socket", listening, 0, 0},
			{"the client's socket", client, 0, unix.FD_CLOEXEC},
		} {
			status, err := unix.FcntlInt(uintptr(socket.fd), unix.F_GETFL, 0)
			if err := expect(socket.what+"'s mode", status&unix.O_NONBLOCK, err, socket.status); err != nil {
				return err
			}
			flag, err := unix.FcntlInt(uintptr(socket.fd), unix.F_GETFD, 0)
			if err := expect(socket.what+"'s flag", flag, err, socket.flag); err != nil {
				return err
			}
		}
		// An accept that finds nothing is the kernel's own.
		if err := deadline(listening, 10*time.Millisecond); err != nil {
			return err
		}
		if _, _, err := unix.Accept(listening); !errors.Is(err, unix.EAGAIN) {
			return fmt.Errorf("accept with a time limit: %v, want EAGAIN", err)
		}
		// A duplicate keeps a socket, and is as good.
		dup, err := unix.Dup(accepted)
		if err != nil {
			return err
		}
		unix.Close(accepted)
		if err := expectKnown(dup); err != nil {
			return err
		}
		other, err := unix.FcntlInt(uintptr(dup), unix.F_DUPFD, 300)
		if err != nil {
			return err
		}
		unix.Close(dup)
		// The last close ends the connection, and frees a port, before it returns.
		unix.Close(other)
		if err := deadline(client, 10*time.Second); err != nil {
			return err
		}
		n, err := unix.Read(client, make([]byte, 1))
		if err := expect("read from a closed connection", n, err, 0); err != nil {
			return err
		}
		unix.Close(datagrams)
		again, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		if err := unix.Bind(again, at); err != nil {
			return fmt.Errorf("bind to the port that was freed: %w", err)
		}
		// What is not made here is not known.
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		verdict, err := askAbout(pair[0])
		if err := expect("what the server says of another socket", verdict, err,
			fmt.Sprintf("descriptor %d of the client: %v", pair[0], errNotKept)); err != nil {
			return err
		}
		verdict, err = askAbout(700)
		return expect("what the server says of no socket", verdict, err, "descriptor 700 of the client: bad file descriptor")
	}

	// lets-go opens sockets and lets go of them in the way that the argument says.
	roles["lets-go"] = func(args []string) error {
		count, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		null, err := unix.Open(os.DevNull, unix.O_RDWR, 0)
		if err != nil {
			return err
		}
		for range count {
			client, accepted, listening, err := connection(0)
			if err != nil {
				return err
			}
			set, err := unix.EpollCreate1(0)
			if err != nil {
				return err
			}
			for _, fd := range []int{client, accepted, listening, set} {
				switch args[0] {
				case "closes":
					unix.Close(fd)
				case "covers":
					if err := unix.Dup3(null, fd, 0); err != nil {
						return err
					}
				}
			}
		}
		_, err = askAbout(null) // the server now looks what is left
		return err
	}

	// watches has a connection replaced that it watches.
	roles["watches"] = func([]string) error {
		_, accepted, _, err := connection(0)
		if err != nil {
			return err
		}
		set, err := unix.EpollCreate1(0)
		if err != nil {
			return err
		}
		if err := unix.EpollCtl(set, unix.EPOLL_CTL_ADD, accepted, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: 17, Pad: 18}); err != nil {
			return err
		}
		if err := expectEvent(set, 0, 0); err != nil {
			return err
		}
		if err := askReplace(accepted, 1); err != nil {
			return err
		}
		if err := expectEvent(set, 20000, unix.EPOLLIN); err != nil {
			return err
		}
		if err := expectRecordNow(accepted); err != nil {
			return err
		}
		return expectEvent(set, 0, 0)
	}
}

// narrow runs a client as where none can be looked into.
func narrow(t *testing.T, s server, command ...string) {
	t.Helper()
	o := underSupervisor(t, s, func(o *options) { o.probe = narrowed }, command...)
	if o.err != nil || o.status != (Status{}) {
		t.Fatalf("%v: %v, %v\n%s", command, o.status, o.err, o.output)
	}
}

// lookEvery sets how often what clients have let go of is looked for.
func lookEvery(t *testing.T, interval time.Duration) {
	before := keptInterval
	keptInterval = interval
	t.Cleanup(func() { keptInterval = before })
}

func TestKeptDescriptors(t *testing.T) {
	// Nothing here may depend on being looked for.
	lookEvery(t, time.Hour)
	narrow(t, newFakeServer(), "true") // with the first run the Go runtime opens descriptors for good
	before := openDescriptors(t)
	narrow(t, knowing(t), roleCommand("transports")...)
	narrow(t, replacing(t), roleCommand("watches")...)
	eventually(t, "descriptors closed", func() bool { return openDescriptors(t) <= before+1 }) // replacing holds one
}

func TestNativeOperationsWhereDescriptorsAreKept(t *testing.T) {
	s := newFakeServer()
	narrow(t, s, roleCommand("native")...)
	if !s.allClosed() {
		t.Error("a socket was not closed")
	}
}

func TestKeptDescriptorsAreLetGo(t *testing.T) {
	for _, test := range []struct {
		how      string
		count    int
		interval time.Duration
	}{
		{"closes", 500, time.Hour},
		{"covers", 20, 5 * time.Millisecond},
	} {
		t.Run(test.how, func(t *testing.T) {
			lookEvery(t, test.interval)
			s := newFakeServer()
			narrow(t, newFakeServer(), "true") // as above
			before := openDescriptors(t)
			const rest = 30 // of the run itself
			sets := 0
			if test.how == "closes" {
				sets = test.count // only looking tells that an epoll set is gone
			}
			s.seen = func(netlinksrv.Task, []byte) {
				s.afterwards = []byte("ok")
				deadline := time.Now().Add(20 * time.Second)
				for openDescriptors(t) > before+rest+sets {
					if time.Now().After(deadline) {
						t.Errorf("%d descriptors open, %d before the client", openDescriptors(t), before)
						return
					}
					time.Sleep(2 * time.Millisecond)
				}
			}
			narrow(t, s, roleCommand("lets-go", test.how, strconv.Itoa(test.count))...)
			if after := openDescriptors(t); after != before {
				t.Errorf("%d descriptors open, %d before", after, before)
			}
		})
	}
}
