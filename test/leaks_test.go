package test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/bench"
)

// leakPatience is how long processes that were told to end may take.
const leakPatience = 5 * time.Second

// A stock is what a test run must not add to.
type stock struct {
	mounts []string // in this process's mount namespace
	tuns   []string // TUN devices of this process's network namespace
	netns  []string // network namespaces that this process holds open
}

func inventory() stock {
	return stock{mounts: mounts(), tuns: tuns(), netns: heldNamespaces()}
}

// leaks compares the stock with what there is now, and looks for processes with the run's marker in
// their environment. Those it ends. An anonymous namespace lives as long as a process is in it or
// somebody holds it, so together the lists also account for namespaces and the devices in them.
func (s stock) leaks(marker string) []string {
	all := leftProcesses(marker)
	for what, lists := range map[string][2][]string{
		"mount":             {s.mounts, mounts()},
		"TUN device":        {s.tuns, tuns()},
		"network namespace": {s.netns, heldNamespaces()},
	} {
		for _, x := range lists[1] {
			if !slices.Contains(lists[0], x) {
				all = append(all, what+" "+x)
			}
		}
	}
	return all
}

func leftProcesses(marker string) []string {
	deadline := time.Now().Add(leakPatience)
	for {
		pids := markedProcesses(marker)
		if len(pids) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			var left []string
			for _, pid := range pids {
				cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
				left = append(left, fmt.Sprintf("process %d: %s", pid, bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '})))
				unix.Kill(pid, unix.SIGKILL)
			}
			return left
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// markedProcesses returns the processes other than this one whose environment holds the marker.
func markedProcesses(marker string) []int {
	var pids []int
	files, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, file := range files {
		pid, err := strconv.Atoi(strings.Split(file, "/")[2])
		if err != nil || pid == os.Getpid() {
			continue
		}
		environ, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		if slices.Contains(strings.Split(string(environ), "\x00"), marker) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// mounts returns the mounts at or below the test root. Others on the machine are other people's.
func mounts() []string {
	data, _ := os.ReadFile("/proc/self/mountinfo")
	root := bench.TestRoot()
	var below []string
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line) // the mount point is the fifth
		if len(fields) > 4 && (fields[4] == root || strings.HasPrefix(fields[4], root+"/")) {
			below = append(below, fields[4])
		}
	}
	return below
}

func tuns() []string {
	names, _ := filepath.Glob("/sys/class/net/*/tun_flags")
	return names
}

func heldNamespaces() []string {
	var held []string
	files, _ := filepath.Glob("/proc/self/fd/*")
	for _, file := range files {
		if target, err := os.Readlink(file); err == nil && strings.HasPrefix(target, "net:[") {
			held = append(held, target)
		}
	}
	return held
}
