package exec

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv"
	"ovpn-go/tun/netns"
)

// expectLater is expectAnswers for a send that is not notified, where the answers take a moment.
func expectLater(fd int, send func(b []byte) error, sequence uint32) error {
	b := request(sequence, "not notified")
	if err := send(b); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	for _, want := range [][]byte{b, acknowledgement(b)} {
		if err := awaitInput(fd); err != nil {
			return err
		}
		if err := expectDatagram(fd, want); err != nil {
			return err
		}
	}
	return nil
}

func awaitInput(fd int) error {
	n, err := ignoringEINTR(func() (int, error) {
		return unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 20000)
	})
	return expect("poll", n, err, 1)
}

func init() {
	// What the kernel does for descriptors of any kind, it does for ours.
	roles["native"] = func([]string) error {
		fd, err := openNetlink(unix.SOCK_NONBLOCK, unix.NETLINK_GENERIC)
		if err != nil {
			return err
		}
		send := func(fd int) func([]byte) error {
			return func(b []byte) error { return unix.Send(fd, b, 0) }
		}
		return steps{
			{"a duplicate below the window", func() error {
				low, err := unix.Dup(fd)
				if err != nil {
					return err
				}
				defer unix.Close(low)
				if low >= 768 {
					return fmt.Errorf("the duplicate is %d", low)
				}
				if err := expectLater(low, toKernel(low), 1); err != nil {
					return err
				}
				return expectLater(fd, func(b []byte) error {
					_, err := unix.Write(low, b)
					return err
				}, 2)
			}},
			{"bind on a duplicate below the window", func() error {
				low, err := unix.Dup(fd)
				if err != nil {
					return err
				}
				defer unix.Close(low)
				if err := unix.Bind(low, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: 4711}); err != nil {
					return err
				}
				return expectName(fd, 4711)
			}},
			{"a duplicate inside the window", func() error {
				high, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD, 900)
				if err != nil {
					return err
				}
				defer unix.Close(high)
				if err := expectName(high, 4711); err != nil {
					return err
				}
				return expectAnswers(high, toKernel(high), 3)
			}},
			{"a descriptor passed on a UNIX socket", func() error {
				pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
				if err != nil {
					return err
				}
				if err := unix.Sendmsg(pair[0], []byte{0}, unix.UnixRights(fd), nil, 0); err != nil {
					return err
				}
				oob := make([]byte, 64)
				_, n, _, _, err := unix.Recvmsg(pair[1], make([]byte, 1), oob, 0)
				if err != nil {
					return err
				}
				got, err := receivedDescriptor(oob[:n])
				if err != nil {
					return err
				}
				defer unix.Close(got)
				return expectLater(got, send(got), 4)
			}},
			{"a child inherits it at the same number", func() error {
				return child("inheritor", nil, strconv.Itoa(fd), "notified")
			}},
			{"a child inherits it at a low number", func() error {
				return child("inheritor", []uintptr{0, 1, 2, uintptr(fd)}, "3", "native")
			}},
			{"edge-triggered epoll", func() error {
				set, err := unix.EpollCreate1(0)
				if err != nil {
					return err
				}
				event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET, Fd: 17, Pad: 18}
				if err := unix.EpollCtl(set, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
					return err
				}
				if err := expectEvent(set, 0, unix.EPOLLOUT); err != nil {
					return err
				}
				b := request(5, "")
				if err := send(fd)(b); err != nil {
					return err
				}
				if err := expectEvent(set, 0, unix.EPOLLIN|unix.EPOLLOUT); err != nil {
					return err
				}
				if err := expectEvent(set, 0, 0); err != nil {
					return err
				}
				if err := expectDatagram(fd, b); err != nil {
					return err
				}
				return expectDatagram(fd, acknowledgement(b))
			}},
			{"blocking receive, with signals", func() error {
				if err := unix.SetNonblock(fd, false); err != nil {
					return err
				}
				received := make(chan error)
				b := request(6, "")
				go func() {
					buf := make([]byte, 100)
					n, err := ignoringEINTR(func() (int, error) { return unix.Read(fd, buf) })
					if err == nil && !bytes.Equal(buf[:n], b) {
						err = fmt.Errorf("read %x", buf[:n])
					}
					received <- err
				}()
				for range 50 {
					unix.Kill(os.Getpid(), unix.SIGURG)
					runtime.Gosched()
				}
				if err := send(fd)(b); err != nil {
					return err
				}
				return errors.Join(<-received, expectDatagram(fd, acknowledgement(b)))
			}},
			{"many threads at once", func() error {
				const threads, rounds = 8, 50
				results := make(chan error)
				for i := range threads {
					go func() {
						runtime.LockOSThread()
						results <- func() error {
							for round := range rounds {
								fd, err := openNetlink(unix.SOCK_CLOEXEC, unix.NETLINK_GENERIC)
								if err != nil {
									return err
								}
								if err := expectAnswers(fd, toKernel(fd), uint32(i*rounds+round)); err != nil {
									return err
								}
								if err := unix.Close(fd); err != nil {
									return err
								}
							}
							return nil
						}()
					}()
				}
				var errs []error
				for range threads {
					errs = append(errs, <-results)
				}
				return errors.Join(errs...)
			}},
		}.run()
	}
	roles["inheritor"] = func(args []string) error {
		fd, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		if args[1] == "native" {
			return expectLater(fd, func(b []byte) error { return unix.Send(fd, b, 0) }, 10)
		}
		if err := expectName(fd, 4711); err != nil {
			return err
		}
		return expectAnswers(fd, toKernel(fd), 11)
	}
	roles["cycles"] = func(args []string) error {
		count, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		for i := range count {
			generic, err := openNetlink(0, unix.NETLINK_GENERIC)
			if err != nil {
				return err
			}
			route, err := openNetlink(0, unix.NETLINK_ROUTE)
			if err != nil {
				return err
			}
			if err := expectAnswers(generic, toKernel(generic), uint32(i)); err != nil {
				return err
			}
			if err := toKernel(route)(request(uint32(i), "")); err != nil {
				return err
			}
			unix.Close(generic)
			unix.Close(route)
		}
		return nil
	}
	roles["full"] = func([]string) error {
		var opened []int
		for range 300 {
			fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_GENERIC)
			if err != nil {
				return err
			}
			opened = append(opened, fd)
		}
		if first, last := opened[255], opened[256]; first != 1023 || last >= 768 {
			return fmt.Errorf("the 256th socket is %d, the 257th %d", first, last)
		}
		return nil
	}
	roles["namespaces"] = func(args []string) error {
		there, err := netns.Open(args[0])
		if err != nil {
			return err
		}
		results := make(chan error)
		go func() {
			results <- there.Do(func() error {
				fd, err := openNetlink(0, unix.NETLINK_GENERIC)
				if err != nil {
					return err
				}
				if err := expectAnswers(fd, toKernel(fd), 1); err != nil {
					return err
				}
				route, err := openNetlink(0, unix.NETLINK_ROUTE)
				if err != nil {
					return err
				}
				nsfd, err := unix.IoctlRetInt(route, unix.SIOCGSKNS)
				if err != nil {
					return err
				}
				ns, err := netns.New(os.NewFile(uintptr(nsfd), "netns"))
				if err != nil {
					return err
				}
				return expect("the route socket's namespace", ns.ID(), nil, there.ID())
			})
		}()
		if err := <-results; err != nil {
			return err
		}
		fd, err := openNetlink(0, unix.NETLINK_GENERIC)
		if err != nil {
			return err
		}
		return expectAnswers(fd, toKernel(fd), 2)
	}
}

