package exec

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv/client"
	"ovpn-go/netlinksrv/daemon/wire"
)

// A member that does not read loses what neither its pair nor the kernel's queue behind that has room for. Nobody waits for it, and once it
// reads it gets what there was, in order, and all that comes.
func TestMemberThatDoesNotRead(t *testing.T) {
	withShortPairs(t, "asleep-member")
}

// A member of the group of peers that does not read loses what its pair has no room for, without being told. Nobody waits for it, a list
// of the peers is right meanwhile, and once it reads it gets what there was, in order, and all that comes.
func TestListenerThatDoesNotRead(t *testing.T) { withShortPairs(t, "asleep-listener") }

// withShortPairs runs a role under the real server, where clients' pairs have room for little.
func withShortPairs(t *testing.T, role string) {
	t.Helper()
	defer func(size int) { pairBuffer = size }(pairBuffer)
	pairBuffer = 8192
	t.Setenv(wire.Variable, wire.None)
	withRealServer(t, roleCommand(role)...)
}

func init() {
	roles["asleep-member"] = func([]string) error {
		const first, last, later = 1000, 2000, 3000
		fd, err := openNetlink(unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: linkGroups}); err != nil {
			return err
		}
		if err := expectPair(fd, true); err != nil {
			return err
		}
		other, err := openNetlink(unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		if err := changeMTUs(other, first, last); err != nil {
			return err
		}
		var mtus []uint32
		for next := uint32(later); len(mtus) == 0 || mtus[len(mtus)-1] < later; next++ {
			if next == later+10000 {
				return fmt.Errorf("nothing is heard of changes after %d were", mtus)
			}
			more, err := heardMTUs(fd)
			if err != nil {
				return err
			}
			mtus = append(mtus, more...)
			if err := changeMTUs(other, next, next); err != nil {
				return err
			}
		}
		if !slices.IsSorted(mtus) {
			return fmt.Errorf("out of order: %d", mtus)
		}
		whole := 0
		for whole < len(mtus) && mtus[whole] == first+uint32(whole) {
			whole++
		}
		if whole < 10 || whole > last-first || mtus[whole] < later {
			return fmt.Errorf("changes to %d, where those from %d on were to be heard, up to one, and then those from %d on", mtus, first, later)
		}
		return nil
	}
	roles["asleep-listener"] = func([]string) error {
		// Each new peer of a link that has only one is the end of the one before.
		const peers = 2000
		c, err := client.Dial()
		if err != nil {
			return err
		}
		var asleep, awake *client.Monitor
		for _, m := range []**client.Monitor{&asleep, &awake} {
			if *m, err = client.OpenMonitor(); err != nil {
				return err
			}
		}
		if err := c.NewLink(client.LinkConfig{Name: "tun0"}); err != nil {
			return err
		}
		link, err := c.Link("tun0")
		if err != nil {
			return err
		}
		socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		next := func(m *client.Monitor) (uint32, error) {
			e, err := m.Next()
			if err == nil && (e.Kind != client.PeerDeleted || e.Reason != client.Teardown) {
				err = fmt.Errorf("%+v was announced", e)
			}
			return e.PeerID, err
		}
		add := func(id uint32) error {
			cfg := client.PeerConfig{ID: id, Socket: socket, Remote: netip.MustParseAddrPort("127.0.0.1:9")}
			if err := c.NewPeer(link.Index, cfg); err != nil || id == 0 {
				return err
			}
			got, err := next(awake)
			return expect("the listener that reads hears of the end of peer", got, err, id-1)
		}
		for id := range uint32(peers) {
			if err := add(id); err != nil {
				return err
			}
		}
		var heard []uint32
		for len(heard) == 0 || heard[len(heard)-1] != peers-1 {
			if len(heard) == 5 { // there is room now
				if err := add(peers); err != nil {
					return err
				}
				list, err := c.Peers(link.Index)
				if err != nil || len(list) != 1 || list[0].ID != peers {
					return fmt.Errorf("the peers are %+v, %v", list, err)
				}
			}
			id, err := next(asleep)
			if err != nil {
				return err
			}
			heard = append(heard, id)
		}
		last := len(heard) - 1
		for i, id := range heard[:last] {
			if id != uint32(i) {
				return fmt.Errorf("of the ends of the peers %d were heard", heard)
			}
		}
		if last >= peers-1 {
			return errors.New("nothing was lost")
		}
		return nil
	}
}

// changeMTUs changes the loopback interface's MTU to each value from first to last.
func changeMTUs(fd int, first, last uint32) error {
	for mtu := first; mtu <= last; mtu++ {
		if _, err := expectError(fd, setMTU(mtu, mtu), 0); err != nil {
			return fmt.Errorf("MTU %d: %w", mtu, err)
		}
	}
	return nil
}

// heardMTUs receives what there is of the loopback interface, and returns each MTU that is not the one before.
func heardMTUs(fd int) (mtus []uint32, err error) {
	buf := make([]byte, 32768)
	for {
		n, err := unix.Read(fd, buf)
		if err == unix.EAGAIN {
			return mtus, nil
		}
		if err != nil {
			return mtus, err
		}
		all, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			return mtus, err
		}
		for _, m := range all {
			attributes, err := syscall.ParseNetlinkRouteAttr(&m)
			if err != nil {
				return mtus, err
			}
			for _, a := range attributes {
				if a.Attr.Type != unix.IFLA_MTU {
					continue
				}
				if mtu := binary.NativeEndian.Uint32(a.Value); len(mtus) == 0 || mtus[len(mtus)-1] != mtu {
					mtus = append(mtus, mtu)
				}
			}
		}
	}
}
