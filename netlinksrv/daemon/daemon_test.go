package daemon

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/datapath"
	"ovpn-go/netlinksrv"
	"ovpn-go/netlinksrv/client"
	"ovpn-go/netlinksrv/daemon/wire"
	"ovpn-go/netlinksrv/exec"
)

// The first thread, which /proc/PID speaks of, must not be one of those that give up rights for a while: here the daemon's clients are in
// its own process.
func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) {
	exec.Reexec()
	os.Exit(m.Run())
}

// startDaemon runs a daemon until the test ends and returns its socket's path.
func startDaemon(t *testing.T) string {
	t.Helper()
	return startDaemonSaying(t, testWriter{t})
}

// startDaemonSaying is startDaemon with a writer for the log.
func startDaemonSaying(t *testing.T, out io.Writer) string {
	t.Helper()
	log := slog.New(slog.NewTextHandler(out, nil))
	sockets, err := datapath.NewSockets(log)
	if err != nil {
		t.Fatal(err)
	}
	server, err := netlinksrv.New(netlinksrv.Config{Logger: log, Sockets: sockets})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "socket")
	listener, err := Listen(path, "")
	if err != nil {
		t.Fatal(err)
	}
	d := New(Config{Server: server, Sockets: sockets, Logger: log})
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- d.Serve(ctx, listener) }()
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		d.Close()
		sockets.Close()
	})
	return path
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", b)
	return len(b), nil
}

// requireUsable checks that the daemon answers, as it would any client.
func requireUsable(t *testing.T, path string) {
	t.Helper()
	t.Setenv(wire.Variable, path)
	c, err := client.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Links(); err != nil {
		t.Error(err)
	}
	if err := c.Usable(); err != nil && (os.Geteuid() == 0 || !errors.Is(err, unix.EPERM)) {
		t.Error(err)
	}
}

func dial(t *testing.T, path string) *wire.Hello {
	t.Helper()
	c, err := wire.Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func open(t *testing.T, path string) *os.File {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file
}

// TestMalformedRequestsAreRefused: each is answered with an error, its descriptors are let go of, and nobody else notices.
func TestMalformedRequestsAreRefused(t *testing.T) {
	path := startDaemon(t)
	ns, null := open(t, "/proc/self/ns/net"), open(t, os.DevNull)
	pidfd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	self := os.NewFile(uintptr(pidfd), "self")
	defer self.Close()
	window := &[2]uint32{768, 1024}
	for _, test := range []struct {
		rule    string
		request wire.Request
		files   []*os.File
		want    error
		text    string
	}{
		{rule: "no such request", request: wire.Request{Type: "dance"}, want: unix.EOPNOTSUPP},
		{rule: "an option of no socket", request: wire.Request{Type: wire.TypeOption}, want: unix.EOPNOTSUPP},
		{rule: "a second hello", request: wire.Request{Type: wire.TypeHello}, want: unix.EOPNOTSUPP},
		{rule: "no namespace", request: wire.Request{Type: wire.TypeNetlink, Protocol: unix.NETLINK_GENERIC}, want: unix.EPROTO},
		{rule: "too many namespaces", request: wire.Request{Type: wire.TypeNetlink}, files: []*os.File{ns, ns}, want: unix.EPROTO},
		{rule: "not a namespace", request: wire.Request{Type: wire.TypeNetlink}, files: []*os.File{null}, want: unix.EINVAL},
		{rule: "another kind of namespace", request: wire.Request{Type: wire.TypeNetlink}, files: []*os.File{open(t, "/proc/self/ns/mnt")}, want: unix.EINVAL},
		{rule: "another protocol", request: wire.Request{Type: wire.TypeNetlink, Protocol: unix.NETLINK_SOCK_DIAG}, files: []*os.File{ns}, want: unix.EPROTONOSUPPORT},
		{rule: "run without a window", request: wire.Request{Type: wire.TypeRun}, files: []*os.File{null, null}, text: "without a window"},
		{rule: "run without descriptors", request: wire.Request{Type: wire.TypeRun, Window: window}, want: unix.EPROTO},
		{rule: "the guard is no process", request: wire.Request{Type: wire.TypeRun, Window: window}, files: []*os.File{null, null}, want: unix.EBADF},
		{rule: "the guard is no child of the client", request: wire.Request{Type: wire.TypeRun, Window: window}, files: []*os.File{null, self}, want: unix.EPERM},
	} {
		t.Run(test.rule, func(t *testing.T) {
			_, _, err := dial(t, path).Begin(test.request, test.files...)
			if err == nil || test.want != nil && !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
				t.Errorf("%v", err)
			}
		})
	}
	requireUsable(t, path)
}

