package datapath

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/tun/netns"
)

// watchFor returns a watch that is closed with the test.
func watchFor(t testing.TB, poll bool) *sockWatch {
	t.Helper()
	w := newSockWatch(slog.New(slog.DiscardHandler))
	w.pollOnly = poll
	w.interval = 5 * time.Millisecond
	t.Cleanup(w.close)
	return w
}

// watched starts watching and returns how often gone was called.
func watched(t testing.TB, w *sockWatch, ns *netns.NS, proto int, cookie uint64) *atomic.Int32 {
	t.Helper()
	var calls atomic.Int32
	if _, err := w.watch(ns, proto, cookie, func() { calls.Add(1) }); err != nil {
		t.Fatal(err)
	}
	return &calls
}

func cookieFor(t testing.TB, f *os.File) uint64 {
	t.Helper()
	cookie, err := socketCookie(f)
	if err != nil {
		t.Fatal(err)
	}
	return cookie
}

// passWatch returns when every socket that was destroyed before the call has been seen by w: it watches one
// more, closes it and waits for its end.
func passWatch(t testing.TB, w *sockWatch, ns *netns.NS, proto int) {
	t.Helper()
	typ := unix.SOCK_DGRAM
	if proto == unix.IPPROTO_TCP {
		typ = unix.SOCK_STREAM
	}
	for range 2 { // twice, as a poll that sees the first may have begun before
		var marker *os.File
		if err := ns.Do(func() error {
			fd, err := unix.Socket(unix.AF_INET, typ|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			marker = os.NewFile(uintptr(fd), "marker")
			if err := unix.Bind(fd, &unix.SockaddrInet4{}); err != nil {
				return err
			}
			if typ == unix.SOCK_STREAM {
				return unix.Listen(fd, 1)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		calls := watched(t, w, ns, proto, cookieFor(t, marker))
		marker.Close()
		eventually(t, "the marker's end is noticed", func() bool { return calls.Load() == 1 })
	}
}

func dup(t testing.TB, f *os.File) *os.File {
	t.Helper()
	fd, err := unix.FcntlInt(uintptr(rawFD(t, f)), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	d := os.NewFile(uintptr(fd), "duplicate")
	t.Cleanup(func() { d.Close() })
	return d
}

// bothWays runs a test with announcements and with polling.
func bothWays(t *testing.T, test func(t *testing.T, w *sockWatch, ns *netns.NS)) {
	for _, poll := range []bool{false, true} {
		t.Run(fmt.Sprintf("poll=%v", poll), func(t *testing.T) {
			test(t, watchFor(t, poll), freshNS(t))
		})
	}
}

func TestSockWatchSeesTheLastClose(t *testing.T) {
	for _, tt := range []struct {
		name   string
		family int
		setup  func(fd int) error
	}{
		{"IPv4", unix.AF_INET, bound("0.0.0.0:1194")},
		{"IPv4 autobound", unix.AF_INET, func(fd int) error {
			return unix.Sendto(fd, nil, 0, sockaddr(unix.AF_INET, netip.MustParseAddrPort("127.0.0.1:9")))
		}},
		{"IPv4 connected", unix.AF_INET, func(fd int) error {
			return unix.Connect(fd, sockaddr(unix.AF_INET, netip.MustParseAddrPort("127.0.0.1:9")))
		}},
		{"IPv6 only", unix.AF_INET6, bound("[::]:1194", v6only)},
		{"dual stack", unix.AF_INET6, bound("[::]:1194", dualStack)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bothWays(t, func(t *testing.T, w *sockWatch, ns *netns.NS) {
				sock := udpSocketIn(t, ns, tt.family, tt.setup)
				second := dup(t, sock)
				calls := watched(t, w, ns, unix.IPPROTO_UDP, cookieFor(t, sock))

				sock.Close()
				passWatch(t, w, ns, unix.IPPROTO_UDP)
				if calls.Load() != 0 {
					t.Fatal("gone was called although a duplicate is open")
				}
				second.Close()
				eventually(t, "gone is called", func() bool { return calls.Load() > 0 })
				passWatch(t, w, ns, unix.IPPROTO_UDP)
				if n := calls.Load(); n != 1 {
					t.Errorf("gone was called %d times, want once", n)
				}
			})
		})
	}
}

// TestSockWatchOfASharedSocket: the last peer's end of the socket is noticed while ours are still bound.
func TestSockWatchOfASharedSocket(t *testing.T) {
	bothWays(t, func(t *testing.T, w *sockWatch, ns *netns.NS) {
		client := udpSocketIn(t, ns, unix.AF_INET6, func(int) error { return nil })
		_, info := share(t, client, 2)
		calls := watched(t, w, ns, unix.IPPROTO_UDP, info.Cookie)
		passWatch(t, w, ns, unix.IPPROTO_UDP)
		if calls.Load() != 0 {
			t.Fatal("gone was called although the client's socket is open")
		}
		client.Close()
		eventually(t, "gone is called", func() bool { return calls.Load() == 1 })
	})
}

func TestSockWatchOfTCP(t *testing.T) {
	bothWays(t, func(t *testing.T, w *sockWatch, ns *netns.NS) {
		var listener, client, server *os.File
		addr := &unix.SockaddrInet4{Port: 1194, Addr: [4]byte{127, 0, 0, 1}}
		if err := ns.Do(func() error {
			l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			listener = os.NewFile(uintptr(l), "listener")
			if err := unix.Bind(l, addr); err != nil {
				return err
			}
			if err := unix.Listen(l, 1); err != nil {
				return err
			}
			c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			client = os.NewFile(uintptr(c), "client")
			if err := unix.Connect(c, addr); err != nil {
				return err
			}
			s, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
			if err != nil {
				return err
			}
			server = os.NewFile(uintptr(s), "server")
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		defer listener.Close()
		calls := watched(t, w, ns, unix.IPPROTO_TCP, cookieFor(t, client))
		passWatch(t, w, ns, unix.IPPROTO_TCP)
		if calls.Load() != 0 {
			t.Fatal("gone was called although the socket is open")
		}
		client.Close()
		server.Close()
		eventually(t, "gone is called", func() bool { return calls.Load() == 1 })
	})
}

// TestSockWatchOfAnotherProcess: a child that inherited the socket keeps it open, until it exits or is killed.
func TestSockWatchOfAnotherProcess(t *testing.T) {
	for _, kill := range []bool{false, true} {
		t.Run(fmt.Sprintf("kill=%v", kill), func(t *testing.T) {
			bothWays(t, func(t *testing.T, w *sockWatch, ns *netns.NS) {
				sock := udpSocketIn(t, ns, unix.AF_INET, bound("0.0.0.0:1194"))
				calls := watched(t, w, ns, unix.IPPROTO_UDP, cookieFor(t, sock))
				child := exec.Command("cat")
				child.ExtraFiles = []*os.File{sock}
				stdin, err := child.StdinPipe()
				if err != nil {
					t.Fatal(err)
				}
				stdout, err := child.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				if err := child.Start(); err != nil {
					t.Fatal(err)
				}
				defer child.Wait()
				defer stdin.Close()
				sock.Close()
				// The child runs, with nothing of ours between it and its descriptors.
				if _, err := io.WriteString(stdin, "ready\n"); err != nil {
					t.Fatal(err)
				}
				if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
					t.Fatal(err)
				}
				passWatch(t, w, ns, unix.IPPROTO_UDP)
				if calls.Load() != 0 {
					t.Fatal("gone was called although a child holds the socket")
				}
				if kill {
					child.Process.Kill()
				} else {
					stdin.Close()
				}
				eventually(t, "gone is called", func() bool { return calls.Load() == 1 })
			})
		})
	}
}

func TestSockWatchAfterTheClose(t *testing.T) {
	bothWays(t, func(t *testing.T, w *sockWatch, ns *netns.NS) {
		sock := udpSocketIn(t, ns, unix.AF_INET, bound("0.0.0.0:1194"))
		cookie := cookieFor(t, sock)
		sock.Close()
		calls := watched(t, w, ns, unix.IPPROTO_UDP, cookie)
		eventually(t, "gone is called", func() bool { return calls.Load() == 1 })
	})
}

func TestSockWatchCancel(t *testing.T) {
	bothWays(t, func(t *testing.T, w *sockWatch, ns *netns.NS) {
		sock := udpSocketIn(t, ns, unix.AF_INET, bound("0.0.0.0:1194"))
		var calls atomic.Int32
		cancel, err := w.watch(ns, unix.IPPROTO_UDP, cookieFor(t, sock), func() { calls.Add(1) })
		if err != nil {
			t.Fatal(err)
		}
		other := watched(t, w, ns, unix.IPPROTO_UDP, cookieFor(t, sock))
		cancel()
		cancel()
		sock.Close()
		eventually(t, "the other watch of the socket is called", func() bool { return other.Load() == 1 })
		if calls.Load() != 0 {
			t.Error("gone was called after cancel")
		}
	})
}

// TestSockWatchCancelRacesWithTheEnd: whichever is first, gone doesn't run after cancel.
func TestSockWatchCancelRacesWithTheEnd(t *testing.T) {
	w, ns := watchFor(t, false), freshNS(t)
	for range 200 {
		sock := udpSocketIn(t, ns, unix.AF_INET, bound("0.0.0.0:0"))
		var cancelled atomic.Bool
		cancel, err := w.watch(ns, unix.IPPROTO_UDP, cookieFor(t, sock), func() {
			if cancelled.Load() {
				t.Error("gone was called after cancel")
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		sock.Close()
		runtime.Gosched()
		cancel()
		cancelled.Store(true)
	}
}

func TestSockWatchOfAThousand(t *testing.T) {
	bothWays(t, func(t *testing.T, w *sockWatch, ns *netns.NS) {
		var limit unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
		n := min(1000, int(limit.Cur)-200)
		var calls atomic.Int32
		var socks []*os.File
		for range n {
			sock := udpSocketIn(t, ns, unix.AF_INET, bound("0.0.0.0:0"))
			socks = append(socks, sock)
			if _, err := w.watch(ns, unix.IPPROTO_UDP, cookieFor(t, sock), func() { calls.Add(1) }); err != nil {
				t.Fatal(err)
			}
		}
		passWatch(t, w, ns, unix.IPPROTO_UDP)
		if calls.Load() != 0 {
			t.Fatalf("gone was called %d times before the first close", calls.Load())
		}
		for _, sock := range socks {
			sock.Close()
		}
		eventually(t, "every end is noticed", func() bool { return int(calls.Load()) >= n })
		passWatch(t, w, ns, unix.IPPROTO_UDP)
		if got := int(calls.Load()); got != n {
			t.Errorf("gone was called %d times, want %d", got, n)
		}
	})
}

// TestSockWatchOverrun: announcements that were lost are made up for by a look-up.
func TestSockWatchOverrun(t *testing.T) {
	w, ns := watchFor(t, false), freshNS(t)
	var socks []*os.File
	for range 200 {
		socks = append(socks, udpSocketIn(t, ns, unix.AF_INET, bound("0.0.0.0:0")))
	}
	entered, leave := make(chan struct{}), make(chan struct{})
	var calls atomic.Int32
	for i, sock := range socks {
		gone := func() { calls.Add(1) }
		if i == 0 {
			gone = func() { close(entered); <-leave; calls.Add(1) }
		}
		if _, err := w.watch(ns, unix.IPPROTO_UDP, cookieFor(t, sock), gone); err != nil {
			t.Fatal(err)
		}
	}
	w.mu.Lock()
	for _, g := range w.groups {
		shorten(t, g.listener)
	}
	w.mu.Unlock()
	socks[0].Close()
	<-entered // whoever reads the announcements is busy now
	for _, sock := range socks[1:] {
		sock.Close()
	}
	// The announcements come from a work queue, in order.
	l, err := listenNetlink(ns, unix.NETLINK_SOCK_DIAG, sknlgrpInetUDPDestroy)
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	marker := udpSocketIn(t, ns, unix.AF_INET, bound("0.0.0.0:0"))
	cookie := cookieFor(t, marker)
	marker.Close()
	for seen := false; !seen; {
		if _, err := l.receive(time.Millisecond, func(m nlMessage) {
			s, _ := parseDiag(m.payload)
			seen = seen || s.cookie == cookie
		}); err != nil {
			t.Fatal(err)
		}
	}
	close(leave)
	eventually(t, "every end is noticed", func() bool { return int(calls.Load()) == len(socks) })
}

func TestSockWatchExists(t *testing.T) {
	w, ns := watchFor(t, false), freshNS(t)
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		setup := bound("0.0.0.0:1194")
		if family == unix.AF_INET6 {
			setup = bound("[::]:1194", v6only)
		}
		sock := udpSocketIn(t, ns, family, setup)
		cookie := cookieFor(t, sock)
		for _, tt := range []struct {
			name   string
			cookie uint64
			port   uint16
			want   bool
		}{
			{"open", cookie, 1194, true},
			{"open, any port", cookie, 0, true},
			{"another port", cookie, 1195, false},
			{"another socket", cookie + 1, 1194, false},
		} {
			if got, err := w.exists(ns, unix.IPPROTO_UDP, family, tt.cookie, tt.port); err != nil || got != tt.want {
				t.Errorf("family %d, %s: exists = %v, %v, want %v", family, tt.name, got, err, tt.want)
			}
		}
		sock.Close()
		if got, err := w.exists(ns, unix.IPPROTO_UDP, family, cookie, 1194); err != nil || got {
			t.Errorf("family %d, closed: exists = %v, %v", family, got, err)
		}
	}
}

// TestSockWatchLeavesNothing: a namespace's listener and goroutines end with its last watch.
func TestSockWatchLeavesNothing(t *testing.T) {
	for _, poll := range []bool{false, true} {
		w := newSockWatch(slog.New(slog.DiscardHandler))
		w.pollOnly = poll
		spaces := []*netns.NS{freshNS(t), freshNS(t)}
		sock := udpSocketIn(t, spaces[0], unix.AF_INET, bound("0.0.0.0:0"))
		cookie := cookieFor(t, sock)
		descriptorsBefore, goroutinesBefore := descriptors(t), runtime.NumGoroutine()
		var cancels []func()
		for i := range 10 {
			cancel, err := w.watch(spaces[i%2], []int{unix.IPPROTO_UDP, unix.IPPROTO_TCP}[i/2%2], cookie, func() {})
			if err != nil {
				t.Fatal(err)
			}
			cancels = append(cancels, cancel)
		}
		for _, cancel := range cancels {
			cancel()
		}
		eventually(t, "descriptors and goroutines are as before", func() bool {
			return descriptors(t) <= descriptorsBefore && runtime.NumGoroutine() <= goroutinesBefore
		})
		if _, err := w.watch(spaces[0], unix.IPPROTO_UDP, cookie, func() {}); err != nil {
			t.Fatal(err)
		}
		w.close()
		if got := descriptors(t); got > descriptorsBefore {
			t.Errorf("descriptors after close = %d, want %d", got, descriptorsBefore)
		}
		if _, err := w.watch(spaces[0], unix.IPPROTO_UDP, cookie, func() {}); err == nil {
			t.Error("a closed watch takes another socket")
		}
	}
}

func TestSockWatchSaysOnceThatItPolls(t *testing.T) {
	var log strings.Builder
	w := newSockWatch(slog.New(slog.NewTextHandler(&log, nil)))
	w.pollOnly = true
	for range 2 {
		if _, err := w.watch(freshNS(t), unix.IPPROTO_UDP, 1, func() {}); err != nil {
			t.Fatal(err)
		}
	}
	w.close()
	if n := strings.Count(log.String(), "level=WARN"); n != 1 {
		t.Errorf("warnings = %d, want 1:\n%s", n, log.String())
	}
}

// BenchmarkSockWatchExists is what a client's bind waits for.
func BenchmarkSockWatchExists(b *testing.B) {
	ns := freshNS(b)
	w := watchFor(b, false)
	sock := udpSocketIn(b, ns, unix.AF_INET, bound("0.0.0.0:1194"))
	cookie := cookieFor(b, sock)
	for b.Loop() {
		if there, err := w.exists(ns, unix.IPPROTO_UDP, unix.AF_INET, cookie, 1194); !there || err != nil {
			b.Fatal(there, err)
		}
	}
}
