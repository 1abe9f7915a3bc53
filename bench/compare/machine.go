package compare

import (
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"ovpn-go/bench/report"
)

func describeMachine() report.Machine {
	m := report.Machine{Cores: len(allowedCores()), Kernel: kernelRelease(), Arch: runtime.GOARCH, Go: runtime.Version()}
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		name, value, _ := strings.Cut(line, ":")
		switch value = strings.TrimSpace(value); strings.TrimSpace(name) {
		case "model name":
			m.CPU = value
		case "flags":
			m.Virtual = m.Virtual || strings.Contains(value, "hypervisor")
		}
	}
	if m.CPU == "" {
		m.CPU = "unknown (" + runtime.GOARCH + ")"
	}
	m.Emulated = strings.Contains(m.CPU, "QEMU TCG")
	memory, _ := os.ReadFile("/proc/meminfo")
	if fields := strings.Fields(string(memory)); len(fields) > 1 && fields[0] == "MemTotal:" {
		kilobytes, _ := strconv.ParseUint(fields[1], 10, 64)
		m.Memory = kilobytes << 10
	}
	return m
}

func kernelRelease() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(name.Release[:])
}

// allowedCores are the processors that the calling thread may run on.
func allowedCores() []int {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil
	}
	var cores []int
	for i := range len(set) * 64 {
		if set.IsSet(i) {
			cores = append(cores, i)
		}
	}
	return cores
}

// confine lets this process, and whatever it starts from now on, run on the given processors only, and returns what
// undoes it.
func confine(cores []int) (undo func() error, err error) {
	before := allowedCores()
	set := func(cores []int) error {
		var mask unix.CPUSet
		for _, i := range cores {
			mask.Set(i)
		}
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return err
		}
		for _, task := range tasks {
			id, err := strconv.Atoi(task.Name())
			if err != nil {
				return err
			}
			if err := unix.SchedSetaffinity(id, &mask); err != nil && err != unix.ESRCH {
				return os.NewSyscallError("sched_setaffinity", err)
			}
		}
		runtime.GOMAXPROCS(len(cores))
		return nil
	}
	return func() error { return set(before) }, set(cores)
}
