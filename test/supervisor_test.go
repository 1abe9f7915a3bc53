package test

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/bench"
)

// TestKilledSupervisor: a client whose program is killed must end as well, instead of spinning on
// system calls that nobody answers, and the device must go.
func TestKilledSupervisor(t *testing.T) { overBoth(t, testKilledSupervisor) }

func testKilledSupervisor(t *testing.T, tcp bool) {
	for _, user := range []string{"root", "nobody"} {
		t.Run("client runs as "+user, func(t *testing.T) {
			t.Parallel()
			s := newScenario(t, 1)
			s.startServer(s.exec(s.Server), bench.ServerOptions{Options: bench.Options{TCP: tcp}})
			client := s.startClient(s.exec(s.Clients[0]), 0, bench.ClientOptions{Options: bench.Options{User: user, TCP: tcp}})
			name, _, err := client.Device()
			if err != nil {
				t.Fatal(err)
			}
			pids := descendants(client.PID())
			if !slices.Contains(pids, s.openvpnPID(client)) {
				t.Fatalf("OpenVPN's process %d is not among %v", s.openvpnPID(client), pids)
			}
			if err := unix.Kill(client.PID(), unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			<-client.Done()
			eventually(t, 10*time.Second, "every process of the killed program to end", func() bool {
				return !slices.ContainsFunc(pids, alive)
			})
			eventually(t, 10*time.Second, "the device to disappear", func() bool {
				has, err := s.Clients[0].HasLink(name)
				return err == nil && !has
			})
			// Nothing stands in the way of the next one.
			s.startClient(s.exec(s.Clients[0]), 0, bench.ClientOptions{Options: bench.Options{TCP: tcp}})
		})
	}
}

// eventually waits for a condition that nothing announces.
func eventually(t *testing.T, timeout time.Duration, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s", timeout, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// alive reports whether a process has not ended. Its parent, which may be anybody, need not have been told.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	state := stat[bytes.LastIndexByte(stat, ')')+1:]
	return !bytes.HasPrefix(state, []byte(" Z"))
}
