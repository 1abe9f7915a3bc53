package exec

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"ovpn-go/tun/netns"
)

// Handover is a client under our filter that another process has started and stays the parent of.
type Handover struct {
	// Listener is the filter's, and Guard a pidfd of the guard. Both stay the caller's.
	Listener, Guard *os.File
	// Window is the range of descriptor numbers that the filter compares with, the end excluded.
	Window [2]uint32
	// Parent is the process that has started the guard, in our pid namespace.
	Parent int
}

// Adopted is a client of another process's that this process answers.
type Adopted struct{ answers *embedded }

// Adopt answers a client's notified calls until Close. Its supervisor goes on to pass signals and to wait for it, and must
// end it when this process has ended.
//
// The threads of the client are looked at as Run's are, so this process needs the same rights over them, and they must be in its pid
// namespace or one below.
func Adopt(o Options, h Handover) (*Adopted, error) {
	guard, err := h.guard()
	if err != nil {
		return nil, err
	}
	reach := Probe(guard)
	if err := reach.NoDescriptors; err != nil {
		return nil, fmt.Errorf("adopt a client: its filter is for a process that can take descriptors from it: %w", err)
	}
	listener, err := h.listener()
	if err != nil {
		return nil, err
	}
	answers := newEmbedded(o.session(), guard, reach)
	if err := answers.start(listener, window{h.Window[0], h.Window[1]}); err != nil {
		answers.finish()
		return nil, err
	}
	return &Adopted{answers}, nil
}

// Failed yields why the client's calls are not answered any more, although nobody has called Close.
func (a *Adopted) Failed() <-chan error { return a.answers.failed() }

// Close stops answering and releases all that the client's sockets hold. Calls that are not answered yet never are.
func (a *Adopted) Close() { a.answers.finish() }

// listener checks that the file is what it must be, as another's would be asked things that it does not understand, and returns
// a duplicate.
func (h Handover) listener() (fd int, err error) {
	err = netns.Control(h.Listener, func(raw int) (err error) {
		name, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(raw))
		if err != nil {
			return err
		}
		if name != "anon_inode:seccomp notify" {
			return fmt.Errorf("%s: %w", name, unix.EINVAL)
		}
		fd, err = unix.FcntlInt(uintptr(raw), unix.F_DUPFD_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return -1, fmt.Errorf("adopt a listener: %w", err)
	}
	return fd, nil
}

// guard returns the guard's pid. A client's other processes are looked for below it, so it must be the parent's own child.
func (h Handover) guard() (pid int, err error) {
	err = netns.Control(h.Guard, func(fd int) (err error) {
		pid, err = pidOf(fd)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("adopt a guard: %w", err)
	}
	if _, parent, ok := parseStat(statOf(pid)); !ok || parent != h.Parent {
		return 0, fmt.Errorf("adopt a guard: process %d is not a child of process %d: %w", pid, h.Parent, unix.EPERM)
	}
	return pid, nil
}

// pidOf returns the process that a pidfd is of, in our pid namespace.
func pidOf(pidfd int) (int, error) {
	info, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(pidfd))
	if err != nil {
		return 0, err
	}
	value := statusField(info, "Pid")
	pid, err := strconv.Atoi(strings.TrimSpace(string(value)))
	switch {
	case err != nil:
		return 0, fmt.Errorf("not a pidfd: %w", unix.EBADF)
	case pid <= 0:
		return 0, errors.Join(errors.New("the process has ended, or is not in a pid namespace below this one"), unix.ESRCH)
	}
	return pid, nil
}
