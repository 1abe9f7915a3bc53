package exec

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// holderFD is where a holder has the socket, or the one through which it gets it.
const holderFD = 3

const longWait = 20 * time.Second // ends only a test that fails

// holders are what a process may be doing while a socket that it has, at a number of its own, is replaced. Each must
// end without an error when the new one delivers a record, and may block the process's first thread.
var holders = map[string]func(fd int) error{
	"blocked in recv": func(fd int) error { return expectRecord(fd) },
	"blocked in recv with a time limit": func(fd int) error {
		limit := unix.NsecToTimeval(longWait.Nanoseconds())
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
			return err
		}
		return expectRecord(fd)
	},
	"blocked in poll": func(fd int) error {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := rawPoll(fds)
		if err := expect("poll", n, err, 1); err != nil {
			return err
		}
		return expectRecord(fd)
	},
	"blocked in epoll_wait": func(fd int) error {
		set, err := unix.EpollCreate1(0)
		if err != nil {
			return err
		}
		if err := unix.EpollCtl(set, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: 17, Pad: 18}); err != nil {
			return err
		}
		if err := expectEvent(set, int(longWait.Milliseconds()), unix.EPOLLIN); err != nil {
			return err
		}
		return expectRecord(fd)
	},
	"blocked in nanosleep": func(fd int) error {
		const nap = 300 * time.Millisecond
		start := time.Now()
		ts := unix.NsecToTimespec(nap.Nanoseconds())
		_, _, errno := syscall.RawSyscall(unix.SYS_NANOSLEEP, address(&ts), 0, 0)
		if errno != 0 || time.Since(start) < nap || time.Since(start) > 20*nap {
			return fmt.Errorf("slept %v, %w", time.Since(start), ok(errno))
		}
		return expectRecord(fd)
	},
	"blocked in sigsuspend until a signal": func(fd int) error {
		var mask uint64 // none blocked
		_, _, errno := syscall.RawSyscall(unix.SYS_RT_SIGSUSPEND, address(&mask), 8, 0)
		if errno != unix.EINTR {
			return fmt.Errorf("sigsuspend: %w", ok(errno))
		}
		return expectRecord(fd)
	},
	"blocked in recv in a second thread": func(fd int) error {
		done := make(chan error)
		go func() {
			runtime.LockOSThread()
			done <- expectRecord(fd)
		}()
		return <-done
	},
	"busy": func(fd int) error {
		for {
			err := expectRecordNow(fd)
			if !errors.Is(err, unix.EAGAIN) {
				return err
			}
			for range 1000 {
				unix.Getppid()
			}
		}
	},
	"stopped": expectRecord,
	"given it in a message": func(fd int) error {
		oob := make([]byte, unix.CmsgSpace(4))
		_, n, _, _, err := unix.Recvmsg(fd, make([]byte, 1), oob, 0)
		if err != nil {
			return err
		}
		given, err := receivedDescriptor(oob[:n])
		if err != nil {
			return err
		}
		if _, err := unix.Write(fd, []byte("got it")); err != nil {
			return err
		}
		return expectRecord(given)
	},
}

const record = "a record"

func expectRecord(fd int) error {
	buf := make([]byte, 100)
	n, err := unix.Read(fd, buf)
	return expect("read", string(buf[:max(n, 0)]), err, record)
}

func expectRecordNow(fd int) error {
	buf := make([]byte, 100)
	n, _, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
	return expect("recvfrom", string(buf[:max(n, 0)]), err, record)
}

// holder is a process that has a socket which another one has replaced.
type holder struct {
	doing string
	pid   int
}

func startHolder(doing string, socket int) (*holder, error) {
	command := roleCommand("holder", doing)
	pid, err := syscall.ForkExec(command[0], command, &syscall.ProcAttr{
		// The runtime's own signals would interrupt what the holder does.
		Env:   append(os.Environ(), "GODEBUG=asyncpreemptoff=1"),
		Files: []uintptr{0, 1, 2, uintptr(socket)},
	})
	return &holder{doing, pid}, err
}

// awaitBlocked waits until one of the holder's threads is where it should be.
func (h *holder) awaitBlocked() error {
	calls := map[string]int{
		"blocked in poll": pollCall, "blocked in epoll_wait": unix.SYS_EPOLL_PWAIT,
		"blocked in nanosleep": unix.SYS_NANOSLEEP, "blocked in sigsuspend until a signal": unix.SYS_RT_SIGSUSPEND,
	}
	want, ok := calls[h.doing]
	if !ok {
		want = unix.SYS_READ
	}
	if h.doing == "busy" {
		return nil
	}
	for deadline := time.Now().Add(longWait); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		calls, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", h.pid))
		if err != nil {
			return err
		}
		for _, call := range calls {
			text, err := os.ReadFile(call)
			if err == nil && strings.HasPrefix(string(text), strconv.Itoa(want)+" ") {
				return nil
			}
		}
	}
	return fmt.Errorf("holder %s does not come to system call %d", h.doing, want)
}

func (h *holder) wait() error {
	var status unix.WaitStatus
	if _, err := ignoringEINTR(func() (int, error) { return unix.Wait4(h.pid, &status, 0, nil) }); err != nil {
		return err
	}
	if status != 0 {
		return fmt.Errorf("holder %s ended with %v", h.doing, statusOf(status))
	}
	return nil
}

// awaitState waits until a process is in a state.
func awaitState(pid int, state string) error {
	for deadline := time.Now().Add(longWait); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if _, rest, _ := strings.Cut(statOf(pid), ") "); strings.HasPrefix(rest, state) {
			return nil
		}
	}
	return fmt.Errorf("process is not in state %s: %s", state, statOf(pid))
}
