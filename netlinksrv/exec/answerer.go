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
	// events says what becomes of the answerer by itself.
	events() <-chan answererEvent
	// finish is called when no process of the client is left, and returns when everything is released.
	finish() error
}

// answererEvent is that nobody answers any more, because of err, or if that is nil, that it will soon be so.
type answererEvent struct{ err error }

// embedded answers by a session in this process.
type embedded struct {
	session *session
	served  chan error // serve's result; nil before there is a listener
	failed  chan answererEvent
}

func newEmbedded(o options, server server, guard int, reach Reach) *embedded {
	e := &embedded{session: newSession(server, o.logger, o.beforeBind), failed: make(chan answererEvent, 1)}
	e.session.guard, e.session.reach = guard, reach
	if o.connections != nil {
		e.session.connections = o.connections
	}
	return e
}

func (e *embedded) start(listener int, w window) error {
	l, err := newListener(listener)
	if err != nil {
		return err
	}
	if err := e.session.start(l, w); err != nil {
		return err
	}
	e.served = make(chan error, 1)
	go func() {
		err := l.serve(e.session.notified)
		if err != nil {
			e.failed <- answererEvent{err}
		}
		e.served <- err
	}()
	return nil
}

func (e *embedded) events() <-chan answererEvent { return e.failed }

func (e *embedded) finish() (err error) {
	if e.served != nil {
		e.session.listener.shutdown()
		err = <-e.served
	}
	e.session.close()
	return err
}

// remote has a daemon answer.
type remote struct {
	conn     *wire.Hello
	guard    int // pid
	received chan answererEvent
	reading  chan struct{} // closed when the daemon's words are no longer read; nil before they are
}

func newRemote(conn *wire.Hello, guard int) *remote {
	return &remote{conn: conn, guard: guard, received: make(chan answererEvent, 2)} // at most a stop and an end
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
			r.received <- answererEvent{err}
			return
		}
		if reply.Type == wire.TypeStop && !stopped {
			stopped = true
			r.received <- answererEvent{}
		}
	}
}

func (r *remote) events() <-chan answererEvent { return r.received }

func (r *remote) finish() error {
	err := r.conn.Close()
	if r.reading != nil {
		<-r.reading
	}
	return err
}