// child runs a role as a child process; files default to what is inherited.
func child(role string, files []uintptr, args ...string) error {
	argv := roleCommand(role, args...)
	if files == nil {
		files = []uintptr{0, 1, 2}
	}
	pid, err := syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{Env: os.Environ(), Files: files})
	if err != nil {
		return err
	}
	var status unix.WaitStatus
	if _, err := ignoringEINTR(func() (int, error) { return unix.Wait4(pid, &status, 0, nil) }); err != nil {
		return err
	}
	return expect("the child's end", statusOf(status), nil, Status{})
}

// expectEvent waits up to a timeout in milliseconds for the one event with the data 17, 18, or for
// none if events is 0.
func expectEvent(set, timeout int, events uint32) error {
	list := make([]unix.EpollEvent, 4)
	n, err := ignoringEINTR(func() (int, error) { return unix.EpollWait(set, list, timeout) })
	if err != nil {
		return err
	}
	if events == 0 {
		return expect("number of events", n, nil, 0)
	}
	if n != 1 || list[0] != (unix.EpollEvent{Events: events, Fd: 17, Pad: 18}) {
		return fmt.Errorf("events are %v, want %#x", list[:n], events)
	}
	return nil
}

func TestNativeOperations(t *testing.T) {
	s := newFakeServer()
	mustSucceed(t, s, roleCommand("native")...)
	if !s.allClosed() {
		t.Error("a socket was not closed")
	}
}

func TestManySocketsLeaveNothing(t *testing.T) {
	s := newFakeServer()
	before := openDescriptors(t)
	goroutines := runtime.NumGoroutine()
	most := 0
	s.seen = func(netlinksrv.Task, []byte) {
		s.mu.Lock()
		defer s.mu.Unlock()
		most = max(most, openDescriptors(t))
	}
	mustSucceed(t, s, roleCommand("cycles", "1000")...)
	if !s.allClosed() || s.opened != 1000 {
		t.Errorf("%d sockets opened, %d closed", s.opened, s.closed)
	}
	if most > before+500 { // closing may lag behind the client
		t.Errorf("up to %d descriptors open, %d before", most, before)
	}
	if after := openDescriptors(t); after != before {
		t.Errorf("%d descriptors open, %d before", after, before)
	}
	eventually(t, "goroutines ended", func() bool { return runtime.NumGoroutine() <= goroutines })
}

// Beyond the window the client has the kernel's own sockets.
func TestFullWindow(t *testing.T) {
	s := newFakeServer()
	mustSucceed(t, s, roleCommand("full")...)
	if s.closed != s.opened {
		t.Errorf("%d sockets opened, %d closed", s.opened, s.closed)
	}
}

func TestThreadsInNamespaces(t *testing.T) {
	requireRoot(t)
	ns, err := netns.Create()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	here, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	s := newFakeServer()
	var asked []netns.ID
	s.seen = func(task netlinksrv.Task, _ []byte) {
		ns, err := task.NetNS()
		if err != nil {
			t.Error(err)
			return
		}
		defer ns.Close()
		s.mu.Lock()
		defer s.mu.Unlock()
		asked = append(asked, ns.ID())
	}
	path := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.File().Fd())
	mustSucceed(t, s, roleCommand("namespaces", path)...)
	want := []netns.ID{ns.ID(), here.ID()}
	for what, got := range map[string][]netns.ID{"sockets": s.namespaces, "requests": asked} {
		if len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
			t.Errorf("%s are in %v, want %v", what, got, want)
		}
	}
}
