package netns_test

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"ovpn-go/tun/netns"
)

// newNS makes a namespace that nothing else refers to.
func newNS(t *testing.T) *netns.NS {
	t.Helper()
	ns, err := netns.Create()
	if errors.Is(err, unix.EPERM) && os.Geteuid() != 0 {
		t.Skip("creating a network namespace needs root")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

func TestDoRunsInsideAndComesBack(t *testing.T) {
	ns := newNS(t)
	before, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()

	want := errors.New("from fn")
	err = ns.Do(func() error {
		inside, err := netns.Current()
		if err != nil {
			return err
		}
		defer inside.Close()
		if inside.ID() != ns.ID() {
			t.Errorf("inside Do: namespace %v, want %v", inside.ID(), ns.ID())
		}
		return want
	})
	if !errors.Is(err, want) {
		t.Errorf("Do returned %v, want fn's error", err)
	}
	after, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer after.Close()
	if after.ID() != before.ID() {
		t.Errorf("after Do: namespace %v, want %v", after.ID(), before.ID())
	}
}

func TestOfSocketNamesTheSocketsNamespace(t *testing.T) {
	ns := newNS(t)
	var sock *os.File
	err := ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			sock = os.NewFile(uintptr(fd), "udp")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer sock.Close()
	got, err := netns.OfSocket(sock)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	if got.ID() != ns.ID() {
		t.Errorf("OfSocket = %v, want %v", got.ID(), ns.ID())
	}
}

func TestDupOutlivesOriginal(t *testing.T) {
	ns := newNS(t)
	dup, err := ns.Dup()
	if err != nil {
		t.Fatal(err)
	}
	defer dup.Close()
	if dup.ID() != ns.ID() {
		t.Errorf("Dup has ID %v, want %v", dup.ID(), ns.ID())
	}
	ns.Close()
	if err := dup.Do(func() error { return nil }); err != nil {
		t.Errorf("Do after the original was closed: %v", err)
	}
	if err := ns.Do(func() error { return nil }); err == nil {
		t.Error("Do on a closed namespace succeeded")
	}
}

func BenchmarkDo(b *testing.B) {
	ns, err := netns.Create()
	if err != nil {
		b.Skip(err)
	}
	defer ns.Close()
	for b.Loop() {
		if err := ns.Do(func() error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