// TestListenerMustBeOne: what a run hands over is not asked anything before it is known for what it is.
func TestListenerMustBeOne(t *testing.T) {
	path := startDaemon(t)
	child, err := os.StartProcess("/bin/sleep", []string{"sleep", "60"}, &os.ProcAttr{})
	if err != nil {
		t.Fatal(err)
	}
	defer child.Wait()
	defer child.Kill()
	pidfd, err := unix.PidfdOpen(child.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	guard := os.NewFile(uintptr(pidfd), "guard")
	defer guard.Close()
	request := wire.Request{Type: wire.TypeRun, Window: &[2]uint32{768, 1024}}
	if _, _, err := dial(t, path).Begin(request, open(t, os.DevNull), guard); !errors.Is(err, unix.EINVAL) {
		t.Errorf("%v", err)
	}
}

// TestRequestMustFollowTheAnswer: the nonce is what shows that the client spoke after it was looked at.
func TestRequestMustFollowTheAnswer(t *testing.T) {
	path := startDaemon(t)
	for rule, said := range map[string][]wire.Request{
		"a request before the hello": {{Type: wire.TypeNetlink}},
		"a request with the hello":   {{Type: wire.TypeHello}, {Type: wire.TypeNetlink}},
		"a request with a guess":     {{Type: wire.TypeHello}, {Type: wire.TypeNetlink, Nonce: 1}},
	} {
		t.Run(rule, func(t *testing.T) {
			conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
			if err != nil {
				t.Fatal(err)
			}
			c := wire.NewConn(conn)
			defer c.Close()
			var last error
			for _, request := range said {
				if err := c.Send(request); err != nil {
					t.Fatal(err)
				}
			}
			for range said {
				reply, _, err := c.Reply()
				if err != nil {
					t.Fatal(err)
				}
				last = reply.Err()
			}
			if !errors.Is(last, unix.EPROTO) {
				t.Errorf("%v", last)
			}
		})
	}
}

// TestNobodyWaitsForAnother: clients that say nothing, or read nothing, do not keep others from being served.
func TestNobodyWaitsForAnother(t *testing.T) {
	path := startDaemon(t)
	for range 20 {
		conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close() // which has said nothing
		dial(t, path)      // which has said no more than hello
	}
	ns := open(t, "/proc/self/ns/net")
	for range 3 {
		c := dial(t, path)
		if _, files, err := c.Begin(wire.Request{Type: wire.TypeNetlink, Protocol: unix.NETLINK_GENERIC}, ns); err != nil {
			t.Fatal(err)
		} else {
			defer files[0].Close()
		}
		// Options without end, whose answers nobody reads.
		if err := c.Unix().SetWriteDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		for {
			if _, err := c.Unix().Write([]byte(`{"type":"option","name":1}`)); err != nil {
				break
			}
		}
	}
	requireUsable(t, path)
}

// TestManyClientsAtOnce are served, and leave nothing.
func TestManyClientsAtOnce(t *testing.T) {
	path := startDaemon(t)
	requireUsable(t, path)
	const clients, rounds = 8, 10
	before := descriptors(t)
	done := make(chan struct{})
	for range clients {
		go func() {
			defer func() { done <- struct{}{} }()
			for range rounds {
				c, err := client.Dial()
				if err == nil {
					_, err = c.Links()
					c.Close()
				}
				if err != nil {
					t.Error(err)
				}
			}
		}()
	}
	for range clients {
		<-done
	}
	deadline := time.Now().Add(10 * time.Second)
	for descriptors(t) > before {
		if time.Now().After(deadline) {
			t.Fatalf("%d descriptors, before %d", descriptors(t), before)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// TestClientSeesTheEnd: who waits for an announcement when the daemon ends is told.
func TestClientSeesTheEnd(t *testing.T) {
	ended := make(chan error, 1)
	t.Run("daemon", func(t *testing.T) {
		t.Setenv(wire.Variable, startDaemon(t))
		monitor, err := client.OpenMonitor()
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			_, err := monitor.Next()
			monitor.Close()
			ended <- err
		}()
	})
	if err := <-ended; !errors.Is(err, client.ErrDaemonGone) {
		t.Errorf("%v", err)
	}
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "deeper", "socket")
	first, err := Listen(path, "")
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if _, err := Listen(path, ""); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("where another daemon listens: %v", err)
	}
	first.SetUnlinkOnClose(false)
	first.Close()
	second, err := Listen(path, "")
	if err != nil {
		t.Fatalf("where a daemon has died: %v", err)
	}
	second.Close()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after the end: %v", err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(file, ""); !errors.Is(err, unix.EEXIST) {
		t.Errorf("where something else is: %v", err)
	}
	if _, err := Listen("@abstract", ""); err == nil {
		t.Error("a socket without a file, which anybody may connect to, is accepted")
	}
	if os.Geteuid() == 0 {
		group, err := Listen(path, "65534")
		if err != nil {
			t.Fatal(err)
		}
		defer group.Close()
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil || st.Gid != 65534 || st.Mode&0o777 != 0o660 {
			t.Errorf("with a group: %+v, %v", st, err)
		}
	}
}
