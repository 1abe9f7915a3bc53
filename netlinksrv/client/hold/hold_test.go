package hold

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// Abstract names are anybody's: a holder that another user runs is not asked for anything.
func TestHolderOfAnotherUserIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("OVPN_GO_REQUIRE") != "" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	local := netip.MustParseAddrPort("127.0.0.1:40000")
	listening := make(chan error)
	go func() {
		runtime.LockOSThread() // and the thread ends with the goroutine
		const nobody = 65534
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, nobody, nobody, nobody); errno != 0 {
			listening <- errno
			return
		}
		l, err := net.ListenUnix("unixpacket", name(local))
		if err == nil {
			t.Cleanup(func() { l.Close() })
		}
		listening <- err
	}()
	if err := <-listening; err != nil {
		t.Fatal(err)
	}
	claim, err := Acquire("/nonexistent", local, 1, 1)
	if !errors.Is(err, unix.EPERM) {
		t.Errorf("Acquire: %v, want EPERM", err)
	}
	if claim != nil {
		claim.Close()
	}
}
