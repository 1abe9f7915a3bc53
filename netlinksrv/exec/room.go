package exec

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// LeaveRoom keeps the numbers of the Go runtime's own descriptors above those that clients commonly have. Where a client has a
// socket in an epoll set at one of them, it takes another process to move it (inProcess), which a daemon may not start. It
// must be called before a file is opened and before a timer runs.
func LeaveRoom() error {
	const clients = 1024                                                // FD_SETSIZE
	null, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0) // os.Open would take the runtime's own already
	if err != nil {
		return fmt.Errorf("open %s: %w", os.DevNull, err)
	}
	defer unix.Close(null)
	var taken []int
	for {
		fd, err := unix.FcntlInt(uintptr(null), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			break // the limit on descriptors, so there are fewer numbers for clients as well
		}
		if fd >= clients {
			unix.Close(fd)
			break
		}
		taken = append(taken, fd)
	}
	const runtimes = 8 // and the pipe, which makes it take its own
	for _, fd := range taken[max(0, len(taken)-runtimes):] {
		unix.Close(fd)
	}
	taken = taken[:max(0, len(taken)-runtimes)]
	defer func() {
		for _, fd := range taken {
			unix.Close(fd)
		}
	}()
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start the poller: %w", err)
	}
	r.Close()
	w.Close()
	runtimesOwn, err = eventNumbers()
	return err
}

// runtimesOwn are the numbers of the Go runtime's own descriptors, an epoll set and an eventfd; nil where LeaveRoom has not seen which
// they are.
var runtimesOwn []int

// mayBeRuntimes reports whether a number may be one of them.
func mayBeRuntimes(number int) bool {
	if runtimesOwn != nil {
		return slices.Contains(runtimesOwn, number)
	}
	return isEvent(strconv.Itoa(number))
}

// eventNumbers lists our epoll sets and eventfds.
func eventNumbers() ([]int, error) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil, err
	}
	numbers := []int{}
	for _, entry := range entries {
		if !isEvent(entry.Name()) {
			continue
		}
		number, err := strconv.Atoi(entry.Name())
		if err != nil {
			return nil, err
		}
		numbers = append(numbers, number)
	}
	return numbers, nil
}

// isEvent reports whether a descriptor of ours is an epoll set or an eventfd.
func isEvent(number string) bool {
	target, err := os.Readlink("/proc/self/fd/" + number)
	return err == nil && strings.HasPrefix(target, "anon_inode:[event")
}
