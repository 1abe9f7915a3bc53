package bench

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/tun/netns"
)

// insideDir is where a launcher's directory appears to programs that run inside its root.
const insideDir = "/mnt"

// A Launcher starts processes in network namespaces, inside a root directory of their own if it has
// one. It keeps a thread with a private mount namespace, in which the root has /dev, /proc, /sys and
// the launcher's directory mounted; nobody else ever sees those mounts. When the thread ends, the
// kernel kills what it started. It is safe for concurrent use.
type Launcher struct {
	root string // "" is the machine's own
	dir  string // for configurations, sockets and other files of the processes

	requests  chan func()
	closeOnce sync.Once
	done      chan struct{}

	mu      sync.Mutex
	started []*Process // guarded by mu
}

// NewLauncher returns a launcher for programs of the tree at root, or of the machine itself if root
// is empty. Its Close removes Dir.
func NewLauncher(root string) (*Launcher, error) {
	dir, err := os.MkdirTemp("", "ovpn-go-")
	if err != nil {
		return nil, err
	}
	// Programs that give up root must still reach their files.
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	l := &Launcher{root: root, dir: dir, requests: make(chan func()), done: make(chan struct{})}
	ready := make(chan error, 1)
	go l.serve(ready)
	if err := <-ready; err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return l, nil
}

// serve owns the thread, which is never unlocked and so ends with the goroutine. Only the process's
// main thread never ends; a launcher that finds itself there moves on.
func (l *Launcher) serve(ready chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		moved := make(chan struct{})
		go func() {
			runtime.LockOSThread() // another thread: the main one is taken until moved is closed
			close(moved)
			l.serveLocked(ready)
		}()
		<-moved
		runtime.UnlockOSThread()
		return
	}
	l.serveLocked(ready)
}

func (l *Launcher) serveLocked(ready chan<- error) {
	defer close(l.done)
	err := l.mount()
	ready <- err
	if err != nil {
		return
	}
	for fn := range l.requests {
		fn()
	}
}

func (l *Launcher) mount() error {
	if l.root == "" {
		return nil
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("create mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for _, m := range []struct{ from, to string }{
		{"/dev", "/dev"}, {"/proc", "/proc"}, {"/sys", "/sys"}, {l.dir, insideDir},
	} {
		to := filepath.Join(l.root, m.to)
		if err := unix.Mount(m.from, to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("mount %s at %s: %w", m.from, to, err)
		}
	}
	return nil
}

// Dir is a directory of the launcher's own, as the calling process sees it.
func (l *Launcher) Dir() string { return l.dir }

// Inside returns the path by which programs that the launcher starts see a file of Dir.
func (l *Launcher) Inside(name string) string {
	if l.root == "" {
		return filepath.Join(l.dir, name)
	}
	return filepath.Join(insideDir, name)
}

// WriteFile writes a file below Dir, creating its directory, and returns its path as Inside does.
func (l *Launcher) WriteFile(name string, data []byte, mode os.FileMode) (string, error) {
	path := filepath.Join(l.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	if err := os.WriteFile(path, data, mode); err != nil {
		return "", err
	}
	return l.Inside(name), nil
}

// A Command says what to run, and where.
type Command struct {
	// Node is the namespace to run in.
	Node *Node
	// Prefix is a command of the machine's own that is given Args to run, such as
	// {"/path/to/ovpn-go", "exec", "--"}. It runs outside the launcher's root.
	Prefix []string
	// Args is the program and its arguments, inside the launcher's root.
	Args []string
	// Env holds additional environment variables.
	Env []string
}

// Start starts a command. The process leads a process group of its own, so that a terminal's
// interrupt does not reach it, and is killed when the launcher is closed or its process ends.
func (l *Launcher) Start(c Command) (*Process, error) {
	args := append([]string{}, c.Prefix...)
	if l.root != "" {
		args = append(args, "chroot", l.root)
	}
	args = append(args, c.Args...)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = os.Environ()
	if l.root != "" {
		// Ours need not exist in there; the last of two settings counts.
		cmd.Env = append(cmd.Env, "TMPDIR=/tmp")
	}
	cmd.Env = append(cmd.Env, c.Env...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	p := newProcess(cmd)
	// A grandchild that survives keeps the pipes open; don't wait for it.
	cmd.WaitDelay = time.Second

	if err := l.run(func() error { return enterAndStart(c.Node.NS, cmd) }); err != nil {
		return nil, fmt.Errorf("start %s on %s: %w", c.Args[0], c.Node.Name, err)
	}
	go p.wait()
	l.mu.Lock()
	l.started = append(l.started, p)
	l.mu.Unlock()
	return p, nil
}

func enterAndStart(ns *netns.NS, cmd *exec.Cmd) error {
	// The launcher's thread stays in the namespace until the next start moves it on.
	err := netns.Control(ns.File(), func(fd int) error { return unix.Setns(fd, unix.CLONE_NEWNET) })
	if err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	return cmd.Start()
}

// run executes fn on the launcher's thread.
func (l *Launcher) run(fn func() error) error {
	result := make(chan error, 1)
	select {
	case <-l.done:
		return os.ErrClosed
	case l.requests <- func() { result <- fn() }:
		return <-result
	}
}

// Close kills the processes that still run and removes Dir.
func (l *Launcher) Close() error {
	l.closeOnce.Do(func() { close(l.requests) })
	l.mu.Lock()
	started := l.started
	l.mu.Unlock()
	for _, p := range started {
		p.Kill()
	}
	<-l.done
	return os.RemoveAll(l.dir)
}
