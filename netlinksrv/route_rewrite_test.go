package netlinksrv

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv/uapi"
	"ovpn-go/peers"
	"ovpn-go/tun/netns"
)

// TestRewriteRoute: the kernel speaks of link 7 as a TUN interface, and the client shall not.
func TestRewriteRoute(t *testing.T) {
	littleEndian(t)
	s := testServer(t)
	addDevice(t, s, testIfindex, peers.MP)
	const p2pLink = testIfindex + 2
	addDevice(t, s, p2pLink, peers.P2P)
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
		{"queues", msg(unix.RTM_NEWLINK, 7, tun, f32(unix.IFLA_NUM_TX_QUEUES, 256), f32(unix.IFLA_NUM_RX_QUEUES, 256)),
			msg(unix.RTM_NEWLINK, 7, ovpn, f32(unix.IFLA_NUM_TX_QUEUES, 1), f32(unix.IFLA_NUM_RX_QUEUES, 1))},
		{"carrier of an MP link", msg(unix.RTM_NEWLINK, 7, tun, f32(unix.IFLA_CARRIER_CHANGES, 3), f32(unix.IFLA_CARRIER_DOWN_COUNT, 2)),
			msg(unix.RTM_NEWLINK, 7, ovpn, f32(unix.IFLA_CARRIER_CHANGES, 3), f32(unix.IFLA_CARRIER_DOWN_COUNT, 2))},
		{"carrier of a P2P link", msg(unix.RTM_NEWLINK, p2pLink, tun, f32(unix.IFLA_CARRIER_CHANGES, 3), f32(unix.IFLA_CARRIER_UP_COUNT, 1), f32(unix.IFLA_CARRIER_DOWN_COUNT, 2)),
			msg(unix.RTM_NEWLINK, p2pLink, fkind("ovpn", fmode(0)), f32(unix.IFLA_CARRIER_CHANGES, 2), f32(unix.IFLA_CARRIER_UP_COUNT, 1), f32(unix.IFLA_CARRIER_DOWN_COUNT, 1))},
		{"carrier of a P2P link before it was taken off", msg(unix.RTM_NEWLINK, p2pLink, tun, f32(unix.IFLA_CARRIER_CHANGES, 0)),
			msg(unix.RTM_NEWLINK, p2pLink, fkind("ovpn", fmode(0)), f32(unix.IFLA_CARRIER_CHANGES, 0))},
		{"not a TUN interface", msg(unix.RTM_NEWLINK, 7, fkind("veth"), mtu), msg(unix.RTM_NEWLINK, 7, fkind("veth"), mtu)},
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
			got := s.RewriteRoute(homeID(t), &LinkDumps{}, tt.in)
			if diff := cmp.Diff(hexLines([][]byte{tt.want}), hexLines([][]byte{got})); diff != "" {
				t.Errorf("datagram (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("another namespace", func(t *testing.T) {
		in := msg(unix.RTM_NEWLINK, 7, name, tun)
		if got := s.RewriteRoute(netns.ID{Ino: 1}, &LinkDumps{}, in); &got[0] != &in[0] {
			t.Errorf("datagram was changed:\n%s", hexLines([][]byte{got}))
		}
	})
	t.Run("bytes of the kernel module", func(t *testing.T) {
		var b builder
		b.linkInfo(attribute{kind: unix.IFLA_LINKINFO}, looks{mode: peers.MP, kind: uapi.LinkKind})
		want := unhex(t, "1c00 1200  0900 0100 6f76706e00 000000  0c00 0200 0500 0100 01 000000")
		if diff := cmp.Diff(want, b.buf); diff != "" {
			t.Errorf("IFLA_LINKINFO (-want +got):\n%s", diff)
		}
	})
}

