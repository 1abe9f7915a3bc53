package exec

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"ovpn-go/tun/netns"
)

// task is the thread that makes a notified call. What it says of itself is read from /proc at the
// moment it is asked for, as the thread may change it between calls.
//
// While a notified thread waits for its answer, neither its id nor its process's can be reused.
// Every method that opens something by an id checks afterwards that the thread still waited.
type task struct {
	session *session
	tid     int
	alive   func() bool // whether the thread that tid named at first is still the one
	// limit is the credentials that a request may not exceed, those of the socket's opener, where they matter.
	limit *credentials
	// unknown is why nothing is known of the rights of a process that does not wait for an answer: there is no descriptor to look with.
	unknown error
	// sender is set if the task stands for a process that does not wait for an answer.
	sender *sender
	// install puts a copy of our descriptor at one of the thread's numbers. It is nil for a thread
	// that does not wait for an answer.
	install func(fd, number int, cloexec bool) error
	// handover is nil for a program under a filter.
	handover *handover
}

// senderTask is a task for a sender that does not wait for an answer. It speaks for the process,
// and has no rights if the thread that sent was another user than the process is. done must be
// called when it is no longer needed. Should the process have ended before we looked, and its id be
// in use again, we take the new one for it; that takes a wrap of all ids within a moment.
func senderTask(s *session, from sender) (t *task, done func()) {
	pidfd, err := unix.PidfdOpen(from.pid, 0)
	if err != nil {
		t = &task{session: s, tid: from.pid, alive: func() bool { return isShortage(err) }}
		if isShortage(err) {
			t.unknown = err
		}
		return t, func() {}
	}
	alive := func() bool { return processRuns(pidfd) }
	return &task{session: s, tid: from.pid, alive: alive, sender: &from}, func() { unix.Close(pidfd) }
}

// NetNS returns the network namespace that the thread is in. The caller closes it.
func (t *task) NetNS() (*netns.NS, error) {
	ns, err := netns.OfThread(t.tid)
	if err != nil {
		return nil, err
	}
	if !t.alive() {
		ns.Close()
		return nil, errGone
	}
	return ns, nil
}

// MayAdmin returns nil if the thread has CAP_NET_ADMIN over the user namespace that owns ns, and, where
// they matter, the socket's opener had it too: netlink asks both unless the datagram came with an address. The errors are
// those of netlinksrv.Task.
func (t *task) MayAdmin(ns *netns.NS) error {
	if t.unknown != nil {
		return t.unknown
	}
	if t.limit != nil {
		if err := t.limit.mayAdmin(ns); err != nil {
			return err
		}
	}
	c, err := t.credentials()
	switch {
	case isShortage(err):
		return err
	case err != nil, t.sender != nil && t.sender.uid != c.uid:
		return unix.EPERM
	}
	return c.mayAdmin(ns)
}

// PID returns the thread's process, in our pid namespace; 0 if it is gone.
func (t *task) PID() int {
	pid, _ := t.process()
	return pid
}

// process is PID with what is wrong.
func (t *task) process() (int, error) {
	status, err := t.status()
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(string(statusField(status, "Tgid")))
}

// Waits says whether the thread is still there for the answer.
func (t *task) Waits() bool { return t.alive() }

// File returns a duplicate of the thread's descriptor fd, unix.EBADF if it has none.
func (t *task) File(fd int) (*os.File, error) {
	dup, err := t.take(fd)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d of the client: %w", fd, err)
	}
	return os.NewFile(uintptr(dup), "client descriptor "+strconv.Itoa(fd)), nil
}

// take is File with a bare descriptor.
func (t *task) take(fd int) (int, error) {
	dup, err := t.duplicate(fd)
	if err != nil {
		return -1, err
	}
	if !t.alive() {
		unix.Close(dup)
		return -1, errGone
	}
	return dup, nil
}

// duplicate is take of a thread that may have gone.
func (t *task) duplicate(fd int) (int, error) {
	if t.session.kept != nil {
		return t.session.kept.take(t.tid, fd)
	}
	pidfd, err := t.pidfd()
	if err != nil {
		return -1, err
	}
	defer unix.Close(pidfd)
	return unix.PidfdGetfd(pidfd, fd, 0)
}

// pidfd opens the thread. It has descriptors of its own if it left the process's table, and they
// are the only ones after the process's first thread has ended.
func (t *task) pidfd() (int, error) {
	const pidfdThread = unix.O_EXCL // PIDFD_THREAD, Linux 6.9
	fd, err := unix.PidfdOpen(t.tid, pidfdThread)
	if err != unix.EINVAL {
		return fd, err
	}
	pid, err := t.process()
	if err != nil {
		return -1, err
	}
	return unix.PidfdOpen(pid, 0)
}

// status reads /proc/TID/status.
func (t *task) status() ([]byte, error) {
	status, err := os.ReadFile("/proc/" + strconv.Itoa(t.tid) + "/status")
	if err != nil {
		return nil, err
	}
	if !t.alive() {
		return nil, errGone
	}
	return status, nil
}

// statusField returns a field's value from /proc/PID/status, nil if it is not there.
func statusField(status []byte, name string) []byte {
	for line := range bytes.Lines(status) {
		if key, value, ok := bytes.Cut(line, []byte(":")); ok && string(key) == name {
			return bytes.TrimSpace(value)
		}
	}
	return nil
}

// read copies n bytes from the thread's memory. unix.EFAULT means what it means to the kernel.
func (t *task) read(address uint64, n int) ([]byte, error) {
	b := make([]byte, n)
	got, err := t.session.reach.read(t.tid, b, address)
	switch {
	case err != nil:
		return nil, err
	case !t.alive():
		return nil, errGone
	case got != n:
		return nil, unix.EFAULT
	}
	return b, nil
}

// write copies b into the thread's memory.
func (t *task) write(address uint64, b []byte) error {
	if !t.alive() {
		return errGone
	}
	n, err := t.session.reach.write(t.tid, b, address)
	if err == nil && n != len(b) {
		err = unix.EFAULT
	}
	return err
}

// errnoFor is the errno with which a call fails when looking at the client failed with err. That we have no descriptor left is not said as it
// is, for the client would look for the fault in its own: it hears what sockets say when the system runs short.
func errnoFor(err error) unix.Errno {
	if isShortage(err) {
		return unix.ENOBUFS
	}
	if errno, ok := errors.AsType[unix.Errno](err); ok {
		return errno
	}
	return unix.EIO
}
