package exec

import (
	"errors"
	"fmt"
	"os"
	osexec "os/exec"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv"
	"ovpn-go/tun/netns"
)

func TestAdminOver(t *testing.T) {
	const (
		admin = 1 << unix.CAP_NET_ADMIN
		all   = 1<<41 - 1
	)
	initial, outer, inner := namespaceID{1, 1}, namespaceID{1, 2}, namespaceID{1, 3}
	// inner was created by uid 1000 in outer, outer by uid 1001 in the initial one.
	chain := []userNamespace{{inner, 1000}, {outer, 1001}, {initial, 0}}
	tests := []struct {
		name  string
		creds credentials
		chain []userNamespace
		want  bool
	}{
		{"capable in the namespace", credentials{admin, 7, 5, inner}, chain, true},
		{"not capable in the namespace", credentials{all &^ admin, 7, 5, inner}, chain, false},
		{"capable in the parent", credentials{admin, 7, 5, outer}, chain, true},
		{"capable in the parent's parent", credentials{admin, 7, 5, initial}, chain, true},
		{"owner in the parent", credentials{0, 7, 1000, outer}, chain, true},
		{"owner, but not in the parent", credentials{0, 7, 1000, initial}, chain, false},
		{"owner of the parent", credentials{0, 7, 1001, initial}, chain, true},
		{"owner inside the namespace", credentials{0, 7, 1000, inner}, chain, false},
		{"capable below", credentials{all, 7, 0, inner}, chain[1:], false},
		{"capable elsewhere", credentials{all, 7, 0, namespaceID{1, 9}}, chain, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := test.creds.adminOver(test.chain); got != test.want {
				t.Errorf("%v, want %v", got, test.want)
			}
		})
	}
}

func init() {
	// rights sends the requests 1, 2, 3 with, with, and without CAP_NET_ADMIN, the last two as
	// nobody, from a socket that root opened. From one that nobody opened without the capability it
	// then sends, with it, 4 to an address and 5 without one.
	roles["rights"] = func([]string) error {
		runtime.LockOSThread()
		const nobody = 65534
		first, err := openNetlink(0, unix.NETLINK_GENERIC)
		if err != nil {
			return err
		}
		if err := expectAnswers(first, toKernel(first), 1); err != nil {
			return err
		}
		if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
			return err
		}
		// The bare call changes this thread alone.
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, nobody, nobody, nobody); errno != 0 {
			return errno
		}
		if err := setEffective(1 << unix.CAP_NET_ADMIN); err != nil {
			return err
		}
		if err := expectAnswers(first, toKernel(first), 2); err != nil {
			return err
		}
		if err := setEffective(0); err != nil {
			return err
		}
		if err := expectAnswers(first, toKernel(first), 3); err != nil {
			return err
		}
		second, err := openNetlink(0, unix.NETLINK_GENERIC)
		if err != nil {
			return err
		}
		if err := setEffective(1 << unix.CAP_NET_ADMIN); err != nil {
			return err
		}
		if err := expectAnswers(second, toKernel(second), 4); err != nil {
			return err
		}
		unaddressed := func(datagram []byte) error {
			_, err := unix.Write(second, datagram)
			return err
		}
		return expectAnswers(second, unaddressed, 5)
	}
	// route as nobody: what the supervisor may do and the client may not.
	roles["unprivileged route"] = func([]string) error {
		runtime.LockOSThread()
		const nobody = 65534
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, nobody, nobody, nobody); errno != 0 {
			return errno
		}
		fd, err := openNetlink(0, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		refused := func(sequence uint32) func() error {
			return func() error {
				_, err := expectError(fd, setMTU(sequence, 1400), unix.EPERM)
				return err
			}
		}
		return steps{
			{"on the real socket", refused(1)},
			{"a question", func() error { return expectLoopback(fd, 2, "LO") }},
			{"after the real socket is back", refused(3)},
			{"a question again", func() error { return expectLoopback(fd, 4, "LO") }},
			{"with an answer unread", func() error {
				if err := toKernel(fd)(getLoopback(5)); err != nil {
					return err
				}
				if err := toKernel(fd)(setMTU(6, 1400)); err != nil {
					return err
				}
				if _, err := receiveRoute(fd); err != nil {
					return err
				}
				r, err := receiveRoute(fd)
				return expect("error", r.errno, err, -int32(unix.EPERM))
			}},
			{"still a pair", func() error { return expectPair(fd, true) }},
			{"through a duplicate", func() error {
				low, err := unix.Dup(fd)
				if err != nil {
					return err
				}
				if err := unix.Send(low, setMTU(7, 1400), 0); err != nil {
					return err
				}
				if err := awaitInput(low); err != nil {
					return err
				}
				r, err := receiveRoute(low)
				return expect("error", r.errno, err, -int32(unix.EPERM))
			}},
			{"listening to other namespaces", func() error {
				return expectErrno("setsockopt", unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_LISTEN_ALL_NSID, 1), unix.EPERM)
			}},
			{"joining a group that takes rights", func() error {
				other, err := openNetlink(0, unix.NETLINK_ROUTE)
				if err != nil {
					return err
				}
				both := &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: linkGroups | 1<<(rtnlgrpIPv4MrouteR-1)}
				if err := expectErrno("bind", unix.Bind(other, both), unix.EPERM); err != nil {
					return err
				}
				if err := expectLoopback(other, 8, "LO"); err != nil {
					return err
				}
				// From here on a pair.
				if err := toKernel(other)(getLoopback(9)); err != nil {
					return err
				}
				if err := expectErrno("setsockopt", unix.SetsockoptInt(other, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, rtnlgrpIPv4MrouteR), unix.EPERM); err != nil {
					return err
				}
				name, err := unix.Getsockname(other)
				if err != nil {
					return err
				}
				both.Pid = name.(*unix.SockaddrNetlink).Pid
				return expectErrno("bind of a pair", unix.Bind(other, both), unix.EPERM)
			}},
		}.run()
	}
	// sender rights sends the requests 1 and 2 in a way that is not notified, as root and by a thread that has become nobody.
	roles["sender rights"] = func([]string) error {
		fd, err := openNetlink(unix.SOCK_NONBLOCK, unix.NETLINK_GENERIC)
		if err != nil {
			return err
		}
		low, err := unix.Dup(fd)
		if err != nil {
			return err
		}
		if err := expectLater(low, toKernel(low), 1); err != nil {
			return err
		}
		return besideTheFirstThread(func() error {
			const nobody = 65534
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, nobody, nobody, nobody); errno != 0 {
				return errno
			}
			return expectLater(low, toKernel(low), 2)
		})
	}
	roles["send one"] = func([]string) error {
		fd, err := openNetlink(0, unix.NETLINK_GENERIC)
		if err != nil {
			return err
		}
		return expectAnswers(fd, toKernel(fd), 1)
	}
}

