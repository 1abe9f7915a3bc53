package exec

import (
	"errors"
	"os"
	"runtime"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

func init() {
	// crowd has sockets replaced by several of its threads at a time, while others come and go, and so do epoll sets.
	roles["crowd"] = func(args []string) error {
		times, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		stop := make(chan bool)
		defer close(stop)
		for range 2 {
			go func() {
				for {
					ended := make(chan bool)
					go func() {
						defer close(ended)
						runtime.LockOSThread() // for good: the thread ends with the goroutine
						if set, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC); err == nil {
							unix.Close(set)
						}
					}()
					select {
					case <-ended:
					case <-stop:
						return
					}
				}
			}()
		}
		const askers = 3
		errs := make(chan error)
		for range askers {
			go func() { errs <- askOften(times) }()
		}
		for range askers {
			err = errors.Join(err, <-errs)
		}
		return err
	}
}

// askOften has a socket of its own replaced so many times.
func askOften(times int) error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	for range times {
		if err := askReplace(pair[0], 1); err != nil {
			return err
		}
		if err := expectRecordNow(pair[0]); err != nil {
			return err
		}
	}
	return nil
}

// Several threads have sockets replaced at a time, while others come and go, and epoll sets with them.
func TestReplaceInCrowd(t *testing.T) {
	const times = "10"
	mustSucceed(t, replacing(t), roleCommand("crowd", times)...)
}

// A thread that has ended since it was listed hides nothing of what the others have.
func TestEndedThreadsHideNothing(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	var st unix.Stat_t
	if err := unix.Fstat(pair[0], &st); err != nil {
		t.Fatal(err)
	}
	var ended int
	if err := onOwnThread(func() error { ended = unix.Gettid(); return nil }); err != nil {
		t.Fatal(err)
	}
	for statOf(ended) != "" {
		runtime.Gosched()
	}
	if has, err := (table{ended, os.Getpid()}).has(st.Ino); !has || err != nil {
		t.Error("the socket is not found")
	}
	if has, err := (table{ended, os.Getpid()}).has(1); has || err != nil {
		t.Error("a socket that nobody has is found")
	}
}
