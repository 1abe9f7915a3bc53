package exec

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	osexec "os/exec"
	"os/signal"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv/daemon/wire"
)

// ErrGuard says that the process between us and the client was killed. Everything under it has
// been killed as well.
var ErrGuard = errors.New("guard process died")

// options are Options with what the tests replace.
type options struct {
	args   []string
	logger *slog.Logger
	// session answers the client, or if that is nil, daemon.
	session *session
	daemon  *wire.Hello
	stdio   [3]uintptr // what the client gets as 0, 1, 2
	// dropInherited closes the descriptors that the client inherits from us in ourselves.
	dropInherited bool
	// apart is called when the guard has been started; nil if there is nothing to call.
	apart func()
	// probe finds out what may be done to a process; the tests replace it.
	probe func(pid int) Reach
	// started is called with the client's pid and the guard's.
	started func(client, guard int)
}

// supervisor is one run.
type supervisor struct {
	options
	control *control
	guard   int // pid
	answers answerer
	status  Status
	failure error
	exited  bool
	stopped bool // the daemon has asked for the client's end
	aborted bool // the client was not left to end by itself
}

// run starts the client and returns when it and all of its descendants are gone.
func run(ctx context.Context, o options) (Status, error) {
	path, err := osexec.LookPath(o.args[0])
	if err != nil && !errors.Is(err, osexec.ErrDot) {
		return Status{Code: exitStatusOf(err)}, err
	}
	signals := make(chan os.Signal, 64)
	signal.Notify(signals, passedSignals()...)
	defer signal.Stop(signals)

	restore, err := becomeSubreaper()
	if err != nil {
		return Status{Code: 126}, err
	}
	defer restore()
	others, err := children()
	if err != nil {
		return Status{Code: 126}, err
	}
	s := &supervisor{options: o, status: Status{Code: 126}}
	if err := s.startGuard(path); err != nil {
		return s.status, err
	}
	if o.apart != nil {
		o.apart()
	}
	if o.daemon != nil {
		s.announceReach(Reach{}) // the daemon must be able to do all of it
		s.answers = newRemote(o.daemon, s.guard)
	} else {
		reach := o.probe(s.guard)
		s.announceReach(reach)
		s.answers = newEmbedded(o.session, s.guard, reach)
	}
	s.supervise(ctx, signals)
	s.finish(others)
	return s.status, s.failure
}

// becomeSubreaper makes orphans below us our children and returns what undoes that.
func becomeSubreaper() (restore func(), err error) {
	was, err := isSubreaper()
	if err != nil {
		return nil, os.NewSyscallError("prctl PR_GET_CHILD_SUBREAPER", err)
	}
	if was {
		return func() {}, nil
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, os.NewSyscallError("prctl PR_SET_CHILD_SUBREAPER", err)
	}
	return func() { unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) }, nil
}

// startGuard starts our own binary as the guard, with the descriptors that we inherited and, at
// the first number behind them, its end of the control socket.
func (s *supervisor) startGuard(path string) error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socketpair", err)
	}
	defer unix.Close(pair[1])
	if s.control, err = newControl(pair[0]); err != nil {
		return err
	}
	inherited, err := inheritedDescriptors()
	if err != nil {
		s.control.close()
		return err
	}
	files := guardFiles(s.stdio, inherited, uintptr(pair[1]))
	argv := append([]string{guardName, strconv.Itoa(len(files) - 1), path}, s.args...)
	s.guard, err = syscall.ForkExec(selfPath, argv, &syscall.ProcAttr{Env: os.Environ(), Files: files})
	if err != nil {
		s.control.close()
		return fmt.Errorf("start guard: %w", err)
	}
	if s.dropInherited {
		for _, fd := range inherited {
			unix.Close(fd)
		}
	}
	return nil
}

// guardFiles lays out the guard's descriptors: 0 to 2, every inherited one at its own number, and
// control behind the last.
func guardFiles(stdio [3]uintptr, inherited []int, control uintptr) []uintptr {
	const closed = ^uintptr(0)
	last := 2
	if len(inherited) > 0 {
		last = slices.Max(inherited)
	}
	files := slices.Repeat([]uintptr{closed}, last+2)
	copy(files, stdio[:])
	for _, fd := range inherited {
		files[fd] = uintptr(fd)
	}
	files[last+1] = control
	return files
}

