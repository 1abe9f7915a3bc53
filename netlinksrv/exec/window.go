package exec

import (
	"errors"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// errWindowFull says that the client has no number free in the window.
var errWindowFull = errors.New("no descriptor number is free in the window")

// injector puts descriptors at numbers in the window. Choosing a free number and taking it is one
// step under its lock, so that two threads of one client never get the same; that the client
// itself opens or duplicates something to a number up there in between is not expected.
type injector struct {
	mu     sync.Mutex
	window window // fixed before the first notification
}

// answerSocket answers a socket call with a copy of fd.
func (i *injector) answerSocket(l *listener, n notification, fd int, cloexec bool) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	number, err := i.free(int(n.tid))
	if err != nil {
		return err
	}
	if err := l.install(n.id, fd, number, cloexec); err != nil {
		return err
	}
	return l.returns(n.id, int64(number))
}

// free returns the lowest number in the window at which the thread has nothing open.
func (i *injector) free(tid int) (int, error) {
	prefix := "/proc/" + strconv.Itoa(tid) + "/fd/"
	for number := int(i.window.lo); number < int(i.window.hi); number++ {
		var st unix.Stat_t
		switch err := unix.Lstat(prefix+strconv.Itoa(number), &st); err {
		case nil:
		case unix.ENOENT:
			return number, nil
		default:
			return 0, err
		}
	}
	return 0, errWindowFull
}
