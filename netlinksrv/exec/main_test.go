package exec

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv"
	"ovpn-go/tun/netns"
)

// roleArgument as the first argument makes the test binary play a client or a supervisor.
const roleArgument = "exec-test-role"

// roles are the programs that the tests run. A role reports by its error.
var roles = map[string]func(args []string) error{}

// A role is played on the process's first thread, which /proc/PID speaks of.
func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) {
	Reexec()
	// The race detector lets every process linger for a second, and there are hundreds.
	os.Setenv("GORACE", "atexit_sleep_ms=0")
	if len(os.Args) > 2 && os.Args[1] == roleArgument {
		role, ok := roles[os.Args[2]]
		if !ok {
			fmt.Fprintf(os.Stderr, "no role %q\n", os.Args[2])
			os.Exit(2)
		}
		if err := role(os.Args[3:]); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", os.Args[2], err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	// What starts the tests may ignore a signal, as nohup does SIGHUP. A caught one is back to its default in
	// the processes that the tests start.
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP)
	os.Exit(m.Run())
}

// roleCommand is the command line that plays a role.
func roleCommand(name string, args ...string) []string {
	path, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return append([]string{path, roleArgument, name}, args...)
}

// narrowed is what probe finds under a hard seccomp profile.
func narrowed(int) Reach { return Reach{NoDescriptors: unix.EPERM, NoMemory: unix.EPERM} }

// outcome is how a client under a supervisor ended.
type outcome struct {
	status Status
	err    error
	output string
}

// underSupervisor runs a command with this process as the supervisor.
func underSupervisor(t testing.TB, s server, change func(*options), command ...string) outcome {
	t.Helper()
	return superviseUntil(t, t.Context(), s, change, command...)
}

func superviseUntil(t testing.TB, ctx context.Context, s server, change func(*options), command ...string) outcome {
	t.Helper()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	output := make(chan string, 1)
	go func() {
		b, _ := io.ReadAll(read)
		output <- string(b)
	}()
	o := options{
		args:   command,
		logger: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
		stdio:  [3]uintptr{null.Fd(), write.Fd(), write.Fd()},
		probe:  Probe,
	}
	o.session = newSession(s, o.logger)
	if change != nil {
		change(&o)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, fmt.Errorf("client takes too long"))
	defer cancel()
	status, err := run(ctx, o)
	write.Close()
	return outcome{status, err, <-output}
}

// mustSucceed runs a command under a supervisor and fails the test unless it exits with 0.
func mustSucceed(t *testing.T, s server, command ...string) string {
	t.Helper()
	o := underSupervisor(t, s, nil, command...)
	if o.err != nil || o.status != (Status{}) {
		t.Fatalf("%s: %v, %v\n%s", strings.Join(command, " "), o.status, o.err, o.output)
	}
	return o.output
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", b)
	return len(b), nil
}

// requireRoot skips a test that needs privilege where there is none.
func requireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("OVPN_GO_REQUIRE") != "" {
		t.Fatal("needs root")
	}
	t.Skip("needs root")
}

// openDescriptors counts this process's descriptors.
func openDescriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// fakeServer answers every generic request with a copy of it and an acknowledgement, and route
// requests as routed says.
type fakeServer struct {
	mu      sync.Mutex
	sockets map[uint32]*fakeGeneric
	opened  int
	closed  int
	// namespaces are those of the generic sockets, in the order of opening.
	namespaces []netns.ID
	// seen is called with every request before it is answered; afterwards is delivered behind the
	// acknowledgement unless it is nil.
	seen       func(t netlinksrv.Task, datagram []byte)
	afterwards []byte
	routed     func(t netlinksrv.Task, ns *netns.NS, datagram []byte) netlinksrv.Verdict
	// rewrite is RewriteRoute.
	rewrite func(ns netns.ID, datagram []byte) []byte
}

