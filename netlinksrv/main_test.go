package netlinksrv

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestMain fails if tests leave descriptors or goroutines behind.
func TestMain(m *testing.M) {
	flag.Parse()
	before := descriptors()
	code := m.Run()
	// Fuzzing has processes and pipes of its own.
	fuzzing := flag.Lookup("test.fuzz").Value.String() != "" || flag.Lookup("test.fuzzworker").Value.String() == "true"
	if code == 0 && !fuzzing {
		if err := leaks(before); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// leaks waits a while for what ends by itself.
func leaks(before []string) (err error) {
	for range 100 {
		if err = leaksNow(before); err == nil {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return err
}

func leaksNow(before []string) error {
	var left []string
	for _, d := range descriptors() {
		if !slices.Contains(before, d) {
			left = append(left, d)
		}
	}
	if len(left) > 0 {
		return fmt.Errorf("descriptors left open: %q", left)
	}
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	for _, s := range strings.Split(string(stacks), "\n\n") {
		if strings.Contains(s, "ovpn-go/") && !strings.Contains(s, "leaksNow") {
			return fmt.Errorf("goroutine left running:\n%s", s)
		}
	}
	return nil
}

// descriptors lists what is open, without what the runtime opens when it needs it.
func descriptors() (open []string) {
	dir, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil
	}
	for _, entry := range dir {
		target, err := os.Readlink(filepath.Join("/proc/self/fd", entry.Name()))
		if err != nil || strings.HasPrefix(target, "anon_inode:[event") {
			continue // closed meanwhile: the directory itself
		}
		open = append(open, entry.Name()+" "+target)
	}
	return open
}
