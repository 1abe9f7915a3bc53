package wire

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// connected returns both ends of a connection.
func connected(t *testing.T) (a, b *Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ends := make([]*Conn, 2)
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "end")
		conn, err := net.FileConn(file)
		file.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = NewConn(conn.(*net.UnixConn))
		t.Cleanup(func() { conn.Close() })
	}
	return ends[0], ends[1]
}

func TestMessagesAndFilesArrive(t *testing.T) {
	client, daemon := connected(t)
	want := Request{Type: TypeRun, Nonce: 1<<53 - 1, Window: &[2]uint32{768, 1024}}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if err := client.Send(want, null, null); err != nil {
		t.Fatal(err)
	}
	p, err := daemon.Receive()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	got, err := ParseRequest(p.Message)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, file := range p.Files {
		if info, err := file.Stat(); err != nil || info.Mode()&os.ModeCharDevice == 0 {
			t.Errorf("received %v, %v, not the file that was sent", info, err)
		}
	}
	if len(p.Files) != 2 {
		t.Errorf("%d files", len(p.Files))
	}
	client.Close()
	if _, err := daemon.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
}

// TestWhatIsTooMuchIsRefused: and no descriptor of it is kept.
func TestWhatIsTooMuchIsRefused(t *testing.T) {
	for name, send := range map[string]func(fd int) error{
		"a long message": func(fd int) error { return unix.Sendmsg(fd, make([]byte, MaxMessage+1), nil, nil, 0) },
		"many descriptors": func(fd int) error {
			return unix.Sendmsg(fd, []byte("{}"), unix.UnixRights(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), nil, 0)
		},
	} {
		t.Run(name, func(t *testing.T) {
			client, daemon := connected(t)
			raw, err := client.Unix().SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			before := descriptors(t)
			raw.Control(func(fd uintptr) { err = send(int(fd)) })
			if err != nil {
				t.Fatal(err)
			}
			if p, err := daemon.Receive(); err == nil {
				t.Errorf("received %d bytes and %d files", len(p.Message), len(p.Files))
			}
			if after := descriptors(t); after > before {
				t.Errorf("%d descriptors, before %d", after, before)
			}
		})
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestRefusalKeepsTheErrno(t *testing.T) {
	b, err := json.Marshal(Refusal(&os.PathError{Op: "open", Path: "x", Err: unix.EACCES}))
	if err != nil {
		t.Fatal(err)
	}
	var r Reply
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	if err := r.Err(); !errors.Is(err, unix.EACCES) {
		t.Errorf("%v", err)
	}
}

func TestFind(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "socket")
	for _, test := range []struct {
		name, variable string
		none           bool
	}{
		{"no daemon is wanted", None, true},
		{"the daemon that is named is not there", missing, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Setenv(Variable, test.variable)
			if _, err := Find(); err == nil || errors.Is(err, ErrNoDaemon) != test.none {
				t.Errorf("%v", err)
			}
		})
	}
}

// FuzzRequest: whatever a client says, what is made of it can be used.
func FuzzRequest(f *testing.F) {
	for _, r := range []Request{
		{Type: TypeHello},
		{Type: TypeRun, Nonce: 7, Window: &[2]uint32{768, 1024}},
		{Type: TypeNetlink, Nonce: 7, Protocol: unix.NETLINK_GENERIC},
		{Type: TypeOption, Name: unix.NETLINK_ADD_MEMBERSHIP, Value: 9},
	} {
		b, err := json.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"type":"run","window":[2,1]}`))
	f.Add([]byte(`{"type":"run"}`))
	f.Fuzz(func(t *testing.T, message []byte) {
		r, err := ParseRequest(message)
		if err != nil {
			if diff := cmp.Diff(Request{}, r); diff != "" {
				t.Errorf("a request beside an error:\n%s", diff)
			}
			return
		}
		if r.Type == "" || r.Type == TypeRun && r.Window == nil || r.Window != nil && r.Window[0] > r.Window[1] {
			t.Errorf("%+v", r)
		}
		b, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseRequest(b)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(r, again); diff != "" {
			t.Error(diff)
		}
	})
}
