package test

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"ovpn-go/bench/benchtest"
	"ovpn-go/bench/report"
)

// benchLimit is what a quick run of one round promises.
const benchLimit = 90 * time.Second

// wireGuardGo is built beside the program, where the bench looks for it.
var wireGuardGo = sync.OnceValue(func() error {
	cmd := exec.Command("go", "build", "-o", filepath.Join(buildDir, "wireguard-go"), "golang.zx2c4.com/wireguard")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return errors.Join(err, errors.New(string(out)))
	}
	return nil
})

func benchCommand(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	requireOpenVPN(t)
	binary, err := plainBinary()
	if err != nil {
		t.Fatal(err)
	}
	if err := wireGuardGo(); err != nil {
		t.Fatal(err)
	}
	return exec.Command(binary, append([]string{"bench"}, args...)...)
}

// TestBench: a quick run measures every contender that can be had here, and its results can be read back. Against OpenVPN's
// own data channel ours is several times as fast, over UDP and over TCP.
func TestBench(t *testing.T) {
	const least = 3.0
	dir := t.TempDir()
	cmd := benchCommand(t, "--quick", "--rounds", "3", "--output", dir)
	begin := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if took := time.Since(begin); took > benchLimit {
		t.Errorf("three rounds took %v, more than the %v promised for one", took, benchLimit)
	}
	reports, err := report.ReadJSON(filepath.Join(dir, "performance.json"))
	if err != nil {
		t.Fatal(err)
	}
	if len(reports) != 1 {
		t.Fatalf("%d reports", len(reports))
	}
	r := reports[0]
	for _, name := range []string{report.Ours, report.OursStatic, report.OpenVPN, report.WireGuardGo, report.Veth} {
		c, _ := r.Case(report.OneStream)
		if _, ok := c.Of(name); !ok {
			t.Errorf("%s was not measured: %+v", name, r.Contenders)
		}
	}
	for _, x := range r.Contenders {
		if (x.Version == "") == (x.Missing == "") {
			t.Errorf("neither there nor missing, or both: %+v", x)
		}
	}
	for _, c := range r.Cases {
		for _, result := range c.Results {
			if len(result.Samples) != 3 || len(result.Errors) > 0 {
				t.Errorf("%s, %s: %d samples, errors %v", c.ID, result.Contender, len(result.Samples), result.Errors)
			}
			for _, s := range result.Samples {
				if s.Value <= 0 || s.Loss < 0 || s.Loss >= 1 || c.Metric != report.RoundTrip && s.CPU <= 0 {
					t.Errorf("%s, %s: %+v", c.ID, result.Contender, s)
				}
			}
		}
	}
	for _, id := range []string{report.OneStream, report.OneStream + ",over-tcp"} {
		c, _ := r.Case(id)
		if s := report.Summarize(c.Ratios(report.Ours, report.OpenVPN)); s.Median < least {
			t.Errorf("%s: %.2f times OpenVPN's throughput (%.2f to %.2f), expected at least %.1f", id, s.Median, s.Min, s.Max, least)
		}
	}
	if a := r.Allocations; a == nil || a.Packets == 0 || a.PerPacket > 0.001 {
		t.Errorf("allocations: %+v", a)
	}
	checkDocument(t, dir, r)
	leftSockets(t)
}

// checkDocument looks whether the document names everything and its picture is one.
func checkDocument(t *testing.T, dir string, r report.Report) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "performance.md"))
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, x := range r.Contenders {
		want = append(want, x.Name, x.Version, x.Missing)
	}
	for _, g := range r.Goals {
		want = append(want, g.Text)
	}
	for _, s := range want {
		if !strings.Contains(string(text), s) {
			t.Errorf("the document lacks %q", s)
		}
	}
	picture, err := os.ReadFile(filepath.Join(dir, "performance.svg"))
	if err != nil {
		t.Fatal(err)
	}
	for d := xml.NewDecoder(bytes.NewReader(picture)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// leftSockets looks where wireguard-go, which knows nothing of namespaces there, leaves its sockets.
func leftSockets(t *testing.T) {
	t.Helper()
	if left, _ := filepath.Glob("/var/run/wireguard/wg*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestBenchInterrupted: Ctrl-C in the middle ends the bench and all that it started.
func TestBenchInterrupted(t *testing.T) {
	interrupt(t, benchCommand(t, "--quick", "--rounds", "2", "--duration", "1h"), "wireguard-go:", 10)
	leftSockets(t)
}

// TestCPUProfile: exec leaves a profile in pprof's format, which is compressed with gzip.
func TestCPUProfile(t *testing.T) {
	t.Parallel()
	benchtest.Root(t)
	binary, err := plainBinary()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "cpu.pprof")
	if out, err := exec.Command(binary, "exec", "--cpu-profile", path, "--", "true").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	data, err := os.ReadFile(path)
	if err != nil || !bytes.HasPrefix(data, []byte{0x1f, 0x8b}) {
		t.Errorf("%d bytes, %v", len(data), err)
	}
}
