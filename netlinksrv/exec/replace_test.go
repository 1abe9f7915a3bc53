package exec

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv"
)

func init() {
	// replace has its descriptors replaced by one that reads as 7, and says in a request which.
	roles["replace"] = func(args []string) error {
		conn, err := openNetlink(0, unix.NETLINK_GENERIC)
		if err != nil {
			return err
		}
		ask := func(fd int, answer string) error {
			b := request(1, string(binary.NativeEndian.AppendUint32(nil, uint32(fd))))
			if err := toKernel(conn)(b); err != nil {
				return err
			}
			for range 2 {
				if _, err := unix.Read(conn, make([]byte, 100)); err != nil {
					return err
				}
			}
			got := make([]byte, 100)
			n, err := unix.Read(conn, got)
			return expect("the server's result", string(got[:n]), err, answer)
		}
		for _, arg := range args {
			number, err := strconv.Atoi(arg)
			if err != nil {
				return err
			}
			if ours, err := os.Readlink("/proc/self/fd/" + arg); err == nil && strings.HasPrefix(ours, "anon_inode:[event") {
				continue // the client's own Go runtime needs it
			}
			pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				return err
			}
			const elsewhere = 2000
			old, err := unix.FcntlInt(uintptr(pair[0]), unix.F_DUPFD, elsewhere)
			if err != nil {
				return err
			}
			other, err := unix.FcntlInt(uintptr(pair[1]), unix.F_DUPFD, elsewhere)
			if err != nil {
				return err
			}
			unix.Close(pair[0])
			unix.Close(pair[1])
			if err := unix.Dup3(old, number, unix.O_CLOEXEC); err != nil {
				return err
			}
			// The server has the old file as well, so that its registration would live on.
			set, err := unix.EpollCreate1(0)
			if err != nil {
				return err
			}
			if err := unix.EpollCtl(set, unix.EPOLL_CTL_ADD, number, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: 17, Pad: 18}); err != nil {
				return err
			}
			if err := expectEvent(set, 0, 0); err != nil {
				return err
			}
			if err := ask(number, "<nil>"); err != nil {
				return err
			}
			if err := expectEvent(set, 20000, unix.EPOLLIN); err != nil {
				return fmt.Errorf("descriptor %d: %w", number, err)
			}
			value := make([]byte, 8)
			if _, err := unix.Read(number, value); err != nil || value[0] != 7 {
				return fmt.Errorf("read %v: %w", value, err)
			}
			if _, err := unix.Write(other, []byte("for the old one")); err != nil {
				return err
			}
			if err := expectEvent(set, 0, 0); err != nil {
				return fmt.Errorf("descriptor %d is still watched for the old file: %w", number, err)
			}
			flags, err := unix.FcntlInt(uintptr(number), unix.F_GETFD, 0)
			if err := expect("F_GETFD", flags, err, unix.FD_CLOEXEC); err != nil {
				return err
			}
			flags, err = unix.FcntlInt(uintptr(old), unix.F_GETFD, 0)
			if err := expect("the duplicate's F_GETFD", flags, err, 0); err != nil {
				return err
			}
			if same, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(old)); err != nil || same != "anon_inode:[eventfd]" {
				return fmt.Errorf("the duplicate of descriptor %d is %s, %w", number, same, err)
			}
			unix.Close(old)
			unix.Close(other)
		}
		return ask(700, "EBADF")
	}
}

func TestReplace(t *testing.T) {
	s := newFakeServer()
	s.seen = func(task netlinksrv.Task, datagram []byte) {
		fd, err := unix.Eventfd(7, unix.EFD_CLOEXEC)
		if err != nil {
			t.Error(err)
			return
		}
		file := os.NewFile(uintptr(fd), "replacement")
		defer file.Close()
		old, err := task.File(int(int32(binary.NativeEndian.Uint32(datagram[16:]))))
		if err == nil {
			t.Cleanup(func() { old.Close() })
			err = task.Replace(inodeOf(t, old), file)
		}
		s.afterwards = []byte(fmt.Sprint(err))
		if errors.Is(err, unix.EBADF) {
			s.afterwards = []byte("EBADF")
		}
	}
	// Low numbers are those that the Go runtime is likely to use here.
	mustSucceed(t, s, roleCommand("replace", "5", "6", "7", "100", strconv.Itoa(runtimePoller(t, -1)), "800", "1500")...)
}

func inodeOf(t testing.TB, file *os.File) uint64 {
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		t.Error(err)
	}
	return st.Ino
}
