package datapath

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// A test that wants system calls to fail runs as a process of its own, under a seccomp filter that asks its parent about
// each of them: a filter can't be taken off again, and who decides must not be stopped by it.

// refusingVariable is set for the child, whose end of the pair to its parent is refusingFD. What it does with that is never
// asked about.
const (
	refusingVariable = "OVPN_GO_TEST_REFUSING"
	refusingFD       = 3
)

// movingCalls are those that packets go through, preparingCalls those that sockets and interfaces are set up by.
var (
	movingCalls = []uint32{
		unix.SYS_READ, unix.SYS_WRITE, unix.SYS_SENDMSG, unix.SYS_SENDMMSG, unix.SYS_SENDTO, unix.SYS_RECVMSG, unix.SYS_RECVMMSG,
		unix.SYS_RECVFROM, unix.SYS_EPOLL_PWAIT,
	}
	preparingCalls = []uint32{
		unix.SYS_SOCKET, unix.SYS_SOCKETPAIR, unix.SYS_BIND, unix.SYS_CONNECT, unix.SYS_SETSOCKOPT, unix.SYS_GETSOCKOPT,
		unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_CREATE1, unix.SYS_EVENTFD2,
		unix.SYS_TIMERFD_CREATE, unix.SYS_FCNTL, unix.SYS_OPENAT, unix.SYS_IOCTL, unix.SYS_FSTAT, unix.SYS_SETNS,
		unix.SYS_SENDTO, unix.SYS_RECVFROM,
	}
	bootTimeCalls = []uint32{unix.SYS_CLOCK_GETTIME, unix.SYS_TIMERFD_SETTIME}
)

// A refusal is an order to the parent: of the calls that match, let the first skip pass and make the next count fail.
type refusal struct {
	nr          int // anyPreparing: any of preparingCalls
	fd          int // the first argument; -1: any
	errno       unix.Errno
	skip, count int
	// asleep is by how many seconds more CLOCK_BOOTTIME is ahead of what it is, from now on: see suspend.
	asleep int64
}

const anyPreparing = -1

// runRefusing runs a test as a child and answers for its system calls.
func runRefusing(t *testing.T, child string) {
	t.Helper()
	needRoot(t)
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "pair")
	cmd := exec.Command(os.Args[0], "-test.run", "^"+child+"$", "-test.v", "-test.timeout", "240s")
	cmd.Env = append(os.Environ(), refusingVariable+"=1")
	cmd.ExtraFiles = []*os.File{theirs}
	out := tailWriter{}
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	var j judge
	var serving sync.WaitGroup
	serving.Go(func() { j.serve(t, fds[0]) })
	err = cmd.Wait()
	serving.Wait()
	unix.Close(fds[0])
	if err != nil {
		t.Errorf("%v\n%s", err, out.b)
	} else {
		t.Logf("%s", out.b)
	}
}

// tailWriter keeps the end of what is written.
type tailWriter struct{ b []byte }

func (w *tailWriter) Write(p []byte) (int, error) {
	w.b = append(w.b, p...)
	w.b = w.b[max(0, len(w.b)-20000):]
	return len(p), nil
}

// judge is the parent's side: what it was told last.
type judge struct {
	mu      sync.Mutex
	now     refusal
	refused int
	asleep  int64 // of all orders
}

// serve takes the child's orders from a socket, and the first one's listener, until the child has ended.
func (j *judge) serve(t *testing.T, fd int) {
	var answering sync.WaitGroup
	defer answering.Wait()
	for {
		buf, oob := make([]byte, 128), make([]byte, unix.CmsgSpace(4))
		n, oobn, _, _, err := unix.Recvmsg(fd, buf, oob, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return
		}
		if oobn > 0 {
			messages, err := unix.ParseSocketControlMessage(oob[:oobn])
			if err != nil || len(messages) != 1 {
				t.Errorf("the child's listener: %v", err)
				return
			}
			fds, err := unix.ParseUnixRights(&messages[0])
			if err != nil {
				t.Errorf("the child's listener: %v", err)
				return
			}
			answering.Go(func() { j.answer(t, fds[0]) })
		}
		j.mu.Lock()
		refused := j.refused
		j.now, j.refused = refusal{}, 0
		_, _ = fmt.Sscan(string(buf[:n]), &j.now.nr, &j.now.fd, (*uintptr)(&j.now.errno), &j.now.skip, &j.now.count, &j.now.asleep)
		j.asleep += j.now.asleep
		j.mu.Unlock()
		if err := unix.Send(fd, fmt.Append(nil, refused), unix.MSG_NOSIGNAL); err != nil {
			return
		}
	}
}

