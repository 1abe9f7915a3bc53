package exec

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/tun/netns"
)

// replaceEverywhere puts file in place of a socket wherever the client's processes have it, as Replace of
// netlinksrv.Task says.
func (s *session) replaceEverywhere(inode uint64, file *os.File) error {
	if !s.begin() {
		return errGone
	}
	defer s.calls.Done()
	s.replacing.Lock()
	defer s.replacing.Unlock()
	return netns.Control(file, func(fd int) error { return s.replaceSocket(inode, fd) })
}

// replacementRounds bounds how often the client's processes are looked through. A process that forked while its parent's
// descriptors were being replaced is found in the next round, and so is one that was missed as another one ended (childrenOf).
const replacementRounds = 8

// replaceSocket is replaceEverywhere with a bare descriptor.
func (s *session) replaceSocket(inode uint64, fd int) error {
	var failed error
	replaced := false
	left := map[int]bool{} // threads whose tables have to be left as they are
	for range replacementRounds {
		tables, err := s.tablesWith(inode)
		if err != nil {
			return err
		}
		progress := false
		for _, table := range tables {
			if left[table[0]] {
				continue
			}
			progress = true
			switch err := s.replaceIn(table, inode, fd); {
			case err == nil:
				replaced = true
			case !errors.Is(err, errEnded):
				left[table[0]] = true
				failed = errors.Join(failed, fmt.Errorf("process of thread %d: %w", table[0], err))
			}
		}
		if !progress && (replaced || failed != nil) {
			break
		}
	}
	if !replaced {
		return errors.Join(fmt.Errorf("socket %d: %w", inode, unix.EBADF), failed)
	}
	if failed != nil {
		s.logger.Warn("some of the client's processes go on using a socket that is the device's now", "error", failed)
	}
	return nil
}

// A table is a descriptor table: the threads that share it.
type table []int

// tablesWith returns the client's descriptor tables that hold a socket.
func (s *session) tablesWith(inode uint64) ([]table, error) {
	pids, err := descendants(s.guard)
	if err != nil {
		return nil, err
	}
	var found []table
	for _, pid := range pids {
		tables, err := tablesOf(pid)
		if err != nil {
			return nil, err
		}
		for _, table := range tables {
			has, err := table.has(inode)
			if err != nil {
				return nil, err
			}
			if has {
				found = append(found, table)
			}
		}
	}
	return found, nil
}

// has reports whether a table holds a socket. Each thread is asked: one that has ended since it was listed shows nothing,
// whatever the others have.
func (t table) has(inode uint64) (bool, error) {
	for _, tid := range t {
		if numbers, err := numbersOf(tid, inode); err != nil || len(numbers) > 0 {
			return err == nil, err
		}
	}
	return false, nil
}

// entriesOf lists a directory of /proc. It is empty if the thread has ended, or is not ours to look at; the only error is that we have no
// descriptor left to look with.
func entriesOf(directory string) ([]os.DirEntry, error) {
	entries, err := os.ReadDir(directory)
	if isShortage(err) {
		return nil, err
	}
	return entries, nil
}

// tablesOf groups a process's threads by the descriptor table that they use.
func tablesOf(pid int) (tables []table, err error) {
	entries, err := entriesOf("/proc/" + strconv.Itoa(pid) + "/task")
threads:
	for _, entry := range entries {
		tid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		for i := range tables {
			if sharesDescriptors(tables[i][0], tid) {
				tables[i] = append(tables[i], tid)
				continue threads
			}
		}
		tables = append(tables, table{tid})
	}
	return tables, err
}

// numbersOf returns the numbers at which a thread has a socket.
func numbersOf(tid int, inode uint64) (numbers []int, err error) {
	directory := "/proc/" + strconv.Itoa(tid) + "/fd"
	entries, err := entriesOf(directory)
	socket := "socket:[" + strconv.FormatUint(inode, 10) + "]"
	for _, entry := range entries {
		if target, err := os.Readlink(directory + "/" + entry.Name()); err != nil || target != socket {
			continue
		}
		if number, err := strconv.Atoi(entry.Name()); err == nil {
			numbers = append(numbers, number)
		}
	}
	return numbers, err
}

