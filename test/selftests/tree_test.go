package selftests

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"ovpn-go/bench/benchtest"
)

// treeVariable names the directory of the tree; by default it lies in the system's cache directory.
const treeVariable = "OVPN_GO_SELFTESTS"

// testDir is where the scripts are in the tree. They expect to be started there.
const testDir = "/usr/src/linux/tools/testing/selftests/net/ovpn"

// tree builds the tree if there is none of this version, which takes about a minute.
var tree = sync.OnceValues(func() (string, error) {
	dir := os.Getenv(treeVariable)
	if dir == "" {
		dir = "/var/cache/ovpn-go/selftests"
	}
	out, err := exec.Command("./build.sh", dir).CombinedOutput()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			lines := strings.Split(strings.TrimSpace(string(out)), "\n")
			err = errors.New(strings.Join(lines[max(0, len(lines)-5):], "\n"))
		}
		return "", fmt.Errorf("test/selftests/build.sh %s: %w", dir, err)
	}
	return dir, nil
})

func requireTree(t *testing.T) string {
	t.Helper()
	benchtest.Root(t)
	dir, err := tree()
	if err != nil {
		benchtest.Missing(t, err.Error())
	}
	return dir
}

// requireProgram builds the program as it is shipped.
func requireProgram(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ovpn-go")
	cmd := exec.Command("go", "build", "-trimpath", "-o", path, "ovpn-go/cmd/ovpn-go")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return path
}
