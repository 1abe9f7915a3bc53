package netlinksrv

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ovpn-go/datapath"
	"ovpn-go/netlinksrv/uapi"
	"ovpn-go/peers"
)

// peerDevice has peer 1 (UDP) and, on an MP device, peer 2 (TCP).
func peerDevice(t *testing.T, mode peers.Mode) (*fakeDevice, *client) {
	t.Helper()
	s := testServer(t)
	d := addDevice(t, s, testIfindex, mode)
	one := datapath.PeerInfo{ID: 1, TxID: 10, Remote: netip.MustParseAddrPort("10.0.0.1:1194")}
	d.peers = []*fakePeer{{info: one}}
	if mode == peers.MP {
		d.peers[0].info.VPN4 = netip.MustParseAddr("10.8.0.1")
		d.peers[0].info.VPN6 = netip.MustParseAddr("fd00::1")
		d.peers = append(d.peers, &fakePeer{info: datapath.PeerInfo{
			ID: 2, TxID: 2, TCP: true, VPN4: netip.MustParseAddr("10.8.0.2"), VPN6: netip.MustParseAddr("fd00::2"),
		}})
	}
	return d, newExplainedClient(t, s)
}

// TestPeerOps has one case and more for each check of the peer operations.
func TestPeerOps(t *testing.T) {
	const nestAt = firstAttribute + 8
	peer := func(fields ...field) field { return fnest(uapi.AttrPeer, fields...) }
	missing := func(number, nest uint32) refusal {
		return refusal{Errno: unix.EINVAL, MissType: number, MissNest: nest}
	}
	refuse := func(errno unix.Errno, text string) refusal { return refusal{Errno: errno, Text: "ovpn: " + text} }
	inval := func(text string) refusal { return refuse(unix.EINVAL, text) }
	id, tx := f32(uapi.PeerID, 9), f32(uapi.PeerTxID, 90)
	remote4, remote6 := faddr(uapi.PeerRemoteIPv4, "192.0.2.1"), faddr(uapi.PeerRemoteIPv6, "2001:db8::1")
	mapped := fmapped(uapi.PeerRemoteIPv6, "192.0.2.1")
	local4, local6 := faddr(uapi.PeerLocalIPv4, "192.0.2.2"), faddr(uapi.PeerLocalIPv6, "2001:db8::2")
	localMapped := fmapped(uapi.PeerLocalIPv6, "192.0.2.2")
	prt, scope := f16(uapi.PeerRemotePort, 1194), f32(uapi.PeerRemoteScopeID, 0)
	udp, tcp := f32(uapi.PeerSocket, udpFD), f32(uapi.PeerSocket, tcpFD)
	vpn4 := func(addr string) field { return faddr(uapi.PeerVPNIPv4, addr) }
	vpn6 := func(addr string) field { return faddr(uapi.PeerVPNIPv6, addr) }

	const (
		p2  = "cannot specify both remote IPv4 or IPv6 address"
		p3  = "cannot specify remote port without IP address"
		p4  = "cannot specify remote IP address without port"
		p5  = "cannot specify local IPv4 address without remote"
		p6  = "cannot specify local IPV6 address without remote"
		p7  = "mismatching local and remote address families"
		p8  = "cannot specify scope id without remote IPv6 address"
		p9  = "unexpected VPN IP in P2P mode"
		p10 = "keepalive interval and timeout are required together"
		a1  = "at least one VPN IP must be configured in MP mode"
		a2  = "VPN IPv4 address must be valid unicast or any"
		a3  = "VPN IPv6 address must be valid unicast or any"
		s5  = "unexpected remote IP address with TCP socket"
		s6  = "VPN IP is already assigned to another peer"
	)
	type row struct {
		name  string
		mode  peers.Mode
		req   []byte
		fails map[string]error
		want  refusal
	}
	rows := []row{
		{"N1", peers.P2P, ask(uapi.CmdPeerNew), nil, missing(uapi.AttrPeer, 0)},
		{"S1", peers.P2P, ask(uapi.CmdPeerSet), nil, missing(uapi.AttrPeer, 0)},
		{"G1", peers.P2P, ask(uapi.CmdPeerGet), nil, missing(uapi.AttrPeer, 0)},
		{"D1", peers.P2P, ask(uapi.CmdPeerDel), nil, missing(uapi.AttrPeer, 0)},
		{"G2", peers.P2P, ask(uapi.CmdPeerGet, peer(remote4)), nil, missing(uapi.PeerID, nestAt)},
		{"D2", peers.P2P, ask(uapi.CmdPeerDel, peer()), nil, missing(uapi.PeerID, nestAt)},
		{"G3", peers.P2P, ask(uapi.CmdPeerGet, peer(tx, f32(uapi.PeerID, 1), remote4)), nil, inval("unexpected attribute 2")},
		{"G3 last attribute", peers.P2P, ask(uapi.CmdPeerGet, peer(f32(uapi.PeerID, 1), tx)), nil, inval("unexpected attribute 24")},
		{"G3 before G4", peers.P2P, ask(uapi.CmdPeerGet, peer(id, f32(uapi.PeerVPNRxBytes, 0))), nil, inval("unexpected attribute 16")},
		{"G4", peers.P2P, ask(uapi.CmdPeerGet, peer(id)), nil, refuse(unix.ENOENT, "cannot find peer with id 9")},
		{"D3", peers.P2P, ask(uapi.CmdPeerDel, peer(id)), nil, refuse(unix.ENOENT, "cannot find peer with id 9")},
		{"device gone", peers.P2P, ask(uapi.CmdPeerDel, peer(id)), map[string]error{"DeletePeer": datapath.ErrDeviceGone},
			refuse(unix.ENODEV, "ifindex does not match any interface")},

		{"N2", peers.P2P, ask(uapi.CmdPeerNew, peer(id, remote4, prt)), nil, missing(uapi.PeerSocket, nestAt)},
		{"N2 before A1", peers.MP, ask(uapi.CmdPeerNew, peer(id, remote4, prt)), nil, missing(uapi.PeerSocket, nestAt)},
		{"A1", peers.MP, ask(uapi.CmdPeerNew, peer(id, udp, remote4, prt)), nil, inval(a1)},
		{"A1 unspecified", peers.MP, ask(uapi.CmdPeerNew, peer(id, udp, vpn4("0.0.0.0"), vpn6("::"))), nil, inval(a1)},
		{"A1 before N4", peers.MP, ask(uapi.CmdPeerNew, peer(id, f32(uapi.PeerSocket, noFD))), nil, inval(a1)},
		{"A2 multicast", peers.MP, ask(uapi.CmdPeerNew, peer(id, udp, vpn4("224.0.0.1"))), nil, refuse(unix.EADDRNOTAVAIL, a2)},
		{"A2 highest multicast", peers.MP, ask(uapi.CmdPeerNew, peer(id, udp, vpn4("239.255.255.255"))), nil, refuse(unix.EADDRNOTAVAIL, a2)},
		{"A2 broadcast", peers.MP, ask(uapi.CmdPeerNew, peer(id, udp, vpn4("255.255.255.255"))), nil, refuse(unix.EADDRNOTAVAIL, a2)},
		{"A2 loopback", peers.MP, ask(uapi.CmdPeerNew, peer(id, udp, vpn4("127.255.0.1"))), nil, refuse(unix.EADDRNOTAVAIL, a2)},
		{"A2 before A3", peers.MP, ask(uapi.CmdPeerNew, peer(id, udp, vpn6("::1"), vpn4("127.0.0.1"))), nil, refuse(unix.EADDRNOTAVAIL, a2)},
		{"A3 multicast", peers.MP, ask(uapi.CmdPeerNew, peer(id, udp, vpn6("ff02::1"))), nil, refuse(unix.EADDRNOTAVAIL, a3)},
		{"A3 loopback", peers.MP, ask(uapi.CmdPeerNew, peer(id, udp, vpn6("::1"))), nil, refuse(unix.EADDRNOTAVAIL, a3)},
		{"A3 mapped", peers.MP, ask(uapi.CmdPeerNew, peer(id, udp, fmapped(uapi.PeerVPNIPv6, "10.8.0.9"))), nil, refuse(unix.EADDRNOTAVAIL, a3)},
		{"A3 compatible", peers.MP, ask(uapi.CmdPeerNew, peer(id, udp, vpn6("::10.8.0.9"))), nil, refuse(unix.EADDRNOTAVAIL, a3)},

		{"N4 no descriptor", peers.P2P, ask(uapi.CmdPeerNew, peer(id, f32(uapi.PeerSocket, noFD))), nil,
			refuse(unix.ENOTSOCK, "cannot lookup peer socket (fd=99): -9")},
		{"N4 negative descriptor", peers.P2P, ask(uapi.CmdPeerNew, peer(id, f32(uapi.PeerSocket, 0xffffffff))), nil,
			refuse(unix.ENOTSOCK, "cannot lookup peer socket (fd=4294967295): -9")},
		{"N4 not a socket", peers.P2P, ask(uapi.CmdPeerNew, peer(id, f32(uapi.PeerSocket, plainFD))), nil,
			refuse(unix.ENOTSOCK, "cannot lookup peer socket (fd=13): -88")},
		{"N5", peers.P2P, ask(uapi.CmdPeerNew, peer(id, udp)), nil, inval("missing remote IP address for UDP socket")},
		{"N6", peers.P2P, ask(uapi.CmdPeerNew, peer(id, tcp, remote4, prt)), nil, inval("unexpected remote IP address with TCP socket")},
		{"N7 protocol", peers.P2P, ask(uapi.CmdPeerNew, peer(id, f32(uapi.PeerSocket, rawFD))), nil,
			refuse(unix.ENOTSOCK, "cannot encapsulate socket: -95")},
		{"N7 busy", peers.P2P, ask(uapi.CmdPeerNew, peer(id, udp, remote4, prt)),
			map[string]error{"NewPeer": &datapath.AttachError{Errno: unix.EBUSY}},
			refuse(unix.ENOTSOCK, "cannot encapsulate socket: -16")},
		{"N9", peers.P2P, ask(uapi.CmdPeerNew, peer(id, udp, remote4, prt)), map[string]error{"NewPeer": datapath.ErrDeviceGone},
			refuse(unix.ENODEV, "cannot add new peer (id=9) to hashtable: -19")},
		{"N10", peers.MP, ask(uapi.CmdPeerNew, peer(f32(uapi.PeerID, 1), udp, remote4, prt, vpn4("10.8.0.9"))), nil,
			refuse(unix.EEXIST, "cannot add new peer (id=1) to hashtable: -17")},
		{"N11 IPv4", peers.MP, ask(uapi.CmdPeerNew, peer(id, udp, remote4, prt, vpn4("10.8.0.2"))), nil,
			refuse(unix.EADDRINUSE, "cannot add new peer (id=9) to hashtable: -98")},
		{"N11 IPv6", peers.MP, ask(uapi.CmdPeerNew, peer(id, udp, remote4, prt, vpn6("fd00::2"))), nil,
			refuse(unix.EADDRINUSE, "cannot add new peer (id=9) to hashtable: -98")},
		{"N3 any other errno", peers.P2P, ask(uapi.CmdPeerNew, peer(id, udp, remote4, prt)), map[string]error{"NewPeer": unix.EIO},
			refuse(unix.EIO, "cannot create new peer object for peer 9: -5")},
		{"N3 no descriptors left", peers.P2P, ask(uapi.CmdPeerNew, peer(id, udp, remote4, prt)), map[string]error{"NewPeer": unix.EMFILE},
			refuse(unix.ENOBUFS, "cannot create new peer object for peer 9: -105")},
		{"N3 no errno", peers.P2P, ask(uapi.CmdPeerNew, peer(id, udp, remote4, prt)), map[string]error{"NewPeer": errors.New("?")},
			refuse(unix.EINVAL, "cannot create new peer object for peer 9: -22")},

		{"S4", peers.MP, ask(uapi.CmdPeerSet, peer(id)), nil, refuse(unix.ENOENT, "cannot find peer with id 9")},
		{"S4 before S8", peers.MP, ask(uapi.CmdPeerSet, peer(id, vpn4("127.0.0.1"))), nil, refuse(unix.ENOENT, "cannot find peer with id 9")},
		{"S5", peers.MP, ask(uapi.CmdPeerSet, peer(f32(uapi.PeerID, 2), remote4, prt)), nil, inval(s5)},
		{"S5 before S8", peers.MP, ask(uapi.CmdPeerSet, peer(f32(uapi.PeerID, 2), remote4, prt, vpn4("127.0.0.1"))), nil, inval(s5)},
		{"S6", peers.MP, ask(uapi.CmdPeerSet, peer(f32(uapi.PeerID, 2), vpn4("10.8.0.1"))), nil, refuse(unix.EADDRINUSE, s6)},
		{"S6 before S8", peers.MP, ask(uapi.CmdPeerSet, peer(f32(uapi.PeerID, 2), vpn4("10.8.0.1"), vpn6("::1"))), nil, refuse(unix.EADDRINUSE, s6)},
		{"S7", peers.MP, ask(uapi.CmdPeerSet, peer(f32(uapi.PeerID, 2), vpn6("fd00::1"))), nil, refuse(unix.EADDRINUSE, s6)},
		{"S7 before S8", peers.MP, ask(uapi.CmdPeerSet, peer(f32(uapi.PeerID, 2), vpn6("fd00::1"), vpn4("127.0.0.1"))), nil, refuse(unix.EADDRINUSE, s6)},
		{"S8 nothing left", peers.MP, ask(uapi.CmdPeerSet, peer(f32(uapi.PeerID, 1), vpn4("0.0.0.0"), vpn6("::"))), nil, inval(a1)},
		{"S8 IPv4", peers.MP, ask(uapi.CmdPeerSet, peer(f32(uapi.PeerID, 1), vpn4("127.0.0.1"))), nil, refuse(unix.EADDRNOTAVAIL, a2)},
		{"S8 IPv6", peers.MP, ask(uapi.CmdPeerSet, peer(f32(uapi.PeerID, 1), vpn6("ff02::1"))), nil, refuse(unix.EADDRNOTAVAIL, a3)},
		{"S3", peers.MP, ask(uapi.CmdPeerSet, peer(f32(uapi.PeerID, 1), udp)), nil,
			refusal{Errno: unix.EINVAL, Text: "Unsupported attribute", Offset: nestAt + 12}},
	}
	// P1 to P10 are the same for both operations. The socket, which would be missed later, is not there.
	for _, op := range []struct {
		name string
		cmd  uint8
	}{{"PEER_NEW ", uapi.CmdPeerNew}, {"PEER_SET ", uapi.CmdPeerSet}} {
		for _, r := range []struct {
			name   string
			mode   peers.Mode
			fields []field
			want   refusal
		}{
			{"P1", peers.P2P, []field{remote4, remote6}, missing(uapi.PeerID, nestAt)},
			{"P2", peers.P2P, []field{id, remote4, remote6, prt}, inval(p2)},
			{"P2 before P4", peers.P2P, []field{id, remote4, remote6}, inval(p2)},
			{"P3", peers.P2P, []field{id, prt}, inval(p3)},
			{"P3 before P5", peers.P2P, []field{id, prt, local4}, inval(p3)},
			{"P4 IPv4", peers.P2P, []field{id, remote4}, inval(p4)},
			{"P4 IPv6", peers.P2P, []field{id, remote6}, inval(p4)},
			{"P5", peers.P2P, []field{id, local4}, inval(p5)},
			{"P5 other family", peers.P2P, []field{id, remote6, prt, local4}, inval(p5)},
			{"P5 mapped is not enough", peers.P2P, []field{id, mapped, prt, local4}, inval(p5)},
			{"P6", peers.P2P, []field{id, local6}, inval(p6)},
			{"P6 other family", peers.P2P, []field{id, remote4, prt, local6}, inval(p6)},
			{"P5 before P6", peers.P2P, []field{id, local6, local4}, inval(p5)},
			{"P7 mapped remote", peers.P2P, []field{id, mapped, prt, local6}, inval(p7)},
			{"P7 mapped local", peers.P2P, []field{id, remote6, prt, localMapped}, inval(p7)},
			{"P7 before P8", peers.P2P, []field{id, mapped, prt, local6, scope}, inval(p7)},
			{"P8", peers.P2P, []field{id, scope}, inval(p8)},
			{"P8 IPv4", peers.P2P, []field{id, remote4, prt, scope}, inval(p8)},
			{"P8 mapped", peers.P2P, []field{id, mapped, prt, localMapped, scope}, inval(p8)},
			{"P8 before P9", peers.P2P, []field{id, scope, vpn4("10.8.0.9")}, inval(p8)},
			{"P9 IPv4", peers.P2P, []field{id, vpn4("10.8.0.9")}, inval(p9)},
			{"P9 IPv6, even unspecified", peers.P2P, []field{id, vpn6("::")}, inval(p9)},
			{"P10 interval", peers.P2P, []field{id, f32(uapi.PeerKeepaliveInterval, 1)}, inval(p10)},
			{"P10 timeout", peers.P2P, []field{id, f32(uapi.PeerKeepaliveTimeout, 0)}, inval(p10)},
			{"P9 before P10", peers.P2P, []field{id, vpn6("fd00::9"), f32(uapi.PeerKeepaliveTimeout, 0)}, inval(p9)},
		} {
			rows = append(rows, row{op.name + r.name, r.mode, ask(op.cmd, peer(r.fields...)), nil, r.want})
		}
	}
	for _, tt := range rows {
		t.Run(tt.name, func(t *testing.T) {
			d, c := peerDevice(t, tt.mode)
			if tt.fails != nil {
				d.fails = tt.fails
			}
			before := d.state()
			if diff := cmp.Diff(tt.want, c.outcome(tt.req)); diff != "" {
				t.Errorf("refusal (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(before, d.state()); diff != "" {
				t.Errorf("a refused request changed the device (-before +after):\n%s", diff)
			}
		})
	}
}

// TestPeersChange has what PEER_NEW, PEER_SET and PEER_DEL do when they succeed.
func TestPeersChange(t *testing.T) {
	one := datapath.PeerInfo{
		ID: 1, TxID: 10, Remote: netip.MustParseAddrPort("10.0.0.1:1194"),
		VPN4: netip.MustParseAddr("10.8.0.1"), VPN6: netip.MustParseAddr("fd00::1"),
	}
	two := datapath.PeerInfo{
		ID: 2, TxID: 2, TCP: true, VPN4: netip.MustParseAddr("10.8.0.2"), VPN6: netip.MustParseAddr("fd00::2"),
	}
	with := func(p datapath.PeerInfo, change func(*datapath.PeerInfo)) datapath.PeerInfo {
		change(&p)
		return p
	}
	port, udp := f16(uapi.PeerRemotePort, 1194), f32(uapi.PeerSocket, udpFD)
	keepalive := []field{f32(uapi.PeerKeepaliveInterval, 10), f32(uapi.PeerKeepaliveTimeout, 60)}
	for _, tt := range []struct {
		name string
		req  []byte
		want []datapath.PeerInfo
	}{
		{"PEER_NEW IPv4", ask(uapi.CmdPeerNew, fnest(uapi.AttrPeer, append(keepalive, f32(uapi.PeerID, 3), udp, port, faddr(uapi.PeerRemoteIPv4, "192.0.2.1"),
			faddr(uapi.PeerLocalIPv4, "192.0.2.2"), faddr(uapi.PeerVPNIPv4, "10.8.0.3"), f32(uapi.PeerTxID, 30))...)),
			[]datapath.PeerInfo{one, two, {
				ID: 3, TxID: 30, Remote: netip.MustParseAddrPort("192.0.2.1:1194"), Local: netip.MustParseAddr("192.0.2.2"),
				VPN4: netip.MustParseAddr("10.8.0.3"), Keepalive: peers.Keepalive{Interval: 10, Timeout: 60},
			}}},
		{"PEER_NEW IPv6", ask(uapi.CmdPeerNew, fnest(uapi.AttrPeer, f32(uapi.PeerID, 3), udp, port, faddr(uapi.PeerRemoteIPv6, "fe80::1"),
			f32(uapi.PeerRemoteScopeID, 4), faddr(uapi.PeerLocalIPv6, "fe80::2"), faddr(uapi.PeerVPNIPv6, "fd00::3"), faddr(uapi.PeerVPNIPv4, "0.0.0.0"))),
			[]datapath.PeerInfo{one, two, {
				ID: 3, TxID: 3, Remote: netip.MustParseAddrPort("[fe80::1]:1194"), ScopeID: 4, Local: netip.MustParseAddr("fe80::2"),
				VPN6: netip.MustParseAddr("fd00::3"),
			}}},
		{"PEER_NEW mapped", ask(uapi.CmdPeerNew, fnest(uapi.AttrPeer, f32(uapi.PeerID, 3), udp, port, fmapped(uapi.PeerRemoteIPv6, "192.0.2.1"),
			fmapped(uapi.PeerLocalIPv6, "192.0.2.2"), faddr(uapi.PeerVPNIPv4, "240.0.0.1"))),
			[]datapath.PeerInfo{one, two, {
				ID: 3, TxID: 3, Remote: netip.MustParseAddrPort("192.0.2.1:1194"), Local: netip.MustParseAddr("192.0.2.2"),
				VPN4: netip.MustParseAddr("240.0.0.1"),
			}}},
		{"PEER_NEW unspecified local address", ask(uapi.CmdPeerNew, fnest(uapi.AttrPeer, f32(uapi.PeerID, 3), udp, port,
			faddr(uapi.PeerRemoteIPv4, "192.0.2.1"), faddr(uapi.PeerLocalIPv4, "0.0.0.0"), faddr(uapi.PeerVPNIPv6, "fe80::3"))),
			[]datapath.PeerInfo{one, two, {
				ID: 3, TxID: 3, Remote: netip.MustParseAddrPort("192.0.2.1:1194"), VPN6: netip.MustParseAddr("fe80::3"),
			}}},
		{"PEER_NEW TCP, id 0", ask(uapi.CmdPeerNew, fnest(uapi.AttrPeer, f32(uapi.PeerID, 0), f32(uapi.PeerSocket, tcpFD), faddr(uapi.PeerVPNIPv4, "10.8.0.3"))),
			[]datapath.PeerInfo{one, two, {TCP: true, VPN4: netip.MustParseAddr("10.8.0.3")}}},
		{"PEER_SET of nothing", ask(uapi.CmdPeerSet, fnest(uapi.AttrPeer, f32(uapi.PeerID, 1))), []datapath.PeerInfo{one, two}},
		{"PEER_SET everything", ask(uapi.CmdPeerSet, fnest(uapi.AttrPeer, append(keepalive, f32(uapi.PeerID, 1), port, faddr(uapi.PeerRemoteIPv6, "fe80::1"),
			f32(uapi.PeerRemoteScopeID, 4), faddr(uapi.PeerLocalIPv6, "fe80::2"), f32(uapi.PeerTxID, 0), faddr(uapi.PeerVPNIPv4, "10.8.0.9"),
			faddr(uapi.PeerVPNIPv6, "fd00::9"))...)),
			[]datapath.PeerInfo{{
				ID: 1, TxID: 0, Remote: netip.MustParseAddrPort("[fe80::1]:1194"), ScopeID: 4, Local: netip.MustParseAddr("fe80::2"),
				VPN4: netip.MustParseAddr("10.8.0.9"), VPN6: netip.MustParseAddr("fd00::9"),
				Keepalive: peers.Keepalive{Interval: 10, Timeout: 60},
			}, two}},
		{"PEER_SET clears an address", ask(uapi.CmdPeerSet, fnest(uapi.AttrPeer, f32(uapi.PeerID, 1), faddr(uapi.PeerVPNIPv4, "0.0.0.0"))),
			[]datapath.PeerInfo{with(one, func(p *datapath.PeerInfo) { p.VPN4 = netip.Addr{} }), two}},
		{"PEER_SET of its own address", ask(uapi.CmdPeerSet, fnest(uapi.AttrPeer, f32(uapi.PeerID, 1), faddr(uapi.PeerVPNIPv4, "10.8.0.1"))),
			[]datapath.PeerInfo{one, two}},
		{"PEER_SET of a TCP peer", ask(uapi.CmdPeerSet, fnest(uapi.AttrPeer, f32(uapi.PeerID, 2), f32(uapi.PeerTxID, 20))),
			[]datapath.PeerInfo{one, with(two, func(p *datapath.PeerInfo) { p.TxID = 20 })}},
		{"PEER_DEL", ask(uapi.CmdPeerDel, fnest(uapi.AttrPeer, f32(uapi.PeerID, 1))), []datapath.PeerInfo{two}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, c := peerDevice(t, peers.MP)
			if diff := cmp.Diff(refusal{}, c.outcome(tt.req)); diff != "" {
				t.Fatalf("refusal (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.want, d.Peers(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
				cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
				t.Errorf("peers (-want +got):\n%s", diff)
			}
		})
	}
}
