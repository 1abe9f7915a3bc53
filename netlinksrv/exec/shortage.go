package exec

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// isShortage reports whether an error says that this process, or the system, has no descriptor left.
func isShortage(err error) bool { return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) }

// shortage says in the log that descriptors are lacking. A client that tries again and again does not fill it.
type shortage struct {
	mu   sync.Mutex
	said time.Time // guarded by mu: when it was said last
}

// shortageInterval is how long it is not said again.
const shortageInterval = time.Minute

func (s *shortage) say(log *slog.Logger, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); s.said.IsZero() || now.Sub(s.said) >= shortageInterval {
		s.said = now
		log.Warn("no descriptors are left to answer a client's system calls, which fail with ENOBUFS: "+
			"raise this program's hard limit (ulimit -Hn, LimitNOFILE= in a unit), or fs.file-max", "error", err)
	}
}

// continuesUnless leaves the call to the kernel, as it can't be looked at because of err, unless that is for want of descriptors: to the
// kernel the client's end of a pair is a UNIX socket, and our links are TUN interfaces.
func (c *call) continuesUnless(err error) {
	if isShortage(err) {
		c.failsFor(err)
		return
	}
	c.continues()
}

// onSocket reports whether the call's descriptor is a socket, as far as that shows without opening anything.
func (c *call) onSocket() bool {
	target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", c.task.tid, c.fd()))
	if err != nil {
		return !errors.Is(err, os.ErrNotExist)
	}
	return namedInode(target) != 0
}
