package exec

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv/daemon/wire"
)

// Errors of a run whose client a daemon answers.
var (
	// ErrDaemonGone says that the daemon ended, or refused to go on. The client has been killed, as nobody answers it.
	ErrDaemonGone = errors.New("the daemon is gone")
	// ErrDaemonStopped says that the client was sent SIGTERM because the daemon is about to end.
	ErrDaemonStopped = errors.New("the daemon was stopped")
)

// answerer answers the client's notified calls.
type answerer interface {
	// start takes ownership of the filter's listener.
	start(listener int, w window) error
	// failed yields why nobody answers any more, or ErrDaemonStopped if it will soon be so.
	failed() <-chan error
	// finish is called when no process of the client is left, and returns when everything is released.
	finish() error
}

// embedded answers by a session in this process.
type embedded struct {
	session *session
	failure chan error    // gets serve's
	served  chan struct{} // closed when serve has returned; nil before there is a listener
}

// newEmbedded takes ownership of a session that has not started.
func newEmbedded(s *session, guard int, reach Reach) *embedded {
	s.guard, s.reach = guard, reach
	return &embedded{session: s, failure: make(chan error, 1)}
}

func (e *embedded) start(listener int, w window) error {
	l, err := newListener(listener)
	if err != nil {
		return err
	}
	if err := e.session.start(l, w); err != nil {
		return err
	}
	e.served = make(chan struct{})
	go func() {
		defer close(e.served)
		if err := l.serve(e.session.notified); err != nil {
			e.failure <- err
		}
	}()
	return nil
}

func (e *embedded) failed() <-chan error { return e.failure }

func (e *embedded) finish() (err error) {
	if e.served != nil {
		e.session.listener.shutdown()
		<-e.served
	}
	e.session.close()
	select {
	case err = <-e.failure: // nobody has heard of it
	default:
	}
	return err
}

// remote has a daemon answer.
type remote struct {
	conn    *wire.Hello
	guard   int // pid
	failure chan error
	reading chan struct{} // closed when the daemon's words are no longer read; nil before they are
}

func newRemote(conn *wire.Hello, guard int) *remote {
	return &remote{conn: conn, guard: guard, failure: make(chan error, 2)} // at most a stop and an end
}

func (r *remote) start(listener int, w window) error {
	filter := os.NewFile(uintptr(listener), "seccomp listener")
	defer filter.Close()
	pidfd, err := unix.PidfdOpen(r.guard, 0)
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	guard := os.NewFile(uintptr(pidfd), "guard")
	defer guard.Close()
	_, _, err = r.conn.Begin(wire.Request{Type: wire.TypeRun, Window: &[2]uint32{w.lo, w.hi}}, filter, guard)
	if err != nil {
		return fmt.Errorf("hand the client over to the daemon: %w", err)
	}
	r.reading = make(chan struct{})
	go r.read()
	return nil
}

// read passes on what the daemon says until it is gone or finish has been called.
func (r *remote) read() {
	defer close(r.reading)
	stopped := false
	for {
		reply, files, err := r.conn.Reply()
		for _, file := range files {
			file.Close()
		}
		if err == nil {
			err = reply.Err()
		}
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = ErrDaemonGone
			} else {
				err = fmt.Errorf("%w: %w", ErrDaemonGone, err)
			}
			r.failure <- err
			return
		}
		if reply.Type == wire.TypeStop && !stopped {
			stopped = true
			r.failure <- ErrDaemonStopped
		}
	}
}

func (r *remote) failed() <-chan error { return r.failure }

func (r *remote) finish() error {
	err := r.conn.Close()
	if r.reading != nil {
		<-r.reading
	}
	return err
}
