package confine_test

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func init() { confined["landlock"] = landlocked }

// landlocked tries to take a descriptor from the process that started this one, before and after the mildest of
// Landlock's domains: one that forbids nothing but to execute programs.
func landlocked() any {
	runtime.LockOSThread() // a domain is the thread's
	take := func() error {
		pidfd, err := unix.PidfdOpen(os.Getppid(), 0)
		if err != nil {
			return err
		}
		defer unix.Close(pidfd)
		fd, err := unix.PidfdGetfd(pidfd, int(os.Stderr.Fd()), 0)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
	found := map[string]string{"free": fmt.Sprint(take())}
	rules := unix.LandlockRulesetAttr{Handled_access_fs: unix.LANDLOCK_ACCESS_FS_EXECUTE}
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&rules)), unsafe.Sizeof(rules.Handled_access_fs), 0)
	if errno != 0 {
		found["error"] = errno.Error()
		if errors.Is(errno, unix.ENOSYS) || errors.Is(errno, unix.EOPNOTSUPP) {
			found["error"] = "none"
		}
		return found
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		found["error"] = err.Error()
	}
	if errno := call(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0); errno != 0 {
		found["error"] = errno.Error()
	}
	found["in a domain"] = fmt.Sprint(take())
	return found
}

// TestLandlockForbidsToTakeDescriptors is why this package has nothing of Landlock: a process in a domain, whatever its
// rules, can't take the descriptors of one that is not in it, and that is how clients are answered. When a kernel comes
// where it can, this fails, and the daemon's files should be narrowed.
func TestLandlockForbidsToTakeDescriptors(t *testing.T) {
	needRoot(t)
	var got map[string]string
	run(t, "landlock", &got)
	if got["error"] == "none" {
		t.Skip("this kernel has no Landlock")
	}
	want := map[string]string{"free": "<nil>", "in a domain": unix.EPERM.Error()}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("descriptors taken (-want +got):\n%s", diff)
	}
}
