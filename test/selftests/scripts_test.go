package selftests

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// scripts are the selftests. Their names say what they vary: test.sh is UDP with AES-256-GCM.
var scripts = []string{
	"test.sh",
	"test-chachapoly.sh",
	"test-close-socket.sh",
	"test-close-socket-tcp.sh",
	"test-float.sh",
	"test-large-mtu.sh",
	"test-mark.sh",
	"test-symmetric-id.sh",
	"test-symmetric-id-float.sh",
	"test-symmetric-id-tcp.sh",
	"test-tcp.sh",
}

// TestScriptsAreComplete: a script that a kernel release adds must not go unnoticed.
func TestScriptsAreComplete(t *testing.T) {
	tree := requireTree(t)
	files, err := filepath.Glob(filepath.Join(tree, testDir, "test*.sh"))
	if err != nil {
		t.Fatal(err)
	}
	var there []string
	for _, f := range files {
		there = append(there, filepath.Base(f))
	}
	slices.Sort(there)
	if diff := cmp.Diff(there, slices.Sorted(slices.Values(scripts))); diff != "" {
		t.Errorf("scripts (-in the source +listed here):\n%s", diff)
	}
}

// TestScripts runs one script after the other: they are sensitive to time.
func TestScripts(t *testing.T) {
	tree, program := requireTree(t), requireProgram(t)
	for _, script := range scripts {
		t.Run(script, func(t *testing.T) {
			r, err := run(t.Context(), tree, program, "./"+script)
			if err == nil {
				err = parseTAP(r.output).err()
			}
			if err == nil && r.Status != 0 {
				err = fmt.Errorf("every stage passed, but the exit status is %d", r.Status)
			}
			if err != nil {
				t.Error(err)
			}
			for _, what := range r.Left {
				t.Error("left behind:", what)
			}
			if t.Failed() {
				t.Logf("the output:\n%s", r.output)
			}
		})
	}
}
