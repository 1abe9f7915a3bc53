package exec

import (
	"fmt"
	"os"

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
	return nil
}
