package exec

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Where no descriptor can be taken from the client, every one that may be asked for is made here, and a duplicate kept:
// of its netlink sockets, its TCP and UDP sockets and the connections that these accept, its epoll sets. Which of them a number
// of the client's stands for is what /proc/PID/fd shows: a socket's inode or, as epoll sets have no name, what the set watches,
// for each that we make watches something of ours.
//
// A duplicate keeps a socket from ending when the client closes it. So that number is one of those whose close is notified,
// and ours is closed first. A socket that the client lets go of in another way is noticed when all are looked through.

// kept are the descriptors of which we keep a duplicate. Its methods may be called concurrently.
type kept struct {
	window window // of numbers: close is notified there
	guard  int    // pid: the client's processes are below it
	marker int    // eventfd that each epoll set watches

	mu      sync.Mutex
	sockets map[uint64]*duplicate // guarded by mu: by inode
	sets    map[uint64]*duplicate // guarded by mu: by mark
	marks   uint64                // guarded by mu: the last one
	closed  bool                  // guarded by mu
	stop    chan struct{}
	stopped chan struct{}
}

// duplicate is one of ours.
type duplicate struct {
	fd     int
	number int // at which we have put it
	pid    int // and the process; 0 if that is not known
	unseen int // looks in a row in which nobody had it
}

// keptInterval is how often the client's processes are looked through for what they have let go of. The tests change it.
var keptInterval = time.Second

// errNotKept says that a descriptor of the client's is none of those that we keep.
var errNotKept = fmt.Errorf("made before `exec` or in a way that it can't see: %w", unix.EPERM)

// keptBeside is where descriptors that are kept are put, given the window of netlink sockets, which is in its midst. Where
// the client's limit ends before it, so do the free numbers.
func keptBeside(w window) window {
	const (
		below = 3 // a third of the numbers is left to the client
		end   = 1 << 14
	)
	return window{lo: w.lo / below, hi: end}
}

// newKept begins to look after the descriptors of the processes below guard.
func newKept(w window, guard int) (*kept, error) {
	marker, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	k := &kept{
		window: keptBeside(w), guard: guard, marker: marker,
		sockets: map[uint64]*duplicate{}, sets: map[uint64]*duplicate{},
		stop: make(chan struct{}), stopped: make(chan struct{}),
	}
	go k.lookAround()
	return k, nil
}

// close lets go of everything.
func (k *kept) close() {
	close(k.stop)
	<-k.stopped
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closed = true
	for _, of := range []map[uint64]*duplicate{k.sockets, k.sets} {
		for key, d := range of {
			unix.Close(d.fd)
			delete(of, key)
		}
	}
	unix.Close(k.marker)
}

// add keeps a duplicate of a socket of ours that a process gets at a number.
func (k *kept) add(fd, pid, number int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	return k.keep(k.sockets, st.Ino, fd, pid, number)
}

// addSet keeps a duplicate of a new epoll set of ours, and marks it.
func (k *kept) addSet(fd, pid, number int) error {
	const marks = 0x6f76706e << 32 // a data value that no client has by accident
	k.mu.Lock()
	k.marks++
	mark := marks | k.marks
	k.mu.Unlock()
	event := unix.EpollEvent{Fd: int32(mark & (1<<32 - 1)), Pad: int32(mark >> 32)}
	if err := unix.EpollCtl(fd, unix.EPOLL_CTL_ADD, k.marker, &event); err != nil {
		return os.NewSyscallError("epoll_ctl", err)
	}
	return k.keep(k.sets, mark, fd, pid, number)
}

func (k *kept) keep(in map[uint64]*duplicate, key uint64, fd, pid, number int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return os.ErrClosed
	}
	if d := in[key]; d != nil {
		d.pid, d.number, d.unseen = pid, number, 0
		return nil
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	in[key] = &duplicate{fd: dup, pid: pid, number: number}
	return nil
}

