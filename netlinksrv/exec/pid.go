package exec

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// selfPath is our own binary, even when its file was replaced meanwhile.
const selfPath = "/proc/self/exe"

// pidVariables name, in the service manager's protocols, the process that the other variables are
// meant for: sd_listen_fds(3), sd_watchdog_enabled(3). They arrive with the supervisor's pid.
var pidVariables = []string{"LISTEN_PID", "WATCHDOG_PID"}

// addressed returns the variables of env, out of pidVariables, that mean the process pid.
func addressed(env []string, pid int) []string {
	var names []string
	for _, setting := range env {
		name, value, _ := strings.Cut(setting, "=")
		if value == strconv.Itoa(pid) && slices.Contains(pidVariables, name) {
			names = append(names, name)
		}
	}
	return names
}

// runPid becomes the client, in a process that knows its pid. The arguments are the supervisor's
// pid, the path of the program and its arguments, name first. What it returns is a shell's status
// for a program that can't be executed.
func runPid(args []string) int {
	if len(args) < 3 {
		return 2
	}
	supervisor, err := strconv.Atoi(args[0])
	if err != nil {
		return 2
	}
	for _, name := range addressed(os.Environ(), supervisor) {
		os.Setenv(name, strconv.Itoa(os.Getpid()))
	}
	err = syscall.Exec(args[1], args[2:], os.Environ())
	fmt.Fprintf(os.Stderr, "%s: %v\n", args[1], err)
	return exitStatusOf(err)
}

// exitStatusOf is what a shell returns for a program that can't be executed.
func exitStatusOf(err error) int {
	if errors.Is(err, unix.ENOENT) {
		return 127
	}
	return 126
}

// errnoOf returns the errno inside an error.
func errnoOf(err error) (unix.Errno, bool) {
	var errno unix.Errno
	ok := errors.As(err, &errno)
	return errno, ok
}
