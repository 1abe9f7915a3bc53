package exec

import (
	"fmt"
	"math"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The names under which our binary is started again.
const (
	guardName = "ovpn-go-guard"
	pidName   = "ovpn-go-pid"
)

// Reexec takes over when the process is one that Run started from our own binary; it then does
// not return. A program that calls Run must call it first thing in main, before it opens anything
// or starts a goroutine.
func Reexec() {
	switch os.Args[0] {
	case guardName:
		runtime.LockOSThread()
		os.Exit(runGuard(os.Args[1:]))
	case pidName:
		os.Exit(runPid(os.Args[1:]))
	case epollName:
		os.Exit(runEpoll(os.Args[1:]))
	}
}

// guard starts the client and stays as its parent, and as the parent of whatever the client
// leaves behind, until all of it is gone.
type guard struct {
	control *control
	out     chan message // to the supervisor, sent by a goroutine of its own

	mu     sync.Mutex      // held while reaping and while signalling, so that no pid is reused between
	client int             // guarded by mu: the client's pid, 0 once it is reaped
	status unix.WaitStatus // guarded by mu: how it ended
}

// runGuard is the guard's main. Its arguments are the control descriptor, the path of the
// program and the program's arguments, its name first. The calling goroutine is locked to its
// thread, which must live as long as the client: it is the parent that PDEATHSIG means.
func runGuard(args []string) int {
	if len(args) < 3 {
		return 2
	}
	fd, err := strconv.Atoi(args[0])
	if err != nil {
		return 2
	}
	unix.CloseOnExec(fd)
	inherited, err := inheritedDescriptors()
	if err != nil {
		return 2
	}
	control, err := newControl(fd)
	if err != nil {
		return 2
	}
	signals := make(chan os.Signal, 64)
	signal.Notify(signals, passedSignals()...)
	os.WriteFile("/proc/self/comm", []byte(guardName), 0) // for ps; otherwise it reads "exe"

	g := &guard{control: control, out: make(chan message)}
	// The listener stays open here as well: should the supervisor die, notified calls of the
	// client wait until we kill it, where without a listener they would fail and be retried.
	listener, window, err := g.prepare()
	if err != nil {
		control.send(failure(err), -1)
		return 1
	}
	// From here on this thread is subject to the filter; the control socket is written by others.
	written := make(chan struct{})
	go func() {
		defer close(written)
		control.send(message{kind: messageListener, a: window.lo, b: window.hi}, listener)
		for m := range g.out {
			control.send(m, -1)
		}
	}()
	g.mu.Lock()
	g.client, err = startClient(args[1], args[2:])
	g.mu.Unlock()
	if err != nil {
		g.out <- failure(err)
	} else {
		g.out <- message{kind: messageStarted, a: uint32(g.client)}
		dropInherited(inherited)
		go g.obey(signals)
		g.reap()
		g.out <- message{kind: messageExited, a: uint32(g.status)}
	}
	close(g.out)
	<-written
	return 0
}

// prepare makes the guard a subreaper and installs the filter on the calling thread.
func (g *guard) prepare() (int, window, error) {
	reach, _, err := g.control.receive()
	if err != nil {
		return -1, window{}, fmt.Errorf("wait for the supervisor: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return -1, window{}, os.NewSyscallError("prctl PR_SET_CHILD_SUBREAPER", err)
	}
	// The Go runtime has raised the limit on descriptors and puts it back when it executes another
	// program, also when that fails. From here on we live with the limit that we were started with.
	syscall.Exec("", []string{""}, nil)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return -1, window{}, os.NewSyscallError("getrlimit", err)
	}
	w := windowBelow(limit.Cur)
	var kept window
	if reach.a != 0 {
		kept = keptBeside(w)
	}
	program, err := filterProgram(w, kept)
	if err != nil {
		return -1, window{}, fmt.Errorf("assemble filter: %w", err)
	}
	listener, err := installNotifier(func(flags uint) (int, error) { return installFilter(program, flags) })
	return listener, w, err
}

// installNotifier installs a filter with what the kernel and our rights allow.
func installNotifier(install func(flags uint) (int, error)) (int, error) {
	flags := uint(unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV)
	privileged := true
	for {
		fd, err := install(flags)
		switch {
		case err == unix.EINVAL && flags&unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV != 0:
			flags &^= unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV // before Linux 5.19
		case err == unix.EACCES && privileged:
			// Without CAP_SYS_ADMIN only a process that can't gain privileges may have a filter.
			privileged = false
			if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
				return -1, os.NewSyscallError("prctl PR_SET_NO_NEW_PRIVS", err)
			}
		case err == unix.EBUSY:
			return -1, fmt.Errorf("install seccomp filter: already under another supervisor's: %w", err)
		case err != nil:
			return -1, fmt.Errorf("install seccomp filter: %w", err)
		default:
			return fd, nil
		}
	}
}

