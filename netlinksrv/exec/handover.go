package exec

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"ovpn-go/tun/netns"
)

// A handover gives a program without a filter what is to replace its descriptor: beside the acknowledgement of the request
// that takes the old one. Requests are answered one after the other.
type handover struct {
	pair *pair

	mu      sync.Mutex
	request *task    // guarded by mu: whose request is being answered; nil between requests
	file    *os.File // guarded by mu: what goes with the acknowledgement; nil if nothing does
}

// begin is called before a request is answered.
func (h *handover) begin(t *task) {
	t.handover = h
	h.mu.Lock()
	defer h.mu.Unlock()
	h.request = t
}

// end is called when it has been.
func (h *handover) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.request = nil
	h.drop()
}

// put has a duplicate of file go with the acknowledgement of t's request, if that is not out yet.
func (h *handover) put(t *task, file *os.File) error {
	fd := -1
	err := netns.Control(file, func(old int) (err error) {
		fd, err = unix.FcntlInt(uintptr(old), unix.F_DUPFD_CLOEXEC, 0)
		return os.NewSyscallError("fcntl", err)
	})
	if err != nil {
		return err
	}
	own := os.NewFile(uintptr(fd), "replacement")
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.request != t {
		own.Close()
		return fmt.Errorf("replace a descriptor of a program without a filter: %w", unix.EOPNOTSUPP)
	}
	h.drop()
	h.file = own
	return nil
}

// drop closes the file; h.mu is held.
func (h *handover) drop() {
	if h.file != nil {
		h.file.Close()
		h.file = nil
	}
}

// deliver is pair.deliver. Announcements, which may come at any time, and refusals take nothing along.
func (h *handover) deliver(datagram []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.file == nil || !isAcknowledgement(datagram) {
		return h.pair.deliver(datagram)
	}
	defer h.drop()
	return netns.Control(h.file, func(fd int) error { return h.pair.deliverWith(datagram, unix.UnixRights(fd)) })
}

// isAcknowledgement reports whether a datagram is an NLMSG_ERROR message without an error.
func isAcknowledgement(datagram []byte) bool {
	const code = unix.NLMSG_HDRLEN
	return len(datagram) >= code+4 && binary.NativeEndian.Uint16(datagram[4:]) == unix.NLMSG_ERROR &&
		binary.NativeEndian.Uint32(datagram[code:]) == 0
}
