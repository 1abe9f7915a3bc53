package oracle

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// DirVariable is the environment variable that names the folder of the machine's kernel and initrd.
const DirVariable = "OVPN_GO_ORACLE"

// defaultDir is where build.sh puts them unless told otherwise.
const defaultDir = "/var/cache/ovpn-go/oracle"

// ErrUnavailable says that the machine can't be had here; the error around it says what is missing.
var ErrUnavailable = errors.New("the oracle's virtual machine is not available")

// emulator is the program that runs the machine.
const emulator = "qemu-system-x86_64"

// Machine is a virtual machine that is booted anew for every job. It may be used concurrently.
type Machine struct {
	dir      string
	emulator string
	// Kernel is the release of its kernel.
	Kernel string

	bootTimeout time.Duration // 0: the default
}

// Find returns the machine that build.sh has made; script is the path of build.sh, which is run if it has not made
// one, or another one. With an empty script the machine must be there. The error wraps ErrUnavailable where
// something is missing on this host.
func Find(ctx context.Context, script string) (*Machine, error) {
	path, err := exec.LookPath(emulator)
	if err != nil {
		return nil, fmt.Errorf("%w: %s is not installed: apt-get install --no-install-recommends qemu-system-x86",
			ErrUnavailable, emulator)
	}
	dir := os.Getenv(DirVariable)
	if dir == "" {
		dir = defaultDir
	}
	if script != "" {
		cmd := exec.CommandContext(ctx, script, dir)
		if out, err := cmd.CombinedOutput(); err != nil {
			lines := strings.Split(strings.TrimSpace(string(out)), "\n")
			return nil, fmt.Errorf("%w: %s: %w: %s", ErrUnavailable, script, err, lines[len(lines)-1])
		}
	}
	version, err := os.ReadFile(filepath.Join(dir, "version"))
	if err != nil {
		return nil, fmt.Errorf("%w: %s holds no machine: %w", ErrUnavailable, dir, err)
	}
	return &Machine{dir: dir, emulator: path, Kernel: strings.TrimSpace(string(version))}, nil
}

// Job is what a machine runs.
type Job struct {
	// Files appear under /job, executable. The program "run" among them is started there as root, and what it
	// leaves under /out, a file system in memory, is the job's result.
	Files map[string][]byte
	// Timeout bounds one boot with its job; 0 means five minutes.
	Timeout time.Duration
	// Terminal, if there is one, gets what the job prints, as it comes; "stdout" and "stderr" are then not among the
	// results.
	Terminal io.Writer
}

// Result is what a job left behind.
type Result struct {
	// Files are those of /out, by their path in it: those of the job, its "stdout" and "stderr", and the machine's
	// "dmesg" and "kernel".
	Files map[string][]byte
	// Status is the exit status of the job.
	Status int
	// Elapsed is how long the machine ran.
	Elapsed time.Duration
}

// Complaint returns an error if the machine's kernel complained of something: one that has lost its footing is no
// oracle.
func (r Result) Complaint() error {
	for _, mark := range []string{"BUG:", "Oops:", "general protection fault", "refcount_t:", "WARNING:"} {
		if bytes.Contains(r.Files["dmesg"], []byte(mark)) {
			return fmt.Errorf("the kernel complained:\n%s", r.Files["dmesg"])
		}
	}
	return nil
}

// errEarlyCrash says that the machine stopped, or stood still, before it did anything of the job, which an emulated
// one does at times.
var errEarlyCrash = errors.New("the machine did not get as far as the job")

const (
	// boots is how often a machine that does not get as far as the job is booted.
	boots = 3
	// defaultBootTimeout bounds the time to the job, ten seconds on a machine that has the time.
	defaultBootTimeout = 90 * time.Second
	// jobBegins is what the machine says on its console then (build.sh).
	jobBegins = "oracle: the job begins"
)

// Run boots the machine, runs the job and returns its result. A machine that does not get as far as the job is
// booted anew. The exit status of the job is no error.
func (m *Machine) Run(ctx context.Context, job Job) (result Result, err error) {
	for range boots {
		result, err = m.boot(ctx, job)
		if !errors.Is(err, errEarlyCrash) || ctx.Err() != nil {
			break
		}
	}
	return result, err
}

