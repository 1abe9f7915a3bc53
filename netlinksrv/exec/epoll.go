package exec

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// The kernel keys an epoll registration by the file and the number it was registered under. When
// a descriptor is replaced, the old file's registration stays as long as anybody has it open, and
// the new file has none.

// registration is one line of an epoll descriptor's fdinfo.
type registration struct {
	number int // the client's descriptor
	events uint32
	data   uint64
	inode  uint64 // of the file, 0 if the kernel does not say
}

// moveRegistrations lets the thread's epoll sets watch replacement, under the same number and with
// the same events and data, where they watch old. Both are descriptors of ours. A set that another thread closes meanwhile has
// nothing to be moved.
func (t *task) moveRegistrations(number, old, replacement int) error {
	var st unix.Stat_t
	if err := unix.Fstat(old, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	sets, err := t.epollSets()
	if err != nil {
		return err
	}
	for _, set := range sets {
		info, err := t.descriptorInfo(set)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return err
		}
		for _, r := range parseRegistrations(info) {
			if r.number != number || r.inode != 0 && r.inode != st.Ino {
				continue
			}
			fd, err := t.take(set)
			if errors.Is(err, unix.EBADF) {
				break
			}
			if err != nil {
				return err
			}
			err = atNumber(fd, old, replacement, r)
			unix.Close(fd)
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// epollSets returns the numbers of the thread's epoll descriptors.
func (t *task) epollSets() ([]int, error) {
	directory := fmt.Sprintf("/proc/%d/fd", t.tid)
	entries, err := os.ReadDir(directory)
	if err != nil {
		return nil, err
	}
	var sets []int
	for _, entry := range entries {
		target, err := os.Readlink(directory + "/" + entry.Name())
		if err != nil || target != epollTarget {
			continue
		}
		if fd, err := strconv.Atoi(entry.Name()); err == nil {
			sets = append(sets, fd)
		}
	}
	return sets, nil
}

// parseRegistrations reads the lines "tfd: 5 events: 19 data: 5 pos:0 ino:3f1 sdev:9" of an epoll
// descriptor's fdinfo; the fields from pos on are missing before Linux 5.13.
func parseRegistrations(info []byte) []registration {
	var list []registration
	for line := range bytes.Lines(info) {
		if !bytes.HasPrefix(line, []byte("tfd:")) {
			continue
		}
		var r registration
		n, _ := fmt.Sscanf(string(line), "tfd: %d events: %x data: %x pos:%d ino:%x", &r.number, &r.events, &r.data, new(int64), &r.inode)
		if n >= 3 {
			list = append(list, r)
		}
	}
	return list
}

// reregister moves a registration. It needs a descriptor table in which it may put the old and the
// new file at the number that the registration has in the client.
func reregister(set, old, replacement int, r registration) error {
	// Away from that number first, should one of ours be there.
	fds := []int{set, old, replacement}
	for i, fd := range fds {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, r.number+1)
		if err == unix.EINVAL {
			err = unix.EMFILE // the number is beyond our limit
		}
		if err != nil {
			return os.NewSyscallError("fcntl", err)
		}
		fds[i] = dup
	}
	set, old, replacement = fds[0], fds[1], fds[2]
	if err := unix.Dup3(old, r.number, unix.O_CLOEXEC); err != nil {
		return os.NewSyscallError("dup3", err)
	}
	if err := unix.EpollCtl(set, unix.EPOLL_CTL_DEL, r.number, nil); err != nil && err != unix.ENOENT {
		return os.NewSyscallError("epoll_ctl", err)
	}
	if err := unix.Dup3(replacement, r.number, unix.O_CLOEXEC); err != nil {
		return os.NewSyscallError("dup3", err)
	}
	// The client's thread may have been quicker and registered what it found at the number.
	event := unix.EpollEvent{Events: r.events, Fd: int32(r.data), Pad: int32(r.data >> 32)}
	err := unix.EpollCtl(set, unix.EPOLL_CTL_ADD, r.number, &event)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return os.NewSyscallError("epoll_ctl", err)
	}
	return nil
}

// atNumber runs reregister where nothing of ours is disturbed.
//
// A thread with a private table is quick, but not if the number is one of the Go runtime's own:
// it may wake its poller from any thread, and would write into the client's socket instead. Epoll sets and eventfds of
// ours are used by other threads only, and these have the other table.
// Then a process does it, and also where a container's seccomp profile forbids a private table.
func atNumber(set, old, replacement int, r registration) error {
	if mayBeRuntimes(r.number) {
		return inProcess(set, old, replacement, r)
	}
	err := onPrivateThread(func() error { return reregister(set, old, replacement, r) })
	if errors.Is(err, errNoPrivateTable) {
		return inProcess(set, old, replacement, r)
	}
	return err
}

// errNoPrivateTable says that a thread may not have a descriptor table of its own.
var errNoPrivateTable = errors.New("unshare the descriptor table")

// onPrivateThread runs fn on a thread that has a copy of our descriptor table to itself and that
// ends with it. The copy holds everything that was open: fn must be brief, so that what we close
// meanwhile is closed soon.
func onPrivateThread(fn func() error) error {
	return onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_FILES); err != nil {
			return fmt.Errorf("%w: %w", errNoPrivateTable, err)
		}
		return fn()
	})
}

// onOwnThread runs fn on an OS thread that ends with it.
func onOwnThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The process's first thread never ends. While we occupy it, another goroutine is on
			// another thread.
			err := onOwnThread(fn)
			runtime.UnlockOSThread()
			done <- err
			return
		}
		// Never unlocked: the thread ends with this goroutine.
		done <- fn()
	}()
	return <-done
}

// epollName is the name under which our binary runs runEpoll.
const epollName = "ovpn-go-epoll"

// inProcess runs reregister in a process of its own.
func inProcess(set, old, replacement int, r registration) error {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	argv := []string{epollName, strconv.Itoa(r.number), strconv.FormatUint(uint64(r.events), 10), strconv.FormatUint(r.data, 10)}
	pid, err := syscall.ForkExec(selfPath, argv, &syscall.ProcAttr{
		Files: []uintptr{null.Fd(), null.Fd(), null.Fd(), uintptr(set), uintptr(old), uintptr(replacement)},
	})
	if err != nil {
		return fmt.Errorf("start %s: %w", epollName, err)
	}
	var status unix.WaitStatus
	if _, err := ignoringEINTR(func() (int, error) { return unix.Wait4(pid, &status, 0, nil) }); err != nil {
		return os.NewSyscallError("wait4", err)
	}
	if s := statusOf(status); s != (Status{}) {
		return fmt.Errorf("%s: %v", epollName, s)
	}
	return nil
}

// runEpoll is that process's main. The set, the old and the new file are its descriptors 3 to 5;
// the arguments are a registration's number, events and data.
func runEpoll(args []string) int {
	if len(args) != 3 {
		return 2
	}
	var r registration
	if _, err := fmt.Sscan(strings.Join(args, " "), &r.number, &r.events, &r.data); err != nil {
		return 2
	}
	if reregister(3, 4, 5, r) != nil {
		return 1
	}
	return 0
}