// startClient starts the client from the calling thread, whose filter it inherits. Everything
// else it has from our parent by way of us: the environment, the directory, the open descriptors.
func startClient(path string, argv []string) (int, error) {
	env := os.Environ()
	if supervisor := os.Getppid(); len(addressed(env, supervisor)) > 0 {
		// The environment must name a process that does not exist yet, so that it is ours for one
		// more step.
		path, argv = selfPath, append([]string{pidName, strconv.Itoa(supervisor), path}, argv...)
	}
	return syscall.ForkExec(path, argv, &syscall.ProcAttr{
		Env:   env,
		Files: []uintptr{0, 1, 2},
		// Should supervisor and guard be killed at once, at least the client itself follows.
		Sys: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
	})
}

// dropInherited lets go of what only the client needs: a pipe or a lock that it closes must not
// stay open in us.
func dropInherited(fds []int) {
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		for fd := range 3 {
			unix.Dup3(null, fd, unix.O_CLOEXEC)
		}
		unix.Close(null)
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// reap waits until the client and all that it left behind is gone.
func (g *guard) reap() {
	for {
		// Wait without reaping, then reap under the lock.
		switch err := unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOWAIT, nil); err {
		case nil, unix.EINTR:
		default:
			return // ECHILD: none left
		}
		g.mu.Lock()
		g.collect()
		g.mu.Unlock()
	}
}

// collect reaps what has ended. The caller holds mu.
func (g *guard) collect() {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if err != nil || pid == 0 {
			return
		}
		if pid == g.client {
			g.client, g.status = 0, status
		}
	}
}

// obey passes on the signals that reached the supervisor but not us, and kills everything once the
// supervisor is gone. It does not return; the process ends when reap finds nothing left.
func (g *guard) obey(signals <-chan os.Signal) {
	messages := make(chan message)
	go func() {
		defer close(messages)
		for {
			m, _, err := g.control.receive()
			if err != nil {
				return
			}
			messages <- m
		}
	}()
	var forward forwarder
	timer := time.NewTimer(0)
	for {
		if at, ok := forward.next(); ok {
			timer.Reset(time.Until(at))
		}
		select {
		case m, ok := <-messages:
			if !ok {
				g.sweep()
			}
			if m.kind == messageSignal {
				forward.received(unix.Signal(m.a), time.Now())
			}
		case received := <-signals:
			if s, ok := received.(unix.Signal); ok {
				forward.witness(s, time.Now())
			}
		case <-timer.C:
			for _, s := range forward.due(time.Now()) {
				g.signal(s)
			}
		}
	}
}

// signal sends a signal to the client, or once it is gone, as a daemon's first process soon is,
// to whatever it left behind.
func (g *guard) signal(s unix.Signal) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.collect() // a zombie must not swallow the signal
	if g.client != 0 {
		unix.Kill(g.client, s)
		return
	}
	pids, err := children()
	if err != nil {
		return
	}
	for _, pid := range pids {
		unix.Kill(pid, s)
	}
}

// sweep kills until the process ends because reap found nothing left. Each round takes one
// generation; the next one is ours when its parent is gone. As long as it finds something it does
// not pause: a client that forks and ends over and over must not slip through.
func (g *guard) sweep() {
	for {
		g.mu.Lock()
		pids, err := children()
		for _, pid := range pids {
			unix.Kill(pid, unix.SIGKILL)
		}
		g.mu.Unlock()
		if err != nil || len(pids) == 0 {
			time.Sleep(time.Millisecond)
		}
	}
}

// failure says why the client could not be started.
func failure(err error) message {
	m := message{kind: messageFailed, text: err.Error()}
	if errno, ok := errnoOf(err); ok {
		m.a = uint32(errno)
	}
	return m
}

// windowBelow places the window under the soft limit on descriptors and, for select, under
// FD_SETSIZE: its last quarter, at most 256 numbers.
func windowBelow(soft uint64) window {
	const setSize = 1024 // FD_SETSIZE
	hi := uint32(min(soft, setSize, math.MaxUint32))
	return window{lo: hi - min(hi/4, 256), hi: hi}
}