// notification and response are struct seccomp_notif and struct seccomp_notif_resp.
type (
	notification struct {
		id         uint64
		tid, flags uint32
		nr         int32
		arch       uint32
		ip         uint64
		args       [6]uint64
	}
	response struct {
		id    uint64
		value int64
		errno int32
		flags uint32
	}
)

// answer decides about the calls that a listener shows, until nobody is left to make any.
func (j *judge) answer(t *testing.T, listener int) {
	defer unix.Close(listener)
	for {
		fds := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err == unix.EINTR {
			continue
		} else if err != nil || fds[0].Revents&unix.POLLIN == 0 {
			return
		}
		var n notification
		switch _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(listener), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&n))); errno {
		case 0:
		case unix.EINTR, unix.ENOENT:
			continue
		default:
			t.Errorf("receive a notification: %v", errno)
			return
		}
		r := response{id: n.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
		if done, err := j.bootTime(n); err != nil {
			t.Errorf("shift the boot time: %v", err)
		} else if done {
			r.flags = 0
		} else if errno := j.verdict(n); errno != 0 {
			r.errno, r.flags = -int32(errno), 0
		}
		// The error is that the child has been killed meanwhile.
		_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(listener), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&r)))
	}
}

// verdict returns what a call is to fail with; 0: it may pass.
func (j *judge) verdict(n notification) unix.Errno {
	j.mu.Lock()
	defer j.mu.Unlock()
	matches := int(n.nr) == j.now.nr
	if j.now.nr == anyPreparing {
		// Of what fcntl does only a new descriptor can be refused.
		matches = slices.Contains(preparingCalls, uint32(n.nr)) && (n.nr != unix.SYS_FCNTL || n.args[1] == unix.F_DUPFD_CLOEXEC)
	}
	if !matches || j.now.fd >= 0 && uint64(j.now.fd) != n.args[0] {
		return 0
	}
	if j.now.skip > 0 {
		j.now.skip--
		return 0
	}
	if j.now.count == 0 {
		return 0
	}
	j.now.count--
	j.refused++
	return j.now.errno
}

// startRefusing puts the process, all its threads, under the filter. It skips a test that is not such a child.
func startRefusing(t *testing.T) {
	t.Helper()
	if os.Getenv(refusingVariable) == "" {
		t.Skip("this is another test's child")
	}
	asked := slices.Concat(movingCalls, preparingCalls, bootTimeCalls)
	program := []bpf.Instruction{
		bpf.LoadAbsolute{Off: 16, Size: 4}, // the first argument
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: refusingFD, SkipTrue: uint8(len(asked) + 1)},
		bpf.LoadAbsolute{Off: 0, Size: 4}, // the call's number
	}
	for i, nr := range asked {
		program = append(program, bpf.JumpIf{Cond: bpf.JumpEqual, Val: nr, SkipTrue: uint8(len(asked) - i)})
	}
	program = append(program, bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW}, bpf.RetConstant{Val: unix.SECCOMP_RET_USER_NOTIF})
	raw, err := bpf.Assemble(program)
	if err != nil {
		t.Fatal(err)
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, in := range raw {
		filter[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	const flags = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_TSYNC_ESRCH |
		unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
	listener, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		t.Fatalf("install seccomp filter: %v", errno)
	}
	if err := unix.Sendmsg(refusingFD, []byte("0"), unix.UnixRights(int(listener)), nil, 0); err != nil {
		t.Fatal(err)
	}
	refusedSoFar(t)
	unix.Close(int(listener))
}

// refusedSoFar reads the parent's answer to an order: how many calls it had refused by then.
func refusedSoFar(t *testing.T) (n int) {
	t.Helper()
	buf := make([]byte, 32)
	length, _, err := unix.Recvfrom(refusingFD, buf, 0)
	for err == unix.EINTR {
		length, _, err = unix.Recvfrom(refusingFD, buf, 0)
	}
	if err == nil {
		_, err = fmt.Sscan(string(buf[:length]), &n)
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// refuse begins to refuse calls, and returns how many the order before it has refused.
func (what refusal) refuse(t *testing.T) int {
	t.Helper()
	order := fmt.Sprint(what.nr, what.fd, uintptr(what.errno), what.skip, what.count, what.asleep)
	if err := unix.Send(refusingFD, []byte(order), unix.MSG_NOSIGNAL); err != nil {
		t.Fatal(err)
	}
	return refusedSoFar(t)
}

// during refuses calls while fn runs, and returns how many were refused.
func (what refusal) during(t *testing.T, fn func()) int {
	t.Helper()
	what.refuse(t)
	fn()
	return refusal{}.refuse(t)
}
