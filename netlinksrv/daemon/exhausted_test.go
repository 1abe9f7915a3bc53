package daemon

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// lines is a log that is read while it is written.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lines) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), text)
}

// exhaustDescriptors lets this process open no more until the returned function is called.
func exhaustDescriptors(t *testing.T) (end func()) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	none := limit
	lowest, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(lowest)
	none.Cur = uint64(lowest)
	set := func(to unix.Rlimit) {
		if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &to, nil); err != nil {
			t.Error(err)
		}
	}
	set(none)
	end = sync.OnceFunc(func() { set(limit) })
	t.Cleanup(end)
	return end
}

// TestClientsWaitForDescriptors: who connects while the daemon has no descriptor left is served when it has, and the log says so once.
func TestClientsWaitForDescriptors(t *testing.T) {
	var log lines
	path := startDaemonSaying(t, &log)
	conn, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(conn)
	end := exhaustDescriptors(t)
	if err := unix.Connect(conn, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	const lacking, over = "no more clients can be accepted", "clients are accepted again"
	for deadline := time.Now().Add(10 * time.Second); log.count(lacking) == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the log does not say that descriptors are lacking")
		}
	}
	time.Sleep(400 * time.Millisecond) // for what it might say again
	end()
	patience := unix.Timeval{Sec: 10}
	if err := unix.SetsockoptTimeval(conn, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(conn, fmt.Appendf(nil, `{"type":%q}`, "hello")); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 1000)
	n, err := unix.Read(conn, answer)
	for err == unix.EINTR { // the scheduler's signal: a read with a time limit is not restarted
		n, err = unix.Read(conn, answer)
	}
	if err != nil || !bytes.Contains(answer[:n], []byte("nonce")) {
		t.Errorf("the client that waited hears %q, %v", answer[:max(n, 0)], err)
	}
	requireUsable(t, path)
	if said, ended := log.count(lacking), log.count(over); said != 1 || ended != 1 {
		t.Errorf("the log says %d times that descriptors are lacking, and %d times that it is over", said, ended)
	}
}
