package exec

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Replace puts a copy of file at the thread's descriptor fd, in place of what is there, with the
// same close-on-exec flag, and lets the client's epoll sets watch it as they watched the old one.
// Whether it blocks is file's own affair. It works only while the thread waits for its answer,
// and fails with unix.EBADF if fd is not open.
func (t *task) Replace(fd int, file *os.File) error {
	conn, err := file.SyscallConn()
	if err != nil {
		return err
	}
	old, err := t.take(fd)
	if err != nil {
		return fmt.Errorf("descriptor %d of the client: %w", fd, err)
	}
	defer unix.Close(old)
	var inner error
	err = conn.Control(func(replacement uintptr) { _, inner = t.replace(fd, old, int(replacement)) })
	return errors.Join(err, inner)
}

// errNotWaiting says that a descriptor can't be replaced as its owner is running.
var errNotWaiting = errors.New("client does not wait for us")

// replace is Replace with bare descriptors of ours: a duplicate of the old one, and the new one.
// The client has the new one if done is true, whatever became of its epoll registrations.
func (t *task) replace(number, old, replacement int) (done bool, err error) {
	if t.install == nil {
		return false, errNotWaiting
	}
	cloexec, err := t.closesOnExec(number)
	if err != nil {
		return false, err
	}
	if err := t.install(replacement, number, cloexec); err != nil {
		return false, err
	}
	if err := t.moveRegistrations(number, old, replacement); err != nil {
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