// take returns a duplicate of a thread's descriptor, unix.EBADF if it has none, errNotKept if it is not one of ours.
func (k *kept) take(tid, number int) (int, error) {
	inode, mark, err := k.identify(tid, number)
	if err != nil {
		return -1, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	d := k.sockets[inode]
	if mark != 0 {
		d = k.sets[mark]
	}
	if d == nil {
		return -1, errNotKept
	}
	dup, err := unix.FcntlInt(uintptr(d.fd), unix.F_DUPFD_CLOEXEC, 0)
	return dup, os.NewSyscallError("fcntl", err)
}

// identify returns the inode of a socket, or the mark of an epoll set, at a thread's number, and zeroes for anything else.
func (k *kept) identify(tid, number int) (inode, mark uint64, err error) {
	target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", tid, number))
	switch {
	case errors.Is(err, os.ErrNotExist):
		return 0, 0, unix.EBADF
	case err != nil:
		return 0, 0, err
	case target == epollTarget:
		return 0, k.markOf(tid, number), nil
	}
	return namedInode(target), 0, nil
}

// epollTarget is what an epoll descriptor in /proc/PID/fd points to.
const epollTarget = "anon_inode:[eventpoll]"

// namedInode is the inode of a socket that a descriptor in /proc/PID/fd points to, 0 if it is none.
func namedInode(target string) uint64 {
	digits, ok := strings.CutPrefix(target, "socket:[")
	if !ok {
		return 0
	}
	inode, err := strconv.ParseUint(strings.TrimSuffix(digits, "]"), 10, 64)
	if err != nil {
		return 0
	}
	return inode
}

// markOf finds our mark in what a thread's epoll set watches, 0 if there is none.
func (k *kept) markOf(tid, number int) uint64 {
	info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", tid, number))
	if err != nil {
		return 0
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, r := range parseRegistrations(info) {
		if r.number == k.marker && k.sets[r.data] != nil {
			return r.data
		}
	}
	return 0
}

// closing lets go of what a thread is about to close, unless another of its numbers or another process has it as well.
func (k *kept) closing(tid, pid, number int) {
	inode, _, err := k.identify(tid, number)
	if err != nil {
		inode = k.placedAt(pid, number) // a process that can't be looked at
	}
	k.mu.Lock()
	known := k.sockets[inode] != nil
	k.mu.Unlock()
	if !known {
		return
	}
	pids, err := descendants(k.guard)
	if err != nil {
		return
	}
	for _, other := range pids {
		numbers, err := numbersOf(other, inode)
		if err != nil {
			return
		}
		for _, n := range numbers {
			if other != pid || n != number {
				return
			}
		}
	}
	k.release(k.sockets, inode)
}

// placedAt returns the inode of the socket that was put at a process's number.
func (k *kept) placedAt(pid, number int) uint64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	for inode, d := range k.sockets {
		if d.pid == pid && d.number == number {
			return inode
		}
	}
	return 0
}

func (k *kept) release(in map[uint64]*duplicate, key uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if d := in[key]; d != nil {
		unix.Close(d.fd)
		delete(in, key)
	}
}

// lookAround lets go, again and again, of what nobody has any more.
func (k *kept) lookAround() {
	defer close(k.stopped)
	ticker := time.NewTicker(keptInterval)
	defer ticker.Stop()
	for {
		select {
		case <-k.stop:
			return
		case <-ticker.C:
			k.look()
		}
	}
}

// look goes through the client's processes once. What nobody has is let go of at the second look in a row: at the first it may be
// on its way into a process, or from one to another.
func (k *kept) look() {
	k.mu.Lock()
	empty := len(k.sockets)+len(k.sets) == 0
	k.mu.Unlock()
	if empty {
		return
	}
	pids, err := descendants(k.guard)
	if err != nil {
		return
	}
	seen := map[uint64]bool{}
	hidden := map[int]bool{}
	for _, pid := range pids {
		directory := "/proc/" + strconv.Itoa(pid) + "/fd"
		entries, err := os.ReadDir(directory)
		if isShortage(err) {
			return // who has what is not known
		}
		if errors.Is(err, os.ErrPermission) {
			hidden[pid] = true
		}
		for _, entry := range entries {
			target, err := os.Readlink(directory + "/" + entry.Name())
			if err != nil {
				continue
			}
			if target != epollTarget {
				seen[namedInode(target)] = true
			} else if number, err := strconv.Atoi(entry.Name()); err == nil {
				seen[k.markOf(pid, number)] = true
			}
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, of := range []map[uint64]*duplicate{k.sockets, k.sets} {
		for key, d := range of {
			if seen[key] || hidden[d.pid] {
				d.unseen = 0
			} else if d.unseen++; d.unseen > 1 {
				unix.Close(d.fd)
				delete(of, key)
			}
		}
	}
}
