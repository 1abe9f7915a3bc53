package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// elapsed are the methods of time.Time that go by the monotonic clock where both times have its reading, as those of time.Now do; all others show or make a
// time on the wall.
var elapsed = []string{"Add", "After", "Before", "Compare", "IsZero", "Sub"}

// wall are the functions and constants by which the time on the wall, which anybody may set, can get into a program but for time.Now.
var wall = []string{
	"time.Date", "time.Parse", "time.ParseInLocation", "time.Unix", "time.UnixMicro", "time.UnixMilli",
	"unix.CLOCK_REALTIME", "unix.CLOCK_REALTIME_ALARM", "unix.CLOCK_REALTIME_COARSE", "unix.CLOCK_TAI", "unix.Gettimeofday", "unix.Time",
	"syscall.Gettimeofday", "syscall.Time",
}

// TestRoomsIgnoreTheWallClock: what the rooms measure is time that has passed, so nothing happens when somebody sets the clock.
func TestRoomsIgnoreTheWallClock(t *testing.T) {
	used, err := usesOfTheWallClock("./confine", "./crypto", "./datapath", "./netlinksrv/...", "./peers", "./tun/...")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string(nil), used); diff != "" {
		t.Errorf("the rooms look at the time on the wall:\n%s", diff)
	}
	// The command prints when something happened.
	used, err = usesOfTheWallClock("./cmd/ovpn-go")
	if err != nil || len(used) == 0 {
		t.Errorf("nothing is found where there is something: %v", err)
	}
}

// usesOfTheWallClock finds them in packages, but not in their tests.
func usesOfTheWallClock(patterns ...string) (used []string, err error) {
	cmd := exec.Command("go", append([]string{"list", "-export", "-deps", "-json=ImportPath,Export,Dir,GoFiles,DepOnly"}, patterns...)...)
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list packages: %w", err)
	}
	type listed struct {
		ImportPath, Export, Dir string
		GoFiles                 []string
		DepOnly                 bool
	}
	exports := map[string]string{}
	var packages []listed
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
		exports[p.ImportPath] = p.Export
		if !p.DepOnly {
			packages = append(packages, p)
		}
	}
	files := token.NewFileSet()
	config := types.Config{Importer: importer.ForCompiler(files, "gc", func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) })}
	for _, p := range packages {
		var syntax []*ast.File
		for _, name := range p.GoFiles {
			file, err := parser.ParseFile(files, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				return nil, err
			}
			syntax = append(syntax, file)
		}
		info := types.Info{Uses: map[*ast.Ident]types.Object{}}
		if _, err := config.Check(p.ImportPath, files, syntax, &info); err != nil {
			return nil, err
		}
		for at, object := range info.Uses {
			if name := wallClockName(object); name != "" {
				used = append(used, fmt.Sprintf("%s: %s", files.Position(at.Pos()), name))
			}
		}
	}
	slices.Sort(used)
	return used, nil
}

// wallClockName returns the name of what shows or makes a time on the wall, and "" for everything else.
func wallClockName(object types.Object) string {
	if object.Pkg() == nil {
		return ""
	}
	name := object.Pkg().Name() + "." + object.Name()
	if slices.Contains(wall, name) {
		return name
	}
	if f, ok := object.(*types.Func); ok && strings.HasPrefix(f.FullName(), "(time.Time).") && !slices.Contains(elapsed, f.Name()) {
		return f.FullName()
	}
	return ""
}
