package exec

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	osexec "os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv"
)

// askReplace asks the server to replace a socket and to send so many records to the new one.
func askReplace(fd, records int) error {
	conn, err := openNetlink(0, unix.NETLINK_GENERIC)
	if err != nil {
		return err
	}
	defer unix.Close(conn)
	body := binary.NativeEndian.AppendUint32(binary.NativeEndian.AppendUint32(nil, uint32(fd)), uint32(records))
	if err := toKernel(conn)(request(1, string(body))); err != nil {
		return err
	}
	for range 2 {
		if _, err := unix.Read(conn, make([]byte, 100)); err != nil {
			return err
		}
	}
	return nil
}

// replacing returns a server that does what askReplace asks for.
func replacing(t testing.TB) *fakeServer {
	s := newFakeServer()
	s.seen = func(task netlinksrv.Task, datagram []byte) {
		fd, records := binary.NativeEndian.Uint32(datagram[16:]), binary.NativeEndian.Uint32(datagram[20:])
		old, err := task.File(int(fd))
		if err != nil {
			t.Error(err)
			return
		}
		defer old.Close()
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Error(err)
			return
		}
		ours, theirs := os.NewFile(uintptr(pair[0]), "our end"), os.NewFile(uintptr(pair[1]), "client's end")
		t.Cleanup(func() { ours.Close() })
		if err := task.Replace(inodeOf(t, old), theirs); err != nil {
			t.Error(err)
		}
		theirs.Close()
		for range records {
			if _, err := ours.WriteString(record); err != nil {
				t.Error(err)
			}
		}
	}
	return s
}

