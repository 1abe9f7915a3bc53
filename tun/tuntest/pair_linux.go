// Package tuntest is the in-memory twin of a TUN device: a queue whose other end is the test, builders
// for the packets that go through it, and a slow, obvious model of what the kernel makes of a frame.
package tuntest

import (
	"bytes"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/tun"
)

// Pair returns a queue and the kernel's end of it, without any privilege: frames written to one are
// read from the other, one per call, with their vnet headers. Both ends are closed with the test.
// The queue is non-blocking; the kernel's end blocks and takes deadlines.
func Pair(t testing.TB) (*tun.Queue, *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatalf("make a queue pair: %v", err)
	}
	for _, fd := range fds {
		// Room for several super-frames, as far as the system allows.
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 8<<20)
	}
	queue := tun.NewQueue(fds[0])
	kernel := os.NewFile(uintptr(fds[1]), "kernel end of queue")
	t.Cleanup(func() {
		queue.Close()
		kernel.Close()
	})
	return queue, kernel
}

// Drain reads the frames that wait at the kernel's end of a Pair.
func Drain(t testing.TB, kernel *os.File) [][]byte {
	t.Helper()
	conn, err := kernel.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var frames [][]byte
	buf := make([]byte, tun.MaxFrame)
	var readErr error
	err = conn.Control(func(fd uintptr) {
		for {
			n, err := unix.Read(int(fd), buf)
			if err != nil || n == 0 {
				readErr = err
				return
			}
			frames = append(frames, bytes.Clone(buf[:n]))
		}
	})
	if err = errors.Join(err, readErr); err != nil && !errors.Is(err, unix.EAGAIN) {
		t.Fatalf("drain the queue: %v", err)
	}
	return frames
}

// Read waits for one frame at the kernel's end of a Pair, for at most a few seconds.
func Read(t testing.TB, kernel *os.File) []byte {
	t.Helper()
	if err := kernel.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, tun.MaxFrame)
	n, err := kernel.Read(buf)
	if err != nil {
		t.Fatalf("no frame arrived: %v", err)
	}
	return buf[:n]
}
