package selftests

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// patience bounds one script. The kernel's test runner gives each 90 seconds.
const patience = 120 * time.Second

// A result is how a command ended, with its output and the program's.
type result struct {
	report
	output string
}

// A report is what the first process of the script's namespaces has seen.
type report struct {
	// Status is the exit status, 128 and the signal's number if one ended it.
	Status int
	// Left names what the command or the program left behind.
	Left []string
	// Failure says why there is no Status.
	Failure string
}

// run runs one command in the scripts' directory of the tree, under the program, in mount, process and
// network namespaces that end with it: the scripts give well-known names to their network namespaces, and
// end processes by name.
func run(ctx context.Context, tree, program string, command ...string) (r result, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	reports, err := os.CreateTemp("", "ovpn-go-selftest-")
	if err != nil {
		return r, err
	}
	defer reports.Close()
	defer os.Remove(reports.Name())

	// Should this thread end, so does the first process, and with it everything in its namespaces.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var output bytes.Buffer
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = append([]string{initName, tree, program}, command...)
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.ExtraFiles = []*os.File{reports}
	cmd.WaitDelay = 10 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET,
		Pdeathsig:  syscall.SIGKILL,
	}
	err = cmd.Run()
	r.output = output.String()
	if ctx.Err() != nil {
		return r, fmt.Errorf("it did not end within %v", patience)
	}
	if err != nil {
		return r, err
	}
	if _, err := reports.Seek(0, 0); err != nil {
		return r, err
	}
	if err := json.NewDecoder(reports).Decode(&r.report); err != nil {
		return r, fmt.Errorf("read the report: %w", err)
	}
	if r.Failure != "" {
		return r, fmt.Errorf("%s", r.Failure)
	}
	return r, nil
}