// replaceIn replaces a socket in one table, while one of its threads waits for an answer of ours or is made to.
func (s *session) replaceIn(threads table, inode uint64, fd int) (err error) {
	numbers := map[int]bool{}
	replace := func(tid int) func(uint64) error {
		return func(id uint64) error { return s.waitingTask(tid, id).replaceSocket(inode, fd, numbers) }
	}
	// waiting returns the thread that has waited longest: the one whose request this is for goes on waiting, others get
	// their answers at any time. Ids count up. Those in answered have got theirs.
	answered := map[uint64]bool{}
	waiting := func() (tid int, id uint64) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, t := range threads {
			if own, ok := s.waiting[t]; ok && !answered[own] && (tid == 0 || int64(own-id) < 0) {
				tid, id = t, own
			}
		}
		return tid, id
	}
	const attempts = 5
	err = errEnded
	for attempt := 0; attempt < attempts; {
		if tid, id := waiting(); tid != 0 {
			if err = replace(tid)(id); err != nil && !s.listener.valid(id) {
				answered[id] = true // and may have ended since, so that the error can be any
				continue
			}
			break
		}
		covered := func() bool { tid, _ := waiting(); return tid != 0 }
		tid := interruptible(threads, attempt)
		if err = s.inject(tid, covered, replace(tid)); err == nil {
			break
		}
		attempt++
		time.Sleep(time.Millisecond) // who traces it may be the last attempt's OS thread, about to end
	}
	if len(numbers) > 0 {
		s.wake(threads, numbers)
	}
	return err
}

// interruptible chooses a thread, another one at each attempt: those that sleep first, as they come to a system call at once.
func interruptible(threads table, attempt int) int {
	var sleeping, others []int
	for _, tid := range threads {
		if _, state, _ := strings.Cut(statOf(tid), ") "); strings.HasPrefix(state, "S") {
			sleeping = append(sleeping, tid)
		} else {
			others = append(others, tid)
		}
	}
	all := append(sleeping, others...)
	return all[attempt%len(all)]
}

// statOf reads what /proc says of a thread in one line; nothing if it has ended.
func statOf(tid int) string {
	b, _ := os.ReadFile("/proc/" + strconv.Itoa(tid) + "/stat")
	return string(b)
}

// replaceSocket replaces a socket at every number that the thread has it at, and adds these to numbers.
func (t *task) replaceSocket(inode uint64, fd int, numbers map[int]bool) (failed error) {
	at, failed := numbersOf(t.tid, inode)
	for _, number := range at {
		old, err := t.take(number)
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		if isInode(old, inode) { // it was not closed meanwhile
			copyMode(old, fd)
			done, err := t.replace(number, old, fd)
			if done {
				numbers[number] = true
			}
			failed = errors.Join(failed, err)
		}
		unix.Close(old)
	}
	return failed
}

func isInode(fd int, inode uint64) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Ino == inode
}

// copyMode lets one socket block, and for how long, as another does.
func copyMode(from, to int) {
	if flags, err := unix.FcntlInt(uintptr(from), unix.F_GETFL, 0); err == nil {
		_ = unix.SetNonblock(to, flags&unix.O_NONBLOCK != 0)
	}
	copyTimeouts(from, to)
}

// wake has the threads that are blocked on the numbers' old socket start again with the new one. One that waits for an answer
// of ours by now has left the old one.
func (s *session) wake(threads table, numbers map[int]bool) {
	for _, tid := range threads {
		waits := func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			_, waits := s.waiting[tid]
			return waits
		}
		if waits() || !blockedOn(tid, numbers) {
			continue
		}
		if err := bounce(tid, waits); err != nil && !errors.Is(err, errEnded) && !errors.Is(err, errCovered) {
			s.logger.Warn("a thread of the client's may be blocked on a socket that is the device's now", "tid", tid, "error", err)
		}
	}
}

// ownFilter returns errOwnFilter if a thread has more seccomp filters than the guard: they might kill it for a system call
// that it does not make by itself.
func (s *session) ownFilter(tid int) error {
	filters := func(tid int) string {
		status, _ := os.ReadFile("/proc/" + strconv.Itoa(tid) + "/status")
		return string(statusField(status, "Seccomp_filters"))
	}
	switch filters(tid) {
	case filters(s.guard):
		return nil
	case "", "0":
		return errEnded
	}
	return errOwnFilter
}

// expectInjected announces that a thread's next notification is one of a system call that we have it make, and returns
// where its id will be. forget takes the announcement back, but not one that another caller has made since.
func (s *session) expectInjected(tid int) (ids <-chan uint64, forget func()) {
	own := make(chan uint64, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.injected[tid] = own
	return own, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.injected[tid] == own {
			delete(s.injected, tid)
		}
	}
}

// isInjected passes a notification on to who has provoked it, and reports whether somebody has.
func (s *session) isInjected(n *notification) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := s.injected[int(n.tid)]
	if ids == nil {
		return false
	}
	delete(s.injected, int(n.tid))
	ids <- n.id
	return true
}