func newFakeServer() *fakeServer {
	return &fakeServer{sockets: make(map[uint32]*fakeGeneric)}
}

func (s *fakeServer) OpenGeneric(ns *netns.NS, deliver func([]byte) error) (genericServer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opened++
	s.namespaces = append(s.namespaces, ns.ID())
	return &fakeGeneric{server: s, ns: ns.ID(), deliver: deliver, options: make(map[int][]byte)}, nil
}

func (s *fakeServer) Route(t netlinksrv.Task, ns *netns.NS, datagram []byte) netlinksrv.Verdict {
	if s.routed == nil {
		return netlinksrv.Native
	}
	return s.routed(t, ns, datagram)
}

func (s *fakeServer) RewriteRoute(ns netns.ID, _ *netlinksrv.LinkDumps, datagram []byte) []byte {
	if s.rewrite == nil {
		return datagram
	}
	return s.rewrite(ns, datagram)
}

// allClosed says whether every socket that was opened was also closed.
func (s *fakeServer) allClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.opened == s.closed
}

type fakeGeneric struct {
	server  *fakeServer
	ns      netns.ID
	deliver func([]byte) error
	number  uint32         // guarded by server.mu
	mask    uint32         // guarded by server.mu
	options map[int][]byte // guarded by server.mu
}

func (g *fakeGeneric) Bind(t netlinksrv.Task, port, groups uint32) error {
	g.server.mu.Lock()
	defer g.server.mu.Unlock()
	if g.number != 0 {
		return unix.EINVAL
	}
	if port == 0 {
		for port = uint32(t.PID()); g.server.sockets[port] != nil; port++ {
		}
	}
	if g.server.sockets[port] != nil {
		return fmt.Errorf("bind port %d: %w", port, unix.EADDRINUSE)
	}
	g.server.sockets[port] = g
	g.number, g.mask = port, groups
	return nil
}

func (g *fakeGeneric) Port() uint32 {
	g.server.mu.Lock()
	defer g.server.mu.Unlock()
	return g.number
}

func (g *fakeGeneric) Groups() uint32 {
	g.server.mu.Lock()
	defer g.server.mu.Unlock()
	return g.mask
}

func (g *fakeGeneric) SetOption(t netlinksrv.Task, level, name int, value []byte) error {
	g.server.mu.Lock()
	defer g.server.mu.Unlock()
	g.options[name] = value
	return nil
}

func (g *fakeGeneric) GetOption(level, name, size int) ([]byte, error) {
	g.server.mu.Lock()
	defer g.server.mu.Unlock()
	value, ok := g.options[name]
	if !ok {
		return nil, unix.ENOPROTOOPT
	}
	return value, nil
}

func (g *fakeGeneric) Send(t netlinksrv.Task, datagram []byte) {
	if g.server.seen != nil {
		g.server.seen(t, datagram)
	}
	g.deliver(datagram)
	g.deliver(acknowledgement(datagram))
	if g.server.afterwards != nil {
		g.deliver(g.server.afterwards)
	}
}

func (g *fakeGeneric) Close() {
	g.server.mu.Lock()
	defer g.server.mu.Unlock()
	g.server.closed++
	if g.number != 0 {
		delete(g.server.sockets, g.number)
	}
}

// acknowledgement is 36 bytes as from the kernel: an NLMSG_ERROR of no error with the request's
// header.
func acknowledgement(request []byte) []byte {
	ack := make([]byte, 36)
	ack[0] = 36
	ack[4] = unix.NLMSG_ERROR
	copy(ack[8:16], request[8:16])
	copy(ack[20:36], request)
	return ack
}

// eventually waits until a condition holds; a test that fails here waited far longer than any
// machine needs.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("not so in time: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// alive says whether a process exists and is not a zombie.
func alive(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(b[strings.LastIndexByte(string(b), ')'):]), " ")
	return !strings.HasPrefix(rest, "Z") && !strings.HasPrefix(rest, "X")
}
