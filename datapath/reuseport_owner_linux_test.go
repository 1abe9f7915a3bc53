package datapath

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const shareChildEnv = "OVPN_GO_TEST_SHARE_CHILD"

// TestShareUDPOfAnotherUser shares the socket of a process that runs as somebody else.
func TestShareUDPOfAnotherUser(t *testing.T) {
	ns := freshNS(t)
	if os.Geteuid() != 0 {
		if os.Getenv("OVPN_GO_REQUIRE") != "" {
			t.Fatal("OVPN_GO_REQUIRE is set, but the test does not run as root")
		}
		t.Skip("running a process as another user needs root")
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs, mine := os.NewFile(uintptr(pair[0]), "child"), os.NewFile(uintptr(pair[1]), "parent")
	defer theirs.Close()
	defer mine.Close()
	// A test binary may lie where only its owner can look.
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	cmd := exec.Command("/proc/self/fd/4", "-test.run=^TestShareUDPChild$")
	cmd.Dir = "/"
	cmd.Env = []string{shareChildEnv + "=1"}
	cmd.ExtraFiles = []*os.File{theirs, self}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 54321, Gid: 54321, NoSetGroups: true}}
	if err := ns.Do(func() error {
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("child: %w\n%s", err, out)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	oob := make([]byte, unix.CmsgSpace(4))
	_, oobn, _, _, err := unix.Recvmsg(pair[1], make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(msgs) != 1 {
		t.Fatalf("control messages: %v, %v", msgs, err)
	}
	got, err := unix.ParseUnixRights(&msgs[0])
	if err != nil {
		t.Fatal(err)
	}
	client := os.NewFile(uintptr(got[0]), "client")
	defer client.Close()

	ours, info := share(t, client, 2)
	var st unix.Stat_t
	if err := unix.Fstat(ours[0], &st); err != nil || st.Uid != 54321 {
		t.Errorf("owner of our socket = %d, %v, want the client's", st.Uid, err)
	}
	checkSplit(t, ns, client, ours, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), info.LocalPort))
}

// TestShareUDPChild is no test but the other user's process: it opens a socket, hands it over and ends.
func TestShareUDPChild(t *testing.T) {
	if os.Getenv(shareChildEnv) == "" {
		return
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := bound("0.0.0.0:5194")(fd); err != nil {
		t.Fatal(err)
	}
	if err := unix.Sendmsg(3, []byte("x"), unix.UnixRights(fd), nil, 0); err != nil {
		t.Fatal(err)
	}
}