// rtnlgrpIPv4MrouteR is RTNLGRP_IPV4_MROUTE_R, a group that takes CAP_NET_ADMIN to join.
const rtnlgrpIPv4MrouteR = 30

// besideTheFirstThread runs fn on a thread that ends with it, and that is not the one whose id is the process's.
func besideTheFirstThread(fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			done <- fn()
			return
		}
		done <- besideTheFirstThread(fn) // while this goroutine keeps the first thread
		runtime.UnlockOSThread()
	}()
	return <-done
}

// setEffective changes the calling thread's effective capabilities.
func setEffective(capabilities uint32) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return err
	}
	data[0].Effective, data[1].Effective = capabilities, 0
	return unix.Capset(&header, &data[0])
}

func TestRightsAreTheSendersAndTheOpeners(t *testing.T) {
	expectRights(t, "rights", map[uint32]bool{1: true, 2: true, 3: false, 4: true, 5: false})
}

// Who sends without being notified is looked up by the process, which may have rights that the thread gave up.
func TestRightsAreNotThoseOfAnotherThread(t *testing.T) {
	expectRights(t, "sender rights", map[uint32]bool{1: true, 2: false})
}

// expectRights plays a role and checks which of its requests, by sequence number, may administrate its network namespace.
func expectRights(t *testing.T, role string, want map[uint32]bool) {
	t.Helper()
	requireRoot(t)
	s := newFakeServer()
	got := map[uint32]bool{}
	s.seen = func(task netlinksrv.Task, datagram []byte) {
		ns, err := task.NetNS()
		if err != nil {
			t.Error(err)
			return
		}
		defer ns.Close()
		s.mu.Lock()
		defer s.mu.Unlock()
		got[uint32(datagram[8])] = task.MayAdmin(ns) == nil
	}
	mustSucceed(t, s, roleCommand(role)...)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("may administrate (-want +got):\n%s", diff)
	}
}

func TestRightsInAUserNamespace(t *testing.T) {
	requireRoot(t)
	if _, err := osexec.LookPath("unshare"); err != nil {
		t.Skip("no unshare")
	}
	here, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	s := newFakeServer()
	s.seen = func(task netlinksrv.Task, datagram []byte) {
		ns, err := task.NetNS()
		if err != nil {
			t.Error(err)
			return
		}
		defer ns.Close()
		inside, outside := task.MayAdmin(ns), task.MayAdmin(here)
		if ns.ID() == here.ID() || inside != nil || outside != unix.EPERM {
			t.Errorf("rights in its own namespace: %v, in the initial one: %v", inside, outside)
		}
	}
	mustSucceed(t, s, append([]string{"unshare", "--user", "--map-root-user", "--net"}, roleCommand("send one")...)...)
}

func TestUnprivilegedRouteSocket(t *testing.T) {
	inNewNamespace(t, func() {
		o := underSupervisor(t, routeServer(), nil, roleCommand("unprivileged route")...)
		if o.err != nil || o.status != (Status{}) {
			t.Errorf("%v, %v\n%s", o.status, o.err, o.output)
		}
	})
}

// Without privilege the filter needs no_new_privs, and everything else still works.
func TestUnprivilegedSupervisor(t *testing.T) {
	requireRoot(t)
	if _, err := osexec.LookPath("setpriv"); err != nil {
		t.Skip("no setpriv")
	}
	for _, with := range [][]string{
		{"setpriv", "--reuid=65534", "--clear-groups"},
		{"setpriv", "--reuid=65534", "--clear-groups", "unshare", "--user", "--map-root-user", "--net"},
	} {
		t.Run(fmt.Sprint(len(with)), func(t *testing.T) {
			directory := publicCopy(t)
			command := append(with, directory+"/exec.test", roleArgument, "supervise", directory+"/exec.test", roleArgument, "send one")
			if out, err := osexec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// publicCopy puts the test binary where everybody can execute it and returns the directory.
func publicCopy(t *testing.T) string {
	t.Helper()
	directory, err := os.MkdirTemp("", "exec-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(directory) })
	b, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = errors.Join(os.WriteFile(directory+"/exec.test", b, 0o755), os.Chmod(directory, 0o755))
	}
	if err != nil {
		t.Fatal(err)
	}
	return directory
}
