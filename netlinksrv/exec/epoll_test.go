package exec

import (
	"os"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestParseRegistrations(t *testing.T) {
	tests := []struct {
		name, info string
		want       []registration
	}{
		{"none", "pos:\t0\nflags:\t02\nmnt_id:\t15\nino:\t1057", nil},
		{"two", "pos:\t0\nflags:\t02000002\nmnt_id:\t15\nino:\t1057\n" +
			"tfd:      768 events: 80000001 data: 1200000011  pos:0 ino:3f1 sdev:9\n" +
			"tfd:        5 events:       1d data: ffffffffffffffff  pos:0 ino:9a sdev:9\n",
			[]registration{
				{number: 768, events: unix.EPOLLIN | unix.EPOLLET, data: 18<<32 | 17, inode: 0x3f1},
				{number: 5, events: 0x1d, data: 1<<64 - 1, inode: 0x9a},
			}},
		{"before Linux 5.13", "tfd:        5 events:       19 data:                5\n", []registration{{number: 5, events: 0x19, data: 5}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := parseRegistrations([]byte(test.info))
			if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(registration{})); diff != "" {
				t.Errorf("registrations (-want +got):\n%s", diff)
			}
		})
	}
}

// The number of a registration may be one that the Go runtime needs in this process.
func TestReregisterAtANumberOfTheRuntime(t *testing.T) {
	expectReregistered(t, func(set int) int { return runtimePoller(t, set) })
}

// A daemon, which may not start a process, has epoll sets and eventfds of its own at numbers that clients use. It knows the runtime's.
func TestReregisterAtANumberOfOurs(t *testing.T) {
	defer func(numbers []int) { runtimesOwn = numbers }(runtimesOwn)
	runtimesOwn = []int{runtimePoller(t, -1)}
	if !mayBeRuntimes(runtimesOwn[0]) {
		t.Error("the runtime's own is not taken for that")
	}
	expectReregistered(t, func(set int) int {
		if mayBeRuntimes(set) {
			t.Error("an epoll set of ours is taken for the runtime's")
		}
		return set
	})
}

// expectReregistered moves a registration in a set at the number that at returns.
func expectReregistered(t *testing.T, at func(set int) int) {
	t.Helper()
	set, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(set)
	var files [2]int
	for i := range files {
		if files[i], err = unix.Eventfd(1, unix.EFD_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		defer unix.Close(files[i])
	}
	r := registration{number: at(set), events: unix.EPOLLIN, data: 18<<32 | 17}
	if err := atNumber(set, files[0], files[1], r); err != nil {
		t.Fatal(err)
	}
	if err := expectEvent(set, 0, unix.EPOLLIN); err != nil {
		t.Error(err)
	}
}

// runtimePoller returns the number of the runtime's epoll descriptor.
func runtimePoller(t *testing.T, not int) int {
	t.Helper()
	r, w, err := os.Pipe() // makes the runtime poll
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	sets, err := (&task{tid: os.Getpid(), alive: func() bool { return true }}).epollSets()
	if err != nil {
		t.Fatal(err)
	}
	for _, set := range sets {
		if set != not {
			return set
		}
	}
	t.Fatal("no epoll descriptor among " + strconv.Itoa(len(sets)))
	return -1
}
