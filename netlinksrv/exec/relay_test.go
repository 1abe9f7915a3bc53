package exec

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"ovpn-go/tun/netns"
)

// TestRelayThatCannotBeMade: what was made for one is released, at each place where it may fail for want of descriptors.
func TestRelayThatCannotBeMade(t *testing.T) {
	here, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	file := regularFile(t)
	s := newSession(nil, nil)
	for name, test := range map[string]struct {
		fd   int
		want error
	}{
		"no duplicate of the socket": {-1, unix.EBADF},
		"no epoll set with it":       {file, unix.EPERM}, // of a regular file
	} {
		t.Run(name, func(t *testing.T) {
			before := openDescriptors(t)
			r, client, _, err := s.newRelay(credentials{}, test.fd, here, false)
			if r != nil || client != -1 || !errors.Is(err, test.want) {
				t.Errorf("newRelay returns %v, %d, %v, want %v", r, client, err, test.want)
			}
			if after := openDescriptors(t); after != before {
				t.Errorf("%d descriptors, before it was %d", after, before)
			}
		})
	}
}

func regularFile(t *testing.T) int {
	t.Helper()
	file, err := os.Create(t.TempDir() + "/file")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return int(file.Fd())
}
