package netlinksrv

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ovpn-go/peers"
	"ovpn-go/tun/netns"
)

// TestRewriteRoute: the kernel speaks of link 7 as a TUN interface, and the client shall not.
func TestRewriteRoute(t *testing.T) {
	littleEndian(t)
	s := testServer(t)
	addDevice(t, s, testIfindex, peers.MP)
	info := func(index uint32) ifinfo { return ifinfo{index: index} }
	name, mtu := ftext(unix.IFLA_IFNAME, "tun0"), f32(unix.IFLA_MTU, 1416)
	tun := fkind("tun", fplain(unix.IFLA_INFO_DATA, fraw(1, 1), fraw(2, 2)))
	ovpn := fkind("ovpn", fmode(1))
	slave := []field{ftext(4, "bridge"), fplain(5, fraw(1, 1))}
	msg := func(kind uint16, index uint32, fields ...field) []byte {
		return routeMessage(kind, unix.NLM_F_MULTI, info(index), fields...)
	}
	end := done(header{}, 1, nil, ackOptions{})
	join := slices.Concat[[]byte]
	for _, tt := range []struct {
		name     string
		in, want []byte
	}{
		{"RTM_NEWLINK", msg(unix.RTM_NEWLINK, 7, name, tun, mtu), msg(unix.RTM_NEWLINK, 7, name, ovpn, mtu)},
		{"RTM_DELLINK", msg(unix.RTM_DELLINK, 7, name, tun), msg(unix.RTM_DELLINK, 7, name, ovpn)},
		{"limit of the MTU", msg(unix.RTM_NEWLINK, 7, f32(unix.IFLA_MAX_MTU, 65535), tun),
			msg(unix.RTM_NEWLINK, 7, f32(unix.IFLA_MAX_MTU, 65451), ovpn)},
		{"no data", msg(unix.RTM_NEWLINK, 7, fkind("tun"), mtu), msg(unix.RTM_NEWLINK, 7, ovpn, mtu)},
		{"member of a bridge", msg(unix.RTM_NEWLINK, 7, fkind("tun", slave...), mtu),
			msg(unix.RTM_NEWLINK, 7, fkind("ovpn", append([]field{fmode(1)}, slave...)...), mtu)},
		{"no link info", msg(unix.RTM_NEWLINK, 7, name, mtu), msg(unix.RTM_NEWLINK, 7, name, mtu)},
		{"another link", msg(unix.RTM_NEWLINK, 8, name, tun), msg(unix.RTM_NEWLINK, 8, name, tun)},
		{"another message", msg(unix.RTM_NEWADDR, 7, name, tun), msg(unix.RTM_NEWADDR, 7, name, tun)},
		{"several", join(msg(unix.RTM_NEWLINK, 1, name), msg(unix.RTM_NEWLINK, 7, name, tun), msg(unix.RTM_NEWLINK, 8, tun), end),
			join(msg(unix.RTM_NEWLINK, 1, name), msg(unix.RTM_NEWLINK, 7, name, ovpn), msg(unix.RTM_NEWLINK, 8, tun), end)},
		{"two of ours", join(msg(unix.RTM_NEWLINK, 7, tun), msg(unix.RTM_DELLINK, 7, tun)),
			join(msg(unix.RTM_NEWLINK, 7, ovpn), msg(unix.RTM_DELLINK, 7, ovpn))},
		{"rubbish behind", append(msg(unix.RTM_NEWLINK, 7, tun), 1, 2, 3), append(msg(unix.RTM_NEWLINK, 7, ovpn), 1, 2, 3)},
		{"empty", nil, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := s.RewriteRoute(homeID(t), tt.in)
			if diff := cmp.Diff(hexLines([][]byte{tt.want}), hexLines([][]byte{got})); diff != "" {
				t.Errorf("datagram (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("another namespace", func(t *testing.T) {
		in := msg(unix.RTM_NEWLINK, 7, name, tun)
		if got := s.RewriteRoute(netns.ID{Ino: 1}, in); &got[0] != &in[0] {
			t.Errorf("datagram was changed:\n%s", hexLines([][]byte{got}))
		}
	})
	t.Run("bytes of the kernel module", func(t *testing.T) {
		var b builder
		b.linkInfo(attribute{kind: unix.IFLA_LINKINFO}, peers.MP)
		want := unhex(t, "1c00 1200  0900 0100 6f76706e00 000000  0c00 0200 0500 0100 01 000000")
		if diff := cmp.Diff(want, b.buf); diff != "" {
			t.Errorf("IFLA_LINKINFO (-want +got):\n%s", diff)
		}
	})
}