// announceReach tells the guard, which waits for it, what the filter has to notify, and the log why.
func (s *supervisor) announceReach(reach Reach) {
	m := message{kind: messageReach}
	if err := reach.NoDescriptors; err != nil {
		m.a = 1
		s.logger.Info("descriptors can't be taken from the client: its sockets are made here and kept", "reason", err)
	}
	if err := reach.NoMemory; err != nil {
		s.logger.Info("the client's memory can't be copied: it is read as a file", "reason", err)
	}
	s.control.send(m, -1) // if there is no guard any more, that shows soon
}

// supervise serves the client until the guard is gone.
func (s *supervisor) supervise(ctx context.Context, signals <-chan os.Signal) {
	type received struct {
		message message
		fd      int
	}
	messages := make(chan received)
	go func() {
		defer close(messages)
		for {
			m, fd, err := s.control.receive()
			if err != nil {
				return
			}
			messages <- received{m, fd}
		}
	}()
	cancelled := ctx.Done()
	failed := s.answers.failed()
	for {
		select {
		case r, ok := <-messages:
			if !ok {
				return
			}
			s.handle(r.message, r.fd)
		case received := <-signals:
			if sig, ok := received.(unix.Signal); ok {
				s.control.send(message{kind: messageSignal, a: uint32(sig)}, -1)
			}
		case <-cancelled:
			cancelled = nil
			s.abort(context.Cause(ctx))
		case err := <-failed:
			s.notAnswered(err)
		}
	}
}

// handle acts on what the guard says.
func (s *supervisor) handle(m message, fd int) {
	switch m.kind {
	case messageListener:
		if err := s.answers.start(fd, window{m.a, m.b}); err != nil {
			s.abort(err)
		}
	case messageStarted:
		if s.started != nil {
			s.started(int(m.a), s.guard)
		}
	case messageFailed:
		s.exited = true
		err := startError{m.text, unix.Errno(m.a)}
		s.failure = fmt.Errorf("start %q: %w", s.args[0], err)
		s.status = Status{Code: exitStatusOf(err)}
	case messageExited:
		s.exited = true
		s.status = statusOf(unix.WaitStatus(m.a))
	}
}

// notAnswered acts on that nobody answers the client any more, or soon.
func (s *supervisor) notAnswered(err error) {
	if !errors.Is(err, ErrDaemonStopped) {
		s.abort(err) // a client that is not answered hangs
		return
	}
	s.logger.Warn("the daemon stops: the program is ended")
	s.stopped = true
	s.control.send(message{kind: messageSignal, a: uint32(unix.SIGTERM)}, -1)
}

// abort gives up: the guard takes the end of file for our death and kills everything.
func (s *supervisor) abort(err error) {
	s.aborted = true
	if s.failure == nil {
		s.failure = err
	}
	s.control.hangUp()
}

// finish waits for the guard and releases everything. The processes in others were our children
// before and stay.
func (s *supervisor) finish(others []int) {
	s.control.hangUp() // should it be us who could not go on
	var status unix.WaitStatus
	_, err := ignoringEINTR(func() (int, error) { return unix.Wait4(s.guard, &status, 0, nil) })
	orderly := err == nil && status.Exited() && status.ExitStatus() == 0 && s.exited
	if !orderly {
		// What a killed guard has left behind is ours now, as we are the next subreaper.
		for s.sweep(others) {
		}
	}
	if err := s.answers.finish(); err != nil && s.failure == nil {
		s.failure = err
	}
	s.control.close()
	if !orderly && s.failure == nil {
		s.failure = fmt.Errorf("%w: %s", ErrGuard, statusOf(status))
	}
	if s.stopped && s.failure == nil {
		s.failure = ErrDaemonStopped
	}
	if s.aborted || s.stopped {
		s.status = Status{Code: 126} // however it ended, it is not what it would have come to by itself
	}
}

// sweep kills and reaps one generation of orphans and says whether there was any.
func (s *supervisor) sweep(others []int) bool {
	pids, err := children()
	if err != nil {
		s.logger.Error("look for processes left behind", "error", err)
		return false
	}
	found := false
	for _, pid := range pids {
		if slices.Contains(others, pid) {
			continue
		}
		found = true
		unix.Kill(pid, unix.SIGKILL)
	}
	for _, pid := range pids {
		if !slices.Contains(others, pid) {
			ignoringEINTR(func() (int, error) { return unix.Wait4(pid, nil, 0, nil) })
		}
	}
	return found
}

// startError is the guard's reason why the client does not run.
type startError struct {
	text  string
	errno unix.Errno
}

func (e startError) Error() string { return e.text }

func (e startError) Unwrap() error {
	if e.errno == 0 {
		return nil
	}
	return e.errno
}

// ignoringEINTR repeats a system call that a signal interrupted.
func ignoringEINTR(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if err != unix.EINTR {
			return n, err
		}
	}
}
