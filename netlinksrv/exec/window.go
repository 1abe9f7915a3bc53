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

// answer answers a call that returns a descriptor with a copy of fd at a number in w: the window of netlink sockets, or the one
// around it. chosen is told the number first; its error ends the matter.
func (i *injector) answer(l *listener, w window, n notification, fd int, cloexec bool, chosen func(number int) error) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	number, err := i.free(w, int(n.tid))
	if err != nil {
		return err
	}
	if err := chosen(number); err != nil {
		return err
	}
	if err := l.install(n.id, fd, number, cloexec); err != nil {
		return err
	}
	return l.returns(n.id, int64(number))
}

// hasFree says whether answer would find a number.
func (i *injector) hasFree(w window, tid int) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	_, err := i.free(w, tid)
	return err == nil
}

// free returns the lowest number in w at which the thread has nothing open.
func (i *injector) free(w window, tid int) (int, error) {
	prefix := "/proc/" + strconv.Itoa(tid) + "/fd/"
	for number := int(w.lo); number < int(w.hi); number++ {
		if w != i.window && i.window.contains(number) {
			continue
		}
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
