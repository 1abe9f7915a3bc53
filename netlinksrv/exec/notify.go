package exec

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// listener receives the notifications of one filter and sends their answers.
//
// Its methods may be called concurrently, except close.
type listener struct {
	fd   int
	wake int // eventfd: ends serve's poll

	mu   sync.Mutex
	tid  int // guarded by mu: serve's thread, 0 while it does not run
	stop atomic.Bool
}

// newListener takes ownership of a listener descriptor.
func newListener(fd int) (*listener, error) {
	// The kernel says how much it copies, which may be less or more than what we were built with.
	// The calls refuse nothing but a structure larger than ours.
	sizes, err := seccompSizes()
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("seccomp notification sizes: %w", err)
	}
	if int(sizes.notification) > notificationSpace || int(sizes.response) > responseSpace {
		unix.Close(fd)
		return nil, fmt.Errorf("seccomp notifications of %d and %d bytes are larger than known", sizes.notification, sizes.response)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("eventfd", err)
	}
	return &listener{fd: fd, wake: wake}, nil
}

// serve passes every notification to handle, which must not block, until shutdown is called.
func (l *listener) serve(handle func(notification)) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	l.mu.Lock()
	l.tid = unix.Gettid()
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		l.tid = 0
		l.mu.Unlock()
	}()
	fds := []unix.PollFd{{Fd: int32(l.fd), Events: unix.POLLIN}, {Fd: int32(l.wake), Events: unix.POLLIN}}
	for !l.stop.Load() {
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return os.NewSyscallError("poll", err)
		}
		if fds[0].Revents&unix.POLLIN == 0 {
			if fds[0].Revents != 0 {
				// Nobody is left who could be notified; only shutdown follows.
				fds[0].Fd = -1
			}
			continue
		}
		n, err := receiveNotification(l.fd)
		switch err {
		case nil:
			handle(n)
		case unix.EINTR, unix.ENOENT:
			// The notified thread was killed or interrupted before we came.
		default:
			return os.NewSyscallError("ioctl SECCOMP_IOCTL_NOTIF_RECV", err)
		}
	}
	return nil
}

// shutdown makes serve return and waits for it.
//
// A notification that vanishes between poll and receive leaves serve blocked in the receive call;
// before Linux 6.11 not even the end of all clients wakes it. The runtime's own signal does.
func (l *listener) shutdown() {
	l.stop.Store(true)
	for {
		unix.Write(l.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		l.mu.Lock()
		if l.tid == 0 {
			l.mu.Unlock()
			return
		}
		unix.Tgkill(unix.Getpid(), l.tid, unix.SIGURG)
		l.mu.Unlock()
		time.Sleep(time.Millisecond)
	}
}

// close releases the descriptors. serve must have returned.
func (l *listener) close() {
	unix.Close(l.fd)
	unix.Close(l.wake)
}

// valid says whether the notified thread still waits for its answer: as long as it does, its id
// and its process's can't have been reused.
func (l *listener) valid(id uint64) bool {
	return notificationValid(l.fd, id) == nil
}

// The answers. A thread that was killed or interrupted meanwhile no longer waits for one, which
// is not an error.

// returns lets the notified call return value.
func (l *listener) returns(id uint64, value int64) error {
	return l.respond(response{id: id, value: value})
}

// fails lets the notified call fail with errno.
func (l *listener) fails(id uint64, errno unix.Errno) error {
	return l.respond(response{id: id, errno: -int32(errno)})
}

// continues lets the kernel execute the notified call.
func (l *listener) continues(id uint64) error {
	return l.respond(response{id: id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE})
}

func (l *listener) respond(r response) error {
	for {
		err := sendResponse(l.fd, r)
		switch err {
		case unix.EINTR:
			continue
		case nil, unix.ENOENT:
			return nil
		}
		return fmt.Errorf("answer seccomp notification: %w", err)
	}
}

// errGone says that the notified thread no longer waits.
var errGone = errors.New("notified thread is gone")

// install puts a copy of our descriptor fd at the given number of the notified process, closing
// what was there. errGone, EBADF (the number is beyond the process's limit) or another errno.
//
// SECCOMP_ADDFD_FLAG_SEND, which answers the notification in the same step, is not for us: when a
// signal interrupts it, the call returns 0 and the descriptor is lost (seen with Linux 6.18), and
// the Go runtime interrupts its threads often.
func (l *listener) install(id uint64, fd, number int, cloexec bool) error {
	add := addFD{id: id, flags: unix.SECCOMP_ADDFD_FLAG_SETFD, source: uint32(fd), number: uint32(number)}
	if cloexec {
		add.numberFlags = unix.O_CLOEXEC
	}
	for {
		err := addDescriptor(l.fd, add)
		switch err {
		case unix.EINTR:
			continue
		case nil:
			return nil
		case unix.ENOENT, unix.EINPROGRESS, unix.ESRCH:
			// The others say that the answer came while the thread was on its way out, or was to take the descriptor.
			return errGone
		}
		return fmt.Errorf("install descriptor %d: %w", number, err)
	}
}
