package oracle

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ovpn-go/bench/benchtest"
)

func TestArchiveIsReadByCpio(t *testing.T) {
	cpio, err := exec.LookPath("cpio")
	if err != nil {
		benchtest.Missing(t, "needs cpio")
	}
	want := map[string]string{"run": "#!/bin/sh\n", "data/deep/file": "1234567", "empty": ""}
	files := map[string][]byte{}
	for name, content := range want {
		files[name] = []byte(content)
	}
	content, err := archive("job", files)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "archive")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), cpio, "--extract", "--quiet", "--file", path)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	got := map[string]string{}
	for name := range want {
		content, err := os.ReadFile(filepath.Join(dir, "job", name))
		if err != nil {
			t.Error(err)
		}
		got[name] = string(content)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestArchiveRefusesNames(t *testing.T) {
	for _, name := range []string{"../etc/passwd", "/init", "", "."} {
		if _, err := archive("job", map[string][]byte{name: nil}); err == nil {
			t.Errorf("%q is accepted", name)
		}
	}
}

func TestFindSaysWhatIsMissing(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := Find(t.Context(), ""); !errors.Is(err, ErrUnavailable) {
		t.Errorf("without the emulator: %v", err)
	}
}

// fakeMachine is a machine whose emulator is a script.
func fakeMachine(t *testing.T, script string) *Machine {
	t.Helper()
	dir := t.TempDir()
	emulator := filepath.Join(dir, "emulator")
	if err := os.WriteFile(emulator, []byte("#!/bin/sh\n"+script), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "initrd"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return &Machine{dir: dir, emulator: emulator}
}

func TestRunTriesAgain(t *testing.T) {
	count := filepath.Join(t.TempDir(), "count")
	m := fakeMachine(t, "echo boot >>"+count+"\necho oops\n")
	_, err := m.Run(t.Context(), Job{Files: map[string][]byte{"run": nil}})
	if !errors.Is(err, errEarlyCrash) {
		t.Errorf("error is %v", err)
	}
	content, err := os.ReadFile(count)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Repeat("boot\n", boots), string(content)); diff != "" {
		t.Error(diff)
	}
}

func TestRunGivesUpOnABootThatHangs(t *testing.T) {
	m := fakeMachine(t, "exec sleep 60\n")
	m.bootTimeout = time.Millisecond
	if _, err := m.Run(t.Context(), Job{}); !errors.Is(err, errEarlyCrash) {
		t.Errorf("error is %v", err)
	}
}

func TestRunWaitsForAJobThatHasBegun(t *testing.T) {
	m := fakeMachine(t, "echo "+jobBegins+"\nexec sleep 60\n")
	m.bootTimeout = time.Second
	if _, err := m.Run(t.Context(), Job{Timeout: 2 * time.Second}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error is %v", err)
	}
}

// The script has the terminal's pipe where the emulator is told to look for it.
func TestTerminalGetsWhatTheJobPrints(t *testing.T) {
	m := fakeMachine(t, `echo "$@" | grep -q path=/proc/self/fd/3 && echo hello >/proc/self/fd/3`+"\n")
	var terminal strings.Builder
	// There are no results, so the boot counts as failed, each time.
	if _, err := m.Run(t.Context(), Job{Terminal: &terminal}); !errors.Is(err, errEarlyCrash) {
		t.Errorf("error is %v", err)
	}
	if diff := cmp.Diff(strings.Repeat("hello\n", boots), terminal.String()); diff != "" {
		t.Error(diff)
	}
}

func TestRunIsBounded(t *testing.T) {
	m := fakeMachine(t, "exec sleep 60\n")
	_, err := m.Run(t.Context(), Job{Timeout: 1})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error is %v", err)
	}
}