// TestFilteredDumps: a list of the links of one kind has none of another.
func TestFilteredDumps(t *testing.T) {
	littleEndian(t)
	s := testServer(t)
	addDevice(t, s, testIfindex, peers.MP)
	const multi = unix.NLM_F_MULTI
	link := func(flags uint16, index uint32, kind field) []byte {
		return routeMessage(unix.RTM_NEWLINK, flags, ifinfo{index: index}, kind)
	}
	ovpn := fkind("ovpn", fmode(1))
	end := done(header{seq: testSeq}, 1, nil, ackOptions{})
	all := slices.Concat(link(multi, 7, fkind("tun")), link(multi, 8, fkind("tun")), link(multi, 9, fkind("veth")), end)
	const flagged = multi | unix.NLM_F_DUMP_FILTERED
	ask := func(fields ...field) []byte {
		return routeMessage(unix.RTM_GETLINK, requestFlags|unix.NLM_F_DUMP, ifinfo{}, fields...)
	}
	for _, tt := range []struct {
		name     string
		ask      []byte
		in, want []byte
	}{
		{"kind ovpn", ask(fkind("ovpn")), all, slices.Concat(link(flagged, 7, ovpn), end)},
		{"kind ovpn, of a bridge", ask(fkind("ovpn"), f32(unix.IFLA_MASTER, 3)), link(flagged, 7, fkind("tun")), link(flagged, 7, ovpn)},
		{"kind ovpn, none left", ask(fkind("ovpn")), link(multi, 8, fkind("tun")), nil},
		{"kind tun", ask(fkind("tun")), slices.Concat(link(flagged, 7, fkind("tun")), link(flagged, 8, fkind("tun")), end),
			slices.Concat(link(flagged, 8, fkind("tun")), end)},
		{"kind veth", ask(fkind("veth")), slices.Concat(link(flagged, 9, fkind("veth")), end), slices.Concat(link(flagged, 9, fkind("veth")), end)},
		{"all", ask(), all, slices.Concat(link(multi, 7, ovpn), link(multi, 8, fkind("tun")), link(multi, 9, fkind("veth")), end)},
		{"no dump", routeMessage(unix.RTM_GETLINK, requestFlags, ifinfo{}, fkind("ovpn")), link(0, 8, fkind("tun")), link(0, 8, fkind("tun"))},
		{"announced meanwhile", ask(fkind("ovpn")), link(0, 8, fkind("tun")), link(0, 8, fkind("tun"))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var dumps LinkDumps
			dumps.Ask(tt.ask)
			got := s.RewriteRoute(homeID(t), &dumps, tt.in)
			if diff := cmp.Diff(hexLines([][]byte{tt.want}), hexLines([][]byte{got})); diff != "" {
				t.Errorf("datagram (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("another dump of the same number", func(t *testing.T) {
		var dumps LinkDumps
		dumps.Ask(ask(fkind("tun")))
		s.RewriteRoute(homeID(t), &dumps, end)
		if got := s.RewriteRoute(homeID(t), &dumps, all); len(got) <= len(all)-16 {
			t.Errorf("a dump that has ended still filters:\n%s", hexLines([][]byte{got}))
		}
	})
	t.Run("never more than a socket can have asked for", func(t *testing.T) {
		var dumps LinkDumps
		request := ask(fkind("ovpn"))
		for seq := range uint32(1000) {
			nativeEndian.PutUint32(request[8:], seq)
			dumps.Ask(request)
		}
		if n := len(dumps.kinds); n > 64 {
			t.Errorf("%d dumps are remembered", n)
		}
	})
}

// TestAnnouncedLink: a new link is announced once, as it is when it is complete.
func TestAnnouncedLink(t *testing.T) {
	littleEndian(t)
	s := testServer(t)
	addDevice(t, s, testIfindex, peers.P2P)
	segments := func(n uint32) field { return f32(unix.IFLA_GSO_MAX_SEGS, n) }
	length := func(n uint32) field { return f32(unix.IFLA_TXQLEN, n) }
	carrier := func(on byte) field { return fraw(unix.IFLA_CARRIER, on) }
	state := func(n byte) field { return fraw(unix.IFLA_OPERSTATE, n) }
	tun, ovpn := fkind("tun"), fkind("ovpn", fmode(0))
	msg := func(seq uint32, info ifinfo, fields ...field) []byte {
		b := routeMessage(unix.RTM_NEWLINK, 0, info, fields...)
		nativeEndian.PutUint32(b[8:], seq)
		return b
	}
	const all = ^uint32(0)
	for _, tt := range []struct {
		name     string
		in, want []byte
	}{
		{"a TUN interface appears", msg(0, ifinfo{7, 0, all}, tun, length(500), segments(65535)), nil},
		{"it is complete", msg(0, ifinfo{7, 0, 0}, tun, length(1000), segments(65535)), msg(0, ifinfo{7, 0, all}, ovpn, length(1000), segments(65535))},
		{"later changes", msg(0, ifinfo{7, 0, 0}, tun, length(500), segments(45)), msg(0, ifinfo{7, 0, 0}, ovpn, length(500), segments(45))},
		{"an answer", msg(1, ifinfo{7, 0, 0}, tun, length(500), segments(65535)), msg(1, ifinfo{7, 0, 0}, ovpn, length(500), segments(65535))},
		{"another TUN interface", msg(0, ifinfo{8, 0, all}, tun, length(500), segments(65535)), msg(0, ifinfo{8, 0, all}, tun, length(500), segments(65535))},
		{"up without carrier", msg(0, ifinfo{7, unix.IFF_UP | unix.IFF_RUNNING, 1}, tun, state(0), carrier(0)),
			msg(0, ifinfo{7, unix.IFF_UP, 1}, ovpn, state(2), carrier(0))},
		{"up with carrier", msg(0, ifinfo{7, unix.IFF_UP | unix.IFF_RUNNING, 1}, tun, state(6), carrier(1)),
			msg(0, ifinfo{7, unix.IFF_UP | unix.IFF_RUNNING, 1}, ovpn, state(6), carrier(1))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := s.RewriteRoute(homeID(t), &LinkDumps{}, tt.in)
			if diff := cmp.Diff(hexLines([][]byte{tt.want}), hexLines([][]byte{got})); diff != "" {
				t.Errorf("datagram (-want +got):\n%s", diff)
			}
		})
	}
}
