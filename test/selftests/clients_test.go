package selftests

import (
	"bytes"
	"embed"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

//go:embed clients/*.sh
var rounds embed.FS

// done is what a round prints when it has come to its end.
const done = "the round is done"

// TestClients runs a round of work with every client program there is for the family: links, peers, keys, what is said
// about them, notifications, and the end of it all. The programs are other people's, and unchanged.
func TestClients(t *testing.T) {
	for _, name := range []string{"ovpn-cli", "pyynl", "ynl-c", "iproute2"} {
		t.Run(name, func(t *testing.T) {
			tree, program := requireTree(t), requireProgram(t)
			script, err := rounds.ReadFile("clients/" + name + ".sh")
			if err != nil {
				t.Fatal(err)
			}
			r, err := run(t.Context(), tree, program, "bash", "-exc", string(script))
			if err != nil || r.Status != 0 || !strings.Contains(r.output, done) {
				t.Errorf("status %d, %v\n%s", r.Status, err, r.output)
			}
			for _, what := range r.Left {
				t.Error("left behind:", what)
			}
		})
	}
	t.Run("mdlayher-genetlink", func(t *testing.T) {
		requireTree(t) // for root
		own, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), requireProgram(t), "exec", "--datapath", "userspace", "--", own)
		cmd.Env = append(os.Environ(), roundVariable+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
		output, err := cmd.CombinedOutput()
		if err != nil || !bytes.Contains(output, []byte(done)) {
			t.Errorf("%v\n%s", err, output)
		}
	})
}
