package bench

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stopTimeout is how long Stop waits for a process to end by itself. OpenVPN with
// --explicit-exit-notify takes a second, plus a restart's pause if it was in one.
const stopTimeout = 10 * time.Second

// A Process is a running command. It is safe for concurrent use.
type Process struct {
	// Log is what it printed.
	Log *Log

	cmd  *exec.Cmd
	err  error // of Wait; readable once done is closed
	done chan struct{}
}

func newProcess(cmd *exec.Cmd) *Process {
	p := &Process{Log: newLog(), cmd: cmd, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p.Log, p.Log
	return p
}

func (p *Process) wait() {
	err := p.cmd.Wait()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil // the process ended; somebody else holds its output open
	}
	p.err = err
	p.Log.close()
	close(p.done)
}

// PID is the process id. With a Prefix it is the prefix command's.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended and its output was read.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the process to end and returns its exit code: 128 plus the signal's number if a
// signal ended it.
func (p *Process) Wait() (code int, err error) {
	<-p.done
	var exit *exec.ExitError
	if errors.As(p.err, &exit) {
		status := exit.Sys().(syscall.WaitStatus)
		if status.Signaled() {
			return 128 + int(status.Signal()), nil
		}
		return status.ExitStatus(), nil
	}
	return 0, p.err
}

// Signal sends a signal to the process. A process that has ended is os.ErrProcessDone.
func (p *Process) Signal(sig os.Signal) error { return p.cmd.Process.Signal(sig) }

// Stop asks the process to end, and kills its process group if it does not.
func (p *Process) Stop() error {
	if err := p.Signal(unix.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(stopTimeout):
	}
	p.Kill()
	return fmt.Errorf("process %d did not end on SIGTERM within %v; the log's last lines:\n%s",
		p.PID(), stopTimeout, p.Log.Tail(20))
}

// Kill ends the process and what is left of its process group at once, and waits for it.
func (p *Process) Kill() {
	// A process that is still there keeps its group's id from being anybody else's.
	if p.Signal(unix.Signal(0)) == nil {
		unix.Kill(-p.PID(), unix.SIGKILL)
	}
	<-p.done
}
