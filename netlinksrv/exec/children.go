package exec

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// children returns the pids of the calling process's children, zombies included. Those of a
// process that ended belong to us as well if we are their nearest subreaper.
//
// A child's pid is not reused before it is reaped, so a caller that keeps others from reaping may
// signal these pids safely.
func children() ([]int, error) { return childrenOf(os.Getpid()) }

// childrenOf returns the pids of a process's children. It may miss some while others end.
func childrenOf(parent int) ([]int, error) {
	directory := "/proc/" + strconv.Itoa(parent) + "/task/"
	threads, err := entriesOf(directory)
	if err != nil {
		return nil, err
	}
	var pids []int
	known := false
	for _, thread := range threads {
		list := directory + thread.Name() + "/children"
		text, err := os.ReadFile(list)
		if isShortage(err) {
			return nil, err
		}
		if err != nil {
			continue // that thread ended; its children have moved to another one
		}
		known = true
		for field := range strings.FieldsSeq(string(text)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", list, err)
			}
			pids = append(pids, pid)
		}
	}
	if !known {
		return childrenByStat(parent) // a kernel without CONFIG_PROC_CHILDREN
	}
	return pids, nil
}

// childrenByStat finds a process's children among all processes that /proc shows.
func childrenByStat(of int) ([]int, error) {
	processes, err := entriesOf("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, process := range processes {
		text, err := os.ReadFile("/proc/" + process.Name() + "/stat")
		if isShortage(err) {
			return nil, err
		}
		if err != nil {
			continue // it has ended, or is none
		}
		pid, parent, ok := parseStat(string(text))
		if ok && parent == of {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// descendants returns the pids of all processes below one.
func descendants(of int) ([]int, error) {
	var all []int
	for parents := []int{of}; len(parents) > 0; parents = parents[1:] {
		pids, err := childrenOf(parents[0])
		if err != nil {
			return nil, err
		}
		all = append(all, pids...)
		parents = append(parents, pids...)
	}
	return all, nil
}

// parseStat returns the process id and the parent's from a /proc/PID/stat line. The name between
// them is in parentheses and may itself hold spaces and parentheses.
func parseStat(line string) (pid, parent int, ok bool) {
	open, end := strings.IndexByte(line, '('), strings.LastIndexByte(line, ')')
	if open < 0 || end < open {
		return 0, 0, false
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line[:open]))
	if err != nil {
		return 0, 0, false
	}
	fields := strings.Fields(line[end+1:])
	if len(fields) < 2 {
		return 0, 0, false
	}
	parent, err = strconv.Atoi(fields[1])
	return pid, parent, err == nil
}

// inheritedDescriptors returns the numbers from 3 up that a program we start would inherit. The
// Go runtime and this program open everything close-on-exec, so they came from our parent.
func inheritedDescriptors() ([]int, error) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil, fmt.Errorf("list open descriptors: %w", err)
	}
	var fds []int
	for _, entry := range entries {
		fd, err := strconv.Atoi(entry.Name())
		if err != nil || fd < 3 {
			continue
		}
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err == nil && flags&unix.FD_CLOEXEC == 0 {
			fds = append(fds, fd)
		}
	}
	return fds, nil
}
