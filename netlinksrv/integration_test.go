package netlinksrv

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"ovpn-go/tun/netns"
)

// skip says why a test can't run here, which is a failure where OVPN_GO_REQUIRE promises that it can.
func skip(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("OVPN_GO_REQUIRE") != "" {
		t.Fatalf("OVPN_GO_REQUIRE is set, but "+format, args...)
	}
	t.Skipf(format, args...)
}

// newNamespace makes a namespace that lives as long as the test.
func newNamespace(t *testing.T) *netns.NS {
	t.Helper()
	ns, err := netns.Create()
	if err != nil {
		skip(t, "no network namespace can be made: %v", err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// liveServer is a server as it runs outside of tests.
func liveServer(t *testing.T) *Server {
	t.Helper()
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// clientIn opens a bound socket in a namespace.
func clientIn(t *testing.T, s *Server, ns *netns.NS, task *fakeTask) *client {
	t.Helper()
	c := &client{t: t, task: task, in: newInbox()}
	var err error
	if c.GenericSocket, err = s.OpenGeneric(ns, c.in.deliver); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	if err := c.Bind(task, 0, 0); err != nil {
		t.Fatal(err)
	}
	return c
}

// socketIn opens a socket in a namespace and binds it if addr is valid.
func socketIn(t *testing.T, ns *netns.NS, family, kind int, addr netip.AddrPort) *os.File {
	t.Helper()
	var file *os.File
	err := ns.Do(func() error {
		fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		file = os.NewFile(uintptr(fd), "socket")
		if addr.IsValid() {
			return unix.Bind(fd, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()})
		}
		return nil
	})
	if file != nil {
		t.Cleanup(func() { file.Close() })
	}
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// TestIntegrationNamespaceIDs: a peer whose socket is in another namespace is reported with that namespace's id as
// the requester's namespace knows it.
func TestIntegrationNamespaceIDs(t *testing.T) {
	from, of := newNamespace(t), newNamespace(t)
	ids := newNamespaceIDs(from)
	id := ids.of(of)
	if id < 0 {
		t.Fatalf("id %d", id)
	}
	if again := newNamespaceIDs(from).of(of); again != id {
		t.Errorf("id %d when asked again, %d at first", again, id)
	}
	if other := newNamespaceIDs(from).of(newNamespace(t)); other == id {
		t.Errorf("two namespaces with id %d", id)
	}
	gone := newNamespace(t)
	gone.Close()
	if id := newNamespaceIDs(from).of(gone); id != nsidUnknown {
		t.Errorf("id %d of a namespace that can't be named, want -1", id)
	}
}

// TestIntegrationNamespaceOfID: a namespace is found by the number that another knows it under.
func TestIntegrationNamespaceOfID(t *testing.T) {
	from := newNamespace(t)
	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if err := cmd.Start(); err != nil {
		skip(t, "no process in a namespace of its own: %v", err)
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
	}()
	want, err := netns.OfThread(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer want.Close()
	id := newNamespaceIDs(from).of(want)
	got, err := namespaceOfID(from, uint32(id))
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	if got.ID() != want.ID() {
		t.Errorf("namespace %v has the id %d, want %v", got.ID(), id, want.ID())
	}
	if _, err := namespaceOfID(from, uint32(id)+1); !errors.Is(err, unix.EINVAL) {
		t.Errorf("an id that is not in use: %v, want EINVAL", err)
	}
	hidden := newNamespace(t)
	if _, err := namespaceOfID(from, uint32(newNamespaceIDs(from).of(hidden))); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("a namespace without name and process: %v, want EOPNOTSUPP", err)
	}
}
