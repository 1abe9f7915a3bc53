package test

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ovpn-go/bench/benchtest"
)

// TestReproducibleBuild builds the program twice, in different directories and surroundings. The second build compiles
// everything anew.
func TestReproducibleBuild(t *testing.T) {
	build := func(source string, env ...string) [sha256.Size]byte {
		path := filepath.Join(t.TempDir(), "ovpn-go")
		cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", path, "./cmd/ovpn-go")
		cmd.Dir = source
		cmd.Env = append(append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS="), env...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build in %s: %v\n%s", source, err, out)
		}
		binary, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return sha256.Sum256(binary)
	}
	modules, err := exec.Command("go", "env", "GOMODCACHE").Output()
	if err != nil {
		t.Fatal(err)
	}
	elsewhere, home := t.TempDir(), t.TempDir()
	copySource(t, elsewhere)
	here := build("..")
	there := build(elsewhere, "HOME="+home, "TMPDIR="+home, "GOCACHE="+filepath.Join(home, "cache"),
		"GOMODCACHE="+strings.TrimSpace(string(modules)), "TZ=Asia/Tokyo", "LC_ALL=C")
	if here != there {
		t.Errorf("the same source gave %x here and %x elsewhere", here, there)
	}
}

// copySource copies the working tree without what is built in it.
func copySource(t *testing.T, to string) {
	t.Helper()
	entries, err := os.ReadDir("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		name := entry.Name()
		switch from := filepath.Join("..", name); {
		case strings.HasPrefix(name, ".") || name == "bin" || name == "dist":
		case entry.IsDir():
			err = os.CopyFS(filepath.Join(to, name), os.DirFS(from))
		case entry.Type().IsRegular():
			var data []byte
			if data, err = os.ReadFile(from); err == nil {
				err = os.WriteFile(filepath.Join(to, name), data, 0o644)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestBillOfMaterials compares what `make sbom` wrote beside each binary with what the binary says it was built from.
func TestBillOfMaterials(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64"} {
		t.Run(arch, func(t *testing.T) {
			binary := "../dist/ovpn-go-linux-" + arch
			bom, err := os.ReadFile(binary + ".cdx.json")
			if os.IsNotExist(err) {
				benchtest.Missing(t, "needs a bill of materials: make sbom")
			}
			if err != nil {
				t.Fatal(err)
			}
			var listed struct {
				Format     string `json:"bomFormat"`
				Components []struct{ Name, Version string }
			}
			if err := json.Unmarshal(bom, &listed); err != nil {
				t.Fatal(err)
			}
			if listed.Format != "CycloneDX" {
				t.Errorf("format %q", listed.Format)
			}
			info, err := buildinfo.ReadFile(binary)
			if err != nil {
				t.Fatal(err)
			}
			want := []string{"std " + info.GoVersion}
			for _, module := range info.Deps {
				want = append(want, module.Path+" "+module.Version)
			}
			var got []string
			for _, component := range listed.Components {
				got = append(got, component.Name+" "+component.Version)
			}
			slices.Sort(want)
			slices.Sort(got)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("modules (-in the binary +in the bill):\n%s", diff)
			}
		})
	}
}

// TestDependenciesHaveReasons: docs/dependencies.md has a row for each module that go.mod asks for itself, and for each tool's,
// and no other.
func TestDependenciesHaveReasons(t *testing.T) {
	var want []string
	for _, file := range []string{"../go.mod", "sbom.mod"} {
		out, err := exec.Command("go", "mod", "edit", "-json", file).Output()
		if err != nil {
			t.Fatal(err)
		}
		var mod struct {
			Require []struct {
				Path     string
				Indirect bool
			}
			Tool []struct{ Path string }
		}
		if err := json.Unmarshal(out, &mod); err != nil {
			t.Fatal(err)
		}
		for _, require := range mod.Require {
			isTool := false
			for _, tool := range mod.Tool {
				isTool = isTool || strings.HasPrefix(tool.Path, require.Path+"/")
			}
			if isTool || !require.Indirect {
				want = append(want, require.Path)
			}
		}
	}
	doc, err := os.ReadFile("../docs/dependencies.md")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| \\S").FindAllSubmatch(doc, -1) {
		got = append(got, string(row[1]))
	}
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("modules (-in go.mod +in docs/dependencies.md):\n%s", diff)
	}
}
