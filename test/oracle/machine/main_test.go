package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestScriptKeepsArgumentsApart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run")
	if err := os.WriteFile(path, script([]string{"printf", "<%s>", "a b", "it's", "", "$HOME *"}), 0o700); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "sh", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("<a b><it's><><$HOME *>", string(out)); diff != "" {
		t.Error(diff)
	}
}

func TestSaveStaysInTheFolder(t *testing.T) {
	dir := t.TempDir()
	if err := save(dir, map[string][]byte{"deep/file": []byte("content")}); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(dir, "deep/file"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("content", string(got)); diff != "" {
		t.Error(diff)
	}
	if err := save(dir, map[string][]byte{"../file": nil}); err == nil {
		t.Error("a file outside of the folder is written")
	}
}
