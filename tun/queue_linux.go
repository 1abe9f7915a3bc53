package tun

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Features says which super-frames a device exchanges with its queues.
type Features struct {
	TSO bool // TCP over IPv4 and IPv6 (TUN_F_TSO4, TUN_F_TSO6)
	USO bool // UDP over IPv4 and IPv6 (TUN_F_USO4, TUN_F_USO6; Linux 6.2)
}

// Queue is one queue of a device: frames, one per call, each a vnet header and an IP packet. It is
// not safe for concurrent use, except that one goroutine may read while another writes.
type Queue struct {
	fd       int
	features Features
}

// NewQueue makes a queue of a non-blocking descriptor, which it takes ownership of. Any descriptor
// that keeps message boundaries will do; whoever is at the other end is taken to understand every
// kind of super-frame.
func NewQueue(fd int) *Queue {
	return &Queue{fd: fd, features: Features{TSO: true, USO: true}}
}

// FD returns the descriptor's number, to wait on; it stays owned by the queue. It is -1 after Close.
func (q *Queue) FD() int { return q.fd }

// Features returns the super-frames that may be written to the queue.
func (q *Queue) Features() Features { return q.features }

// SetFeatures restricts what a Coalescer made afterwards writes to the queue. Reading is not
// affected.
func (q *Queue) SetFeatures(f Features) { q.features = f }

// Read receives one frame and returns its length. A frame longer than the buffer is cut off, so the
// buffer should have MaxFrame bytes. An error is a bare unix.Errno: EAGAIN if there is no frame,
// EBADFD if the interface has been deleted, EBADF after Close.
func (q *Queue) Read(frame []byte) (int, error) {
	return q.transfer(unix.SYS_READ, frame)
}

// Write sends one frame and returns its length. An error is a bare unix.Errno: EIO while the
// interface is down, EINVAL for a frame that the kernel does not accept, EBADFD if the interface has
// been deleted, EAGAIN if an in-memory queue is full, EBADF after Close.
func (q *Queue) Write(frame []byte) (int, error) {
	return q.transfer(unix.SYS_WRITE, frame)
}

// transfer makes the system call without telling the Go scheduler about it: the descriptor never
// blocks, and giving the processor away and asking for it back costs more than small calls take.
func (q *Queue) transfer(call uintptr, frame []byte) (int, error) {
	if len(frame) == 0 {
		return 0, unix.EINVAL
	}
	for {
		n, _, errno := unix.RawSyscall(call, uintptr(q.fd), uintptr(unsafe.Pointer(unsafe.SliceData(frame))), uintptr(len(frame)))
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// Close closes the descriptor. Nothing may be reading or writing. The interface disappears with its
// last queue.
func (q *Queue) Close() error {
	if q.fd < 0 {
		return unix.EBADF
	}
	fd := q.fd
	q.fd = -1
	return unix.Close(fd)
}
