package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPprofIsForThisMachineOnly(t *testing.T) {
	for _, addr := range []string{":6060", "0.0.0.0:0", "[::]:0", "192.0.2.1:6060", "localhost:0", "127.0.0.1", "pprof.sock"} {
		end, err := servePprof(addr)
		if err == nil {
			t.Errorf("%q is served", addr)
			_ = end()
		}
	}
}

func TestPprof(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pprof.sock")
	end, err := servePprof(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if mode := info.Mode().Perm(); mode != 0o600 {
		t.Errorf("mode of the socket is %o, want 600", mode)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		}}}
	get := func(what string) string {
		t.Helper()
		answer, err := client.Get("http://pprof/debug/pprof/" + what)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		if err != nil || answer.StatusCode != http.StatusOK {
			t.Errorf("%s: %s, %v", what, answer.Status, err)
		}
		return string(body)
	}
	if body := get("goroutine?debug=1"); !strings.Contains(body, "servePprof") {
		t.Errorf("goroutines: %s", body)
	}
	if body := get("profile?seconds=1"); !strings.HasPrefix(body, "\x1f\x8b") {
		t.Error("the CPU profile is not in pprof's format")
	}
	if err := end(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the socket after the end: %v", err)
	}
	if end, err = servePprof("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	if err := end(); err != nil {
		t.Error(err)
	}
}
