// Package netns runs code inside Linux network namespaces and tells namespaces apart.
//
// A client, its device and its transport socket may each live in a different namespace, so every
// part of the program that opens a descriptor says in which one.
package netns

import (
	"fmt"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// ID identifies a network namespace for as long as it exists. It is comparable; the zero ID
// names no namespace.
type ID struct {
	Dev, Ino uint64
}

// NS is a reference to a network namespace, which keeps the namespace alive until Close.
// Its methods may be called concurrently, except Close.
type NS struct {
	file *os.File
	id   ID
}

// New takes ownership of a namespace descriptor.
func New(file *os.File) (*NS, error) {
	var st unix.Stat_t
	if err := Control(file, func(fd int) error { return unix.Fstat(fd, &st) }); err != nil {
		file.Close()
		return nil, fmt.Errorf("identify network namespace: %w", err)
	}
	return &NS{file: file, id: ID{Dev: st.Dev, Ino: st.Ino}}, nil
}

// Open opens the namespace at path, such as /proc/PID/ns/net or /run/netns/NAME.
func Open(path string) (*NS, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	return New(file)
}

// Current opens the namespace of the calling thread. A caller whose thread may have entered
// another namespace must hold runtime.LockOSThread.
func Current() (*NS, error) {
	return Open("/proc/thread-self/ns/net")
}

// Create makes a new namespace that lives until its last reference is closed. Its only interface
// is a loopback device, which is down. It needs CAP_SYS_ADMIN.
func Create() (ns *NS, err error) {
	onSpareThread(func() {
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			err = fmt.Errorf("create network namespace: %w", err)
			return
		}
		ns, err = Current()
	})
	return ns, err
}

// onSpareThread runs fn on a thread that ends with it, and never on the process's first one, which can't end
// and by which /proc/PID speaks of the process.
func onSpareThread(fn func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			fn() // never unlocked
			return
		}
		// While we occupy the first thread another goroutine is on another one.
		onSpareThread(fn)
		runtime.UnlockOSThread()
	}()
	<-done
}

// OfThread opens the namespace of a thread, which may belong to another process.
func OfThread(tid int) (*NS, error) {
	return Open(fmt.Sprintf("/proc/%d/ns/net", tid))
}

// IDOfThread identifies the namespace of a thread, which may belong to another process. It takes no descriptor.
func IDOfThread(tid int) (ID, error) {
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/ns/net", tid), &st); err != nil {
		return ID{}, fmt.Errorf("identify network namespace: %w", err)
	}
	return ID{Dev: st.Dev, Ino: st.Ino}, nil
}

// OfSocket opens the namespace a socket was created in. It needs CAP_NET_ADMIN there.
func OfSocket(sock *os.File) (*NS, error) {
	var nsfd int
	err := Control(sock, func(fd int) (err error) {
		nsfd, err = unix.IoctlRetInt(fd, unix.SIOCGSKNS)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("network namespace of socket: %w", err)
	}
	unix.CloseOnExec(nsfd)
	return New(os.NewFile(uintptr(nsfd), "netns"))
}

// ID returns the identity of the namespace. Two NS of one namespace have equal IDs.
func (n *NS) ID() ID { return n.id }

// File returns the namespace's descriptor, which stays owned by n.
func (n *NS) File() *os.File { return n.file }

// Dup returns a second reference to the namespace, to be closed on its own.
func (n *NS) Dup() (*NS, error) {
	var dup int
	err := Control(n.file, func(fd int) (err error) {
		dup, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("duplicate network namespace: %w", err)
	}
	return &NS{file: os.NewFile(uintptr(dup), "netns"), id: n.id}, nil
}

// Close drops the reference.
func (n *NS) Close() error { return n.file.Close() }

// Do runs fn on a thread that is inside the namespace and returns fn's error. Goroutines that fn
// starts run outside of it; descriptors that fn opens, and processes it starts, belong to it.
//
// Entering takes CAP_SYS_ADMIN, and a container's seccomp profile may forbid it altogether. Where the calling thread is
// inside already it is not done.
func (n *NS) Do(fn func() error) (err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var here unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &here); err == nil && n.id == (ID{Dev: here.Dev, Ino: here.Ino}) {
		return fn()
	}
	// The way back may be barred, when the present namespace belongs to a parent user namespace. So there
	// is none: the thread ends.
	onSpareThread(func() {
		if err = n.enter(); err != nil {
			err = fmt.Errorf("enter network namespace: %w", err)
			return
		}
		err = fn()
	})
	return err
}

func (n *NS) enter() error {
	return Control(n.file, func(fd int) error { return unix.Setns(fd, unix.CLONE_NEWNET) })
}

// Control runs fn with the descriptor of a file, a namespace's or any other, or of a connection; unlike os.File.Fd it leaves
// the file's mode alone. The descriptor is good until fn returns. The error is fn's, or os.ErrClosed.
func Control(file syscall.Conn, fn func(fd int) error) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = fn(int(fd)) }); err != nil {
		return err
	}
	return inner
}
