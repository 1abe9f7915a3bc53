package mixed

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ovpn-go/bench/benchtest"
	"ovpn-go/test/mixed/record"
	"ovpn-go/test/oracle"
)

// patience is how long the machine may take, which is a multiple of what it needs when nobody else wants the host.
const patience = 15 * time.Minute

// TestMixed has the runner check its claims in the machine; each is a subtest.
func TestMixed(t *testing.T) {
	machine, err := oracle.Find(t.Context(), "../oracle/build.sh")
	if errors.Is(err, oracle.ErrUnavailable) {
		benchtest.Missing(t, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	files := map[string][]byte{"run": []byte("#!/bin/sh\nexec /job/runner check /job/ovpn-go /out/record.json\n")}
	for name, source := range map[string]string{"ovpn-go": "ovpn-go/cmd/ovpn-go", "runner": "ovpn-go/test/mixed/runner"} {
		if files[name], err = build(t.Context(), filepath.Join(dir, name), source); err != nil {
			t.Fatal(err)
		}
	}
	// What the runner is to find out, from itself.
	list, err := exec.CommandContext(t.Context(), filepath.Join(dir, "runner"), "list").Output()
	if err != nil {
		t.Fatal(err)
	}
	result, err := machine.Run(t.Context(), oracle.Job{Files: files, Timeout: patience})
	if err != nil {
		t.Fatal(err)
	}
	if result.Status != 0 {
		t.Fatalf("the runner ended with status %d: %s\n%s", result.Status, result.Files["stderr"], result.Files["dmesg"])
	}
	t.Logf("kernel %s, %v", strings.TrimSpace(string(result.Files["kernel"])), result.Elapsed.Round(time.Second))
	if err := result.Complaint(); err != nil {
		t.Error(err)
	}
	var claims []record.Claim
	if err := json.Unmarshal(result.Files["record.json"], &claims); err != nil {
		t.Fatal(err)
	}
	found := map[string]record.Claim{}
	for _, claim := range claims {
		found[claim.Name] = claim
	}
	for name := range strings.Lines(string(list)) {
		name = strings.TrimSpace(name)
		t.Run(name, func(t *testing.T) {
			claim, ok := found[name]
			if !ok {
				t.Fatal("the record says nothing about it")
			}
			for _, note := range claim.Notes {
				t.Log(note)
			}
			if claim.Error != "" {
				t.Error(claim.Error)
			}
		})
	}
}

// build builds a static program and returns it.
func build(ctx context.Context, path, source string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, source)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return os.ReadFile(path)
}