func init() {
	roles["nothing"] = func([]string) error { return nil }

	roles["holder"] = func(args []string) error {
		return holders[args[0]](holderFD)
	}

	// shares has its socket replaced while other processes, which do what the arguments say, have it too.
	roles["shares"] = func(args []string) error {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		var all []*holder
		for _, doing := range args {
			has := pair[0]
			var channel [2]int
			if doing == "given it in a message" {
				if channel, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0); err != nil {
					return err
				}
				has = channel[1]
			}
			h, err := startHolder(doing, has)
			if err != nil {
				return err
			}
			all = append(all, h)
			if has != pair[0] {
				if err := unix.Sendmsg(channel[0], []byte{1}, unix.UnixRights(pair[0]), nil, 0); err != nil {
					return err
				}
				if _, err := unix.Read(channel[0], make([]byte, 10)); err != nil {
					return err
				}
			}
			if err := h.awaitBlocked(); err != nil {
				return err
			}
			if doing == "stopped" {
				if err := unix.Kill(h.pid, unix.SIGSTOP); err != nil {
					return err
				}
				if err := awaitState(h.pid, "T"); err != nil {
					return err
				}
			}
		}
		if err := askReplace(pair[0], len(args)+1); err != nil {
			return err
		}
		if err := expectRecordNow(pair[0]); err != nil {
			return err
		}
		for _, h := range all {
			switch h.doing {
			case "stopped":
				if err := awaitState(h.pid, "T"); err != nil {
					return err
				}
				if err := unix.Kill(h.pid, unix.SIGCONT); err != nil {
					return err
				}
			case "blocked in sigsuspend until a signal":
				if err := h.awaitBlocked(); err != nil {
					return err
				}
				if err := unix.Kill(h.pid, unix.SIGURG); err != nil { // the Go runtime handles it
					return err
				}
			}
			if err := h.wait(); err != nil {
				return err
			}
		}
		// The old one is gone everywhere.
		if _, err := unix.Write(pair[1], []byte{1}); !errors.Is(err, unix.EPIPE) {
			return fmt.Errorf("write to the old socket's other end: %v, want EPIPE", err)
		}
		return nil
	}

	// wakes has its socket replaced while another of its own threads is blocked on it.
	roles["wakes"] = func([]string) error {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		done := make(chan error)
		go func() { done <- expectRecord(pair[0]) }()
		self := &holder{"blocked in recv", os.Getpid()}
		if err := self.awaitBlocked(); err != nil {
			return err
		}
		if err := askReplace(pair[0], 1); err != nil {
			return err
		}
		return <-done
	}

	// worker is a process that does something over and over, checking that it is not disturbed, until it is told to end.
	roles["worker"] = func(args []string) error {
		const control = holderFD + 1
		work := map[string]func() error{
			"answers what it blocks for": func() error { return nil },
			"answers what it polls for": func() error {
				set, err := unix.EpollCreate1(0)
				if err != nil {
					return err
				}
				defer unix.Close(set)
				if err := unix.EpollCtl(set, unix.EPOLL_CTL_ADD, control, &unix.EpollEvent{Events: unix.EPOLLIN}); err != nil {
					return err
				}
				_, err = unix.EpollWait(set, make([]unix.EpollEvent, 1), -1)
				return err
			},
			"sleeps": func() error {
				const nap = 2 * time.Millisecond
				start := time.Now()
				ts := unix.NsecToTimespec(nap.Nanoseconds())
				_, _, errno := syscall.RawSyscall(unix.SYS_NANOSLEEP, address(&ts), 0, 0)
				if errno != 0 || time.Since(start) < nap {
					return fmt.Errorf("slept %v: %w", time.Since(start), ok(errno))
				}
				return nil
			},
			"forks": func() error {
				command := roleCommand("nothing")
				pid, err := syscall.ForkExec(command[0], command, &syscall.ProcAttr{
					Env: os.Environ(), Files: []uintptr{0, 1, 2, holderFD},
				})
				if err != nil {
					return err
				}
				return (&holder{"nothing", pid}).wait()
			},
		}[args[0]]
		buf := make([]byte, 10)
		for {
			if err := work(); err != nil {
				return err
			}
			n, err := unix.Read(control, buf)
			if err != nil {
				return err
			}
			if _, err := unix.Write(control, buf[:n]); err != nil {
				return err
			}
			if string(buf[:n]) == "end" {
				return expectRecord(holderFD)
			}
		}
	}

	// storm has its socket replaced very often, while workers have it too.
	roles["storm"] = func(args []string) error {
		times, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		var pids, controls []int
		for _, doing := range args[1:] {
			channel, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			command := roleCommand("worker", doing)
			pid, err := syscall.ForkExec(command[0], command, &syscall.ProcAttr{
				Env:   append(os.Environ(), "GODEBUG=asyncpreemptoff=1"),
				Files: []uintptr{0, 1, 2, uintptr(pair[0]), uintptr(channel[1])},
			})
			if err != nil {
				return err
			}
			pids, controls = append(pids, pid), append(controls, channel[0])
		}
		round := func(say string) error {
			for i, control := range controls {
				if _, err := unix.Write(control, []byte(say)); err != nil {
					return fmt.Errorf("worker that %s: %w", args[1+i], err)
				}
			}
			for i, control := range controls {
				buf := make([]byte, 10)
				n, err := unix.Read(control, buf)
				if err := expect("answer of the worker that "+args[1+i], string(buf[:max(n, 0)]), err, say); err != nil {
					return err
				}
			}
			return nil
		}
		stop := make(chan bool)
		rounds := make(chan error)
		go func() {
			for {
				select {
				case <-stop:
					rounds <- nil
					return
				default:
				}
				if err := round("on"); err != nil {
					rounds <- err
					return
				}
			}
		}()
		for range times {
			if err := askReplace(pair[0], 0); err != nil {
				return err
			}
		}
		close(stop)
		if err := <-rounds; err != nil {
			return err
		}
		if err := askReplace(pair[0], len(pids)); err != nil {
			return err
		}
		if err := round("end"); err != nil {
			return err
		}
		for i, pid := range pids {
			if err := (&holder{args[1+i], pid}).wait(); err != nil {
				return err
			}
		}
		return nil
	}

	// refuses has its socket replaced while another process has it that can't be reached.
	roles["refuses"] = func(args []string) error {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		command := roleCommand("unreachable", args...)
		pid, err := syscall.ForkExec(command[0], command, &syscall.ProcAttr{
			Env: os.Environ(), Files: []uintptr{0, 1, 2, uintptr(pair[0])},
		})
		if err != nil {
			return err
		}
		if _, err := unix.Read(pair[1], make([]byte, 1)); err != nil { // it is ready
			return err
		}
		if err := askReplace(pair[0], 1); err != nil {
			return err
		}
		if err := expectRecordNow(pair[0]); err != nil {
			return err
		}
		if _, err := unix.Write(pair[1], []byte(record)); err != nil {
			return err
		}
		return (&holder{"unreachable", pid}).wait()
	}

	roles["unreachable"] = func(args []string) error {
		switch args[0] {
		case "has a filter of its own":
			if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
				return err
			}
			allow, err := bpf.Assemble([]bpf.Instruction{bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW}})
			if err != nil {
				return err
			}
			if _, err := installFilter(allow, unix.SECCOMP_FILTER_FLAG_TSYNC); err != nil {
				return err
			}
		case "is of another architecture":
			return syscall.Exec(args[1], args[1:], os.Environ())
		}
		if _, err := unix.Write(holderFD, []byte{1}); err != nil {
			return err
		}
		return expectRecord(holderFD)
	}
}

