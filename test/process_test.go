package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// descendants returns a process and all that come from it.
func descendants(pid int) []int {
	children := map[int][]int{}
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range files {
		child, err := strconv.Atoi(strings.Split(file, "/")[2])
		if err != nil {
			continue
		}
		if parent, err := parentOf(child); err == nil {
			children[parent] = append(children[parent], child)
		}
	}
	all := []int{pid}
	for i := 0; i < len(all); i++ {
		all = append(all, children[all[i]]...)
	}
	return all
}

// parentOf reads a process's parent from its stat file. The name before it may hold anything, a
// closing parenthesis as well.
func parentOf(pid int) (int, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	return strconv.Atoi(fields[1])
}
