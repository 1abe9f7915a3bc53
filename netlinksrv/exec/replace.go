package exec

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Replace puts a copy of file in place of the socket with that inode number wherever the client's processes have it, with
// the same close-on-exec flags, the mode and time limits of the old one, and lets the client's epoll sets watch it as they
// watched that. Threads that are blocked on the old one start again with the new one. The error is unix.EBADF if nobody has the
// socket; a process that can't be reached keeps it, which is logged.
//
// A descriptor can be put into a process only while it waits in a notified call. A program without a filter gets file with the answer
// to its request, and puts it there itself; afterwards the error is unix.EOPNOTSUPP.
func (t *task) Replace(inode uint64, file *os.File) error {
	if t.handover != nil {
		return t.handover.put(t, file)
	}
	return t.session.replaceEverywhere(inode, file)
}

// replace puts a descriptor of ours at one of the thread's numbers, where now is that of which old is a duplicate. It
// works only while the thread waits for its answer.
// The client has the new one if done is true, whatever became of its epoll registrations.
func (t *task) replace(number, old, replacement int) (done bool, err error) {
	cloexec, err := t.closesOnExec(number)
	if err != nil {
		return false, err
	}
	if kept := t.session.kept; kept != nil {
		if err := kept.add(replacement, t.PID(), number); err != nil {
			return false, err
		}
	}
	if err := t.install(replacement, number, cloexec); err != nil {
		return false, err
	}
	err = t.moveRegistrations(number, old, replacement)
	if isShortage(err) {
		// The client would wait for ever for what its epoll set does not watch. Sets that watch the new one already follow back.
		if t.install(old, number, cloexec) == nil {
			return false, errors.Join(err, t.moveRegistrations(number, replacement, old))
		}
	}
	if err != nil {
		return true, fmt.Errorf("move epoll registrations of descriptor %d: %w", number, err)
	}
	return true, nil
}

// closesOnExec reads a descriptor's flag.
func (t *task) closesOnExec(fd int) (bool, error) {
	info, err := t.descriptorInfo(fd)
	if err != nil {
		return false, err
	}
	flags, err := strconv.ParseUint(string(statusField(info, "flags")), 8, 64)
	return flags&unix.O_CLOEXEC != 0, err
}

// descriptorInfo reads /proc/TID/fdinfo/FD.
func (t *task) descriptorInfo(fd int) ([]byte, error) {
	info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", t.tid, fd))
	if err != nil {
		return nil, err
	}
	if !t.alive() {
		return nil, errGone
	}
	return bytes.TrimSpace(info), nil
}
