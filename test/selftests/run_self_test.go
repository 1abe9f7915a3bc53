package selftests

import (
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestRunSeesWhatIsLeft: what TestScripts relies on to find nothing.
func TestRunSeesWhatIsLeft(t *testing.T) {
	tree, program := requireTree(t), requireProgram(t)
	r, err := run(t.Context(), tree, program, "sh", "-ec", `
		ip netns add left
		ip link add left0 type veth peer name left1
		ip link add left2 type ovpn
		mount -t tmpfs none /mnt
		echo done
		exit 3`)
	if err != nil {
		t.Fatalf("%v\n%s", err, r.output)
	}
	slices.Sort(r.Left)
	want := report{Status: 3, Left: []string{
		// The link of kind ovpn ends with the program.
		"mount /mnt", "mount /run/netns/left", "network interface left0", "network interface left1", "network namespace left",
	}}
	if diff := cmp.Diff(want, r.report); diff != "" {
		t.Errorf("report (-want +got):\n%s\n%s", diff, r.output)
	}
	if _, err := os.Stat("/run/netns/left"); err == nil {
		t.Error("the command's network namespace appeared in ours")
	}
}

func TestRunReportsSignals(t *testing.T) {
	tree, program := requireTree(t), requireProgram(t)
	r, err := run(t.Context(), tree, program, "sh", "-c", "kill -KILL $$")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(report{Status: 128 + 9}, r.report); diff != "" {
		t.Errorf("report (-want +got):\n%s\n%s", diff, r.output)
	}
}
