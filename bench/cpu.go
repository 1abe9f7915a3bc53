package bench

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// clockTick is the unit of the times in /proc; Linux shows 100 a second to every program.
const clockTick = time.Second / 100

// A CPUTime is what the machine's processors have done since it started, in processor time.
type CPUTime struct {
	// Busy is all time in programs and in the kernel, interrupts included; Stolen is what the machine wanted and a
	// hypervisor gave to others.
	Busy, Stolen time.Duration
}

// ReadCPU reads the system's clock of work.
func ReadCPU() (CPUTime, error) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return CPUTime{}, err
	}
	line, _, _ := bytes.Cut(data, []byte("\n"))
	fields := strings.Fields(string(line))
	if len(fields) < 9 || fields[0] != "cpu" {
		return CPUTime{}, fmt.Errorf("/proc/stat begins with %q", line)
	}
	var t CPUTime
	for i, to := range []*time.Duration{1: &t.Busy, 2: &t.Busy, 3: &t.Busy, 6: &t.Busy, 7: &t.Busy, 8: &t.Stolen} {
		if to == nil {
			continue // the label, idle, waiting for a disk
		}
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return CPUTime{}, fmt.Errorf("/proc/stat: %w", err)
		}
		*to += time.Duration(n) * clockTick
	}
	return t, nil
}

// Sub returns the time since an earlier reading.
func (t CPUTime) Sub(earlier CPUTime) CPUTime {
	return CPUTime{Busy: t.Busy - earlier.Busy, Stolen: t.Stolen - earlier.Stolen}
}

// ProcessTreeCPU returns the processor time that processes and their descendants have used, as far as they are still
// there. Work that the kernel does for others while one of them runs, such as receiving packets, counts as theirs.
func ProcessTreeCPU(roots ...int) (time.Duration, error) {
	wanted := make(map[int]bool)
	for _, pid := range roots {
		wanted[pid] = true
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	type process struct {
		pid, parent int
		time        time.Duration
	}
	var all []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		data, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue // it has ended
		}
		// The name in parentheses may hold anything.
		_, rest, ok := strings.Cut(string(data[max(bytes.LastIndexByte(data, ')'), 0):]), ") ")
		fields := strings.Fields(rest)
		if !ok || len(fields) < 13 {
			return 0, fmt.Errorf("/proc/%d/stat: %q", pid, data)
		}
		parent, err1 := strconv.Atoi(fields[1])
		user, err2 := strconv.ParseInt(fields[11], 10, 64)
		system, err3 := strconv.ParseInt(fields[12], 10, 64)
		if err := errors.Join(err1, err2, err3); err != nil {
			return 0, fmt.Errorf("/proc/%d/stat: %w", pid, err)
		}
		all = append(all, process{pid, parent, time.Duration(user+system) * clockTick})
	}
	var sum time.Duration
	for grown := true; grown; {
		grown = false
		for i, p := range all {
			if p.pid > 0 && (wanted[p.pid] || wanted[p.parent]) {
				wanted[p.pid] = true
				sum += p.time
				all[i].pid, grown = 0, true
			}
		}
	}
	return sum, nil
}