func TestReplaceInOtherProcesses(t *testing.T) {
	for doing := range holders {
		t.Run(doing, func(t *testing.T) {
			mustSucceed(t, replacing(t), roleCommand("shares", doing)...)
		})
	}
	t.Run("many", func(t *testing.T) {
		var many []string
		for range 3 {
			for doing := range holders {
				many = append(many, doing)
			}
		}
		mustSucceed(t, replacing(t), roleCommand("shares", many...)...)
	})
}

func TestReplaceWakesOwnThreads(t *testing.T) {
	mustSucceed(t, replacing(t), roleCommand("wakes")...)
}

// Processes that are interrupted over and over neither die nor notice.
func TestReplaceStorm(t *testing.T) {
	const times = "200"
	mustSucceed(t, replacing(t), roleCommand("storm", times,
		"answers what it blocks for", "answers what it polls for", "sleeps", "forks")...)
}

func TestReplaceLeavesWhatItCannotReach(t *testing.T) {
	t.Run("has a filter of its own", func(t *testing.T) {
		mustSucceed(t, replacing(t), roleCommand("refuses", "has a filter of its own")...)
	})
	t.Run("is of another architecture", func(t *testing.T) {
		if runtime.GOARCH != "amd64" {
			t.Skip("only an amd64 kernel runs 32-bit programs as a rule")
		}
		busy := filepath.Join(t.TempDir(), "busy")
		build := osexec.Command("go", "build", "-o", busy, "./testdata/busy")
		build.Env = append(os.Environ(), "GOARCH=386", "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build: %v\n%s", err, out)
		}
		mustSucceed(t, replacing(t), roleCommand("refuses", "is of another architecture", busy)...)
	})
}

// A thread is looked at once its id can't become another's, and before it is disturbed.
func TestInjectLeavesThreadsWithOtherFilters(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	command := roleCommand("unreachable", "has a filter of its own")
	pid, err := syscall.ForkExec(command[0], command, &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2, uintptr(pair[1])}})
	unix.Close(pair[1])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Read(pair[0], make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	s := newSession(newFakeServer(), slog.New(slog.DiscardHandler))
	s.guard = os.Getpid()
	never := func() bool { return false }
	if err := s.inject(pid, never, func(uint64) error { return nil }); !errors.Is(err, errOwnFilter) {
		t.Errorf("inject = %v, want %v", err, errOwnFilter)
	}
	if _, err := unix.Write(pair[0], []byte(record)); err != nil {
		t.Error(err)
	}
	if err := (&holder{"unreachable", pid}).wait(); err != nil {
		t.Error(err)
	}
}

// Who gives up on a thread does not take away what another one has announced for it meanwhile.
func TestForgetsOnlyOwnInjection(t *testing.T) {
	const tid = 7
	s := newSession(newFakeServer(), slog.New(slog.DiscardHandler))
	_, forgetFirst := s.expectInjected(tid)
	ids, forgetSecond := s.expectInjected(tid)
	forgetFirst()
	if !s.isInjected(&notification{tid: tid, id: 9}) || <-ids != 9 {
		t.Error("the second's notification was not passed on to it")
	}
	forgetSecond()
	if s.isInjected(&notification{tid: tid}) {
		t.Error("a notification that nobody waits for was taken")
	}
}
