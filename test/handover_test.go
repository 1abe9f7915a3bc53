package test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"ovpn-go/bench"
	"ovpn-go/bench/benchtest"
)

// handoverVariable makes the test binary one of the processes of TestTCPConnectionOfAnotherProcess: it holds
// "controller", how processes come to share a connection and the paths of the devices' namespaces; or "user".
const handoverVariable = "OVPN_GO_TEST_HANDOVER"

func init() {
	args := strings.Fields(os.Getenv(handoverVariable))
	if len(args) == 0 {
		return
	}
	run := useConnection
	if args[0] == "controller" {
		// For its children. A second value behind the first would make each of them another controller.
		os.Setenv(handoverVariable, "user")
		run = func() error { return control(args[1], args[2:]) }
	}
	if err := run(); err != nil {
		fmt.Println("failed:", args, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// TestTCPConnectionOfAnotherProcess has one process add and delete the peers of connections that others go on using: at one
// end of a tunnel the process that accepted the connection, at the other the one that opened it. They exchange control
// records while data passes through the tunnel, and have a stream again when the peers are gone. TCP_NODELAY, set before at
// one end and in between at the other, is in force.
func TestTCPConnectionOfAnotherProcess(t *testing.T) {
	benchtest.Root(t)
	for _, shared := range []string{"message", "fork"} {
		t.Run("shared-by-"+shared, func(t *testing.T) {
			star := benchtest.Star(t, 1)
			var devices []*bench.Node
			environment := handoverVariable + "=controller " + shared
			for i := range 2 {
				n, err := star.AddNode(fmt.Sprintf("device%d", i))
				if err != nil {
					t.Fatal(err)
				}
				devices = append(devices, n)
				environment += fmt.Sprintf(" /proc/%d/fd/%d", os.Getpid(), n.NS.File().Fd())
			}
			c := startController(t, star.Server, environment)
			c.expect(t, "ready")
			setUpEnds(t, devices)
			requirePings(t, devices, 200)
			fmt.Fprintln(c.in, "delete")
			if !c.lines.Scan() {
				t.Fatal("the client has ended")
			}
			var records int
			if _, err := fmt.Sscanf(c.lines.Text(), "%d records", &records); err != nil || records < 10 {
				t.Errorf("the client says %q", c.lines.Text())
			}
		})
	}
}

// connectionUser is a process that uses a connection, as the controller sees it.
type connectionUser struct {
	pid     int
	channel int // a SEQPACKET socket, on which it is told what to do and answers
}

// startUser starts a process with a connection, or with none if that is negative.
func startUser(connection int) (*connectionUser, error) {
	channel, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(channel[1])
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	files := []uintptr{0, 1, 2, uintptr(channel[1])}
	if connection >= 0 {
		files = append(files, uintptr(connection))
	}
	pid, err := syscall.ForkExec(self, []string{self}, &syscall.ProcAttr{
		Env: os.Environ(), Files: files,
	})
	return &connectionUser{pid, channel[0]}, err
}

// tell has the process do something.
func (u *connectionUser) tell(command string) error {
	_, err := unix.Write(u.channel, []byte(command))
	return err
}

// answer returns what the process says, and a descriptor if there comes one.
func (u *connectionUser) answer() (text string, fd int, err error) {
	buf, oob := make([]byte, 1000), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := unix.Recvmsg(u.channel, buf, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return "", -1, err
	}
	if n == 0 {
		return "", -1, fmt.Errorf("process %d has ended", u.pid)
	}
	fd = -1
	if messages, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil && len(messages) == 1 {
		fds, err := unix.ParseUnixRights(&messages[0])
		if err != nil || len(fds) != 1 {
			return "", -1, fmt.Errorf("%d descriptors, %w", len(fds), err)
		}
		fd = fds[0]
	}
	return string(buf[:n]), fd, nil
}

// ask is tell and answer.
func (u *connectionUser) ask(command string) (text string, fd int, err error) {
	if err := u.tell(command); err != nil {
		return "", -1, err
	}
	text, fd, err = u.answer()
	if err != nil {
		err = fmt.Errorf("%s: %w", command, err)
	}
	return text, fd, err
}

// shareConnection returns two processes that use the ends of a connection, and duplicates of these.
func shareConnection(how string) (users [2]*connectionUser, fds [2]int, err error) {
	if how == "fork" {
		if fds[1], fds[0], err = tcpPair(); err != nil {
			return users, fds, err
		}
		for i := range users {
			if users[i], err = startUser(fds[i]); err != nil {
				return users, fds, err
			}
		}
		return users, fds, nil
	}
	for i := range users {
		if users[i], err = startUser(-1); err != nil {
			return users, fds, err
		}
	}
	port, _, err := users[0].ask("listen")
	if err != nil {
		return users, fds, err
	}
	if _, fds[1], err = users[1].ask("connect " + port); err != nil {
		return users, fds, err
	}
	_, fds[0], err = users[0].ask("accept")
	return users, fds, err
}

// control adds the peers, says "ready", deletes them when it reads a line, and says how many records were exchanged.
func control(how string, namespaces []string) error {
	runtime.LockOSThread()
	users, fds, err := shareConnection(how)
	if err != nil {
		return err
	}
	if _, _, err := users[1].ask("nodelay"); err != nil {
		return err
	}
	var before [2]uint64
	var clients [2]*ovpnClient
	for i, path := range namespaces {
		if before[i], err = inodeOf(fds[i]); err != nil {
			return err
		}
		if clients[i], err = ovpnClientIn(path); err != nil {
			return err
		}
		if err := clients[i].newPeer(1, fds[i], netip.AddrPort{}, tunnelEnds[1-i]); err != nil {
			return err
		}
		if now, err := inodeOf(fds[i]); err != nil || now == before[i] {
			return fmt.Errorf("end %d is still the connection, %w", i, err)
		}
	}
	if _, _, err := users[0].ask("nodelay"); err != nil {
		return err
	}
	if err := users[0].tell("echo"); err != nil {
		return err
	}
	if err := users[1].tell("exchange"); err != nil {
		return err
	}
	fmt.Println("ready")
	bufio.NewScanner(os.Stdin).Scan()
	records, _, err := users[1].ask("pause")
	if err != nil {
		return err
	}
	for i, c := range clients {
		if err := c.deletePeer(1); err != nil {
			return fmt.Errorf("delete peer of end %d: %w", i, err)
		}
		if now, err := inodeOf(fds[i]); err != nil || now != before[i] {
			return fmt.Errorf("end %d is not the connection again, %w", i, err)
		}
	}
	if err := users[1].tell("stream"); err != nil {
		return err
	}
	for i, u := range users {
		said, _, err := u.answer()
		if want := fmt.Sprintf("stream of socket %d", before[i]); err != nil || said != want {
			return fmt.Errorf("end %d says %q, %w; want %q", i, said, err, want)
		}
		unix.Close(u.channel)
		var status unix.WaitStatus
		if _, err := unix.Wait4(u.pid, &status, 0, nil); err != nil || status != 0 {
			return fmt.Errorf("process of end %d: status %#x, %w", i, status, err)
		}
	}
	fmt.Println(records, "records")
	return nil
}

// ovpnClientIn returns a client with a new device in a namespace.
func ovpnClientIn(path string) (c *ovpnClient, err error) {
	var fds [2]int
	for i, path := range []string{path, "/proc/thread-self/ns/net"} {
		if fds[i], err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			return nil, fmt.Errorf("open %s: %w", path, err)
		}
		defer unix.Close(fds[i])
	}
	if err := unix.Setns(fds[0], unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("enter namespace: %w", err)
	}
	c, err = newOvpnClient("ovpn0")
	if back := unix.Setns(fds[1], unix.CLONE_NEWNET); err == nil {
		err = back
	}
	return c, err
}

func inodeOf(fd int) (uint64, error) {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	return st.Ino, err
}

// useConnection is a process that does with a connection what it is told.
func useConnection() error {
	const channel, inherited = 3, 4
	listener, conn := -1, inherited
	var pause atomic.Bool
	done := make(chan error, 1)
	answers := make(chan string, 1)
	say := func(text string) error { _, err := unix.Write(channel, []byte(text)); return err }
	give := func() error { return unix.Sendmsg(channel, []byte("here"), unix.UnixRights(conn), nil, 0) }
	buf := make([]byte, 100)
	for {
		n, err := unix.Read(channel, buf)
		if err != nil || n == 0 {
			return err
		}
		command, argument, _ := strings.Cut(string(buf[:n]), " ")
		switch command {
		case "listen":
			var port int
			if listener, port, err = listenTCP(); err == nil {
				err = say(strconv.Itoa(port))
			}
		case "accept":
			if conn, _, err = unix.Accept4(listener, unix.SOCK_CLOEXEC); err == nil {
				err = give()
			}
		case "connect":
			port, _ := strconv.Atoi(argument)
			if conn, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err == nil {
				err = unix.Connect(conn, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
			}
			if err == nil {
				err = give()
			}
		case "nodelay":
			if err = unix.SetsockoptInt(conn, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err == nil {
				err = say("set")
			}
		case "echo":
			// The last read of it is blocked when the connection is given back.
			go func() {
				err := echoRecords(conn)
				if err == nil {
					err = checkStream(conn, true, say)
				}
				if err != nil {
					say("failed: " + err.Error())
				}
			}()
		case "exchange":
			go func() {
				n := 0
				var err error
				for ; err == nil && !pause.Load(); n++ {
					err = exchangeRecord(conn, n)
				}
				answers <- strconv.Itoa(n)
				done <- err
			}()
		case "pause":
			pause.Store(true)
			text := <-answers
			if err = <-done; err == nil {
				err = say(text)
			}
		case "stream":
			if _, err = unix.Write(conn, []byte("switch")); err == nil {
				err = checkStream(conn, false, say)
			}
		}
		if err != nil {
			return fmt.Errorf("%s: %w", command, err)
		}
	}
}

func listenTCP() (fd, port int, err error) {
	if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, 0, err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return fd, 0, err
	}
	if err := unix.Listen(fd, 1); err != nil {
		return fd, 0, err
	}
	address, err := unix.Getsockname(fd)
	if err != nil {
		return fd, 0, err
	}
	return fd, address.(*unix.SockaddrInet4).Port, nil
}

// controlRecord is a control frame with a number.
func controlRecord(n int) []byte {
	return binary.BigEndian.AppendUint32([]byte{0, 5, 4 << 3}, uint32(n))
}

// exchangeRecord sends a record and expects it to come back, whole and alone.
func exchangeRecord(conn, n int) error {
	record := controlRecord(n)
	if _, err := unix.Write(conn, record); err != nil {
		return err
	}
	got := make([]byte, 100)
	size, err := unix.Read(conn, got)
	if err != nil || !bytes.Equal(got[:size], record) {
		return fmt.Errorf("record %x came back as %x, %w", record, got[:max(size, 0)], err)
	}
	return nil
}

// echoRecords sends records back, which it checks, until "switch" comes.
func echoRecords(conn int) error {
	got := make([]byte, 100)
	for n := 0; ; n++ {
		size, err := unix.Read(conn, got)
		switch {
		case err != nil:
			return err
		case string(got[:size]) == "switch":
			return nil
		case !bytes.Equal(got[:size], controlRecord(n)):
			return fmt.Errorf("record %d is %x", n, got[:size])
		}
		if _, err := unix.Write(conn, got[:size]); err != nil {
			return err
		}
	}
}

// checkStream is called at both ends of a connection, of which one begins. It checks that it is a stream, with TCP_NODELAY,
// and says which socket it is.
func checkStream(conn int, begins bool, say func(string) error) error {
	if begins {
		if _, err := unix.Write(conn, []byte("stream")); err != nil {
			return err
		}
	}
	for _, want := range []string{"str", "eam"} {
		got := make([]byte, len(want))
		if n, err := unix.Read(conn, got); err != nil || string(got[:n]) != want {
			return fmt.Errorf("read %q, %w; want %q", got[:max(n, 0)], err, want)
		}
	}
	if !begins {
		if _, err := unix.Write(conn, []byte("stream")); err != nil {
			return err
		}
	}
	if on, err := unix.GetsockoptInt(conn, unix.IPPROTO_TCP, unix.TCP_NODELAY); err != nil || on != 1 {
		return fmt.Errorf("TCP_NODELAY is %d, %w", on, err)
	}
	inode, err := inodeOf(conn)
	if err != nil {
		return err
	}
	return say(fmt.Sprintf("stream of socket %d", inode))
}