func (m *Machine) boot(ctx context.Context, job Job) (Result, error) {
	timeout := job.Timeout
	if timeout == 0 {
		timeout = 5 * time.Minute
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	// Should this thread end, so does the machine.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	dir, err := os.MkdirTemp("", "ovpn-go-oracle-")
	if err != nil {
		return Result{}, err
	}
	defer os.RemoveAll(dir)
	initrd, output := filepath.Join(dir, "initrd"), filepath.Join(dir, "output")
	if err := m.writeInitrd(initrd, job.Files); err != nil {
		return Result{}, err
	}
	// QEMU creates the file; it is there even if the machine never opens the port.
	args := []string{
		"-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1024", "-M", "q35",
		"-nodefaults", "-display", "none", "-no-reboot", "-net", "none", "-serial", "stdio",
		"-kernel", filepath.Join(m.dir, "vmlinuz"), "-initrd", initrd,
		"-append", "console=ttyS0 quiet panic=-1 rdinit=/init mitigations=off",
		"-device", "virtio-serial-pci", "-chardev", "file,id=output,path=" + output,
		"-device", "virtserialport,chardev=output,name=oracle",
	}
	var terminal *os.File
	if job.Terminal != nil {
		r, w, err := os.Pipe()
		if err != nil {
			return Result{}, err
		}
		terminal = w
		copied := make(chan struct{})
		go func() {
			defer close(copied)
			defer r.Close()
			// A terminal that takes no more is no reason to keep the machine waiting.
			if _, err := io.Copy(job.Terminal, r); err != nil {
				_, _ = io.Copy(io.Discard, r)
			}
		}()
		// Everybody who could write has ended by then.
		defer func() { terminal.Close(); <-copied }()
		// The first descriptor after the standard ones: the emulator opens it anew by this name.
		args = append(args, "-chardev", "file,id=terminal,path=/proc/self/fd/3",
			"-device", "virtserialport,chardev=terminal,name=terminal")
	}
	// The lowest priority: emulation takes whole cores, and what else runs on this host is often timed.
	booting, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	cmd := exec.CommandContext(booting, "nice", append([]string{"-n", "19", m.emulator}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if terminal != nil {
		cmd.ExtraFiles = []*os.File{terminal}
	}
	cmd.WaitDelay = 5 * time.Second
	alarm := time.AfterFunc(cmp.Or(m.bootTimeout, defaultBootTimeout), func() { stop(errEarlyCrash) })
	defer alarm.Stop()
	console := tail{mark: jobBegins, seen: func() { alarm.Stop() }}
	cmd.Stdout, cmd.Stderr = &console, &console
	start := time.Now()
	err = cmd.Run()
	elapsed := time.Since(start)
	if booting.Err() != nil {
		return Result{}, fmt.Errorf("the machine ran for %v: %w; its console ended with:\n%s",
			elapsed.Round(time.Second), context.Cause(booting), &console)
	}
	if err != nil {
		return Result{}, fmt.Errorf("%s: %w\n%s", emulator, err, &console)
	}
	files, err := readOutput(output)
	if err != nil || files["status"] == nil {
		return Result{}, fmt.Errorf("%w (%v); its console ended with:\n%s", errEarlyCrash, err, &console)
	}
	status, err := strconv.Atoi(strings.TrimSpace(string(files["status"])))
	if err != nil {
		return Result{}, fmt.Errorf("status of the job: %w", err)
	}
	return Result{Files: files, Status: status, Elapsed: elapsed}, nil
}

// writeInitrd appends the job to the machine's own initrd: the kernel unpacks one archive after the other.
func (m *Machine) writeInitrd(path string, files map[string][]byte) (err error) {
	job, err := archive("job", files)
	if err != nil {
		return err
	}
	base, err := os.Open(filepath.Join(m.dir, "initrd"))
	if err != nil {
		return err
	}
	defer base.Close()
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if _, err := io.Copy(out, base); err != nil {
		return err
	}
	_, err = out.Write(job)
	return err
}

// readOutput unpacks what came over the virtio port.
func readOutput(path string) (map[string][]byte, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{}
	r := tar.NewReader(bytes.NewReader(content))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return nil, fmt.Errorf("output of the machine: %w", err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		name := strings.TrimPrefix(h.Name, "./")
		if files[name], err = io.ReadAll(r); err != nil {
			return nil, fmt.Errorf("output of the machine: %w", err)
		}
	}
}

// tail keeps the end of what is written to it, and calls seen when that holds mark.
type tail struct {
	content []byte
	mark    string
	seen    func()
}

func (t *tail) Write(b []byte) (int, error) {
	const limit = 8 << 10
	t.content = append(t.content, b...)
	if bytes.Contains(t.content, []byte(t.mark)) {
		t.seen()
	}
	if extra := len(t.content) - limit; extra > 0 {
		t.content = append(t.content[:0], t.content[extra:]...)
	}
	return len(b), nil
}

func (t *tail) String() string { return string(t.content) }
