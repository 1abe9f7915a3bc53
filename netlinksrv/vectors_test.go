package netlinksrv

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ovpn-go/crypto"
	"ovpn-go/datapath"
	"ovpn-go/netlinksrv/uapi"
	"ovpn-go/peers"
)

// The messages in this file are what the kernel module sends, recorded or put together from its rules.

// littleEndian skips tests whose messages are written down for such machines.
func littleEndian(t *testing.T) {
	t.Helper()
	if nativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("the recorded messages are little-endian")
	}
}

func TestFamilyVector(t *testing.T) {
	littleEndian(t)
	s := &Server{ids: testIDs}
	got := s.describeFamily(ovpnFamily, header{seq: 0x65}, 0x7f, 0)
	want := unhex(t, `
		00010000 1000 0000 65000000 7f000000  01 02 0000
		0900 0200 6f76706e00 000000
		0600 0100 2400 0000
		0800 0300 01000000
		0800 0400 00000000
		0800 0500 00000000
		a400 0600
		  1400 0100 0800 0100 01000000 0800 0200 0b000000
		  1400 0200 0800 0100 02000000 0800 0200 0b000000
		  1400 0300 0800 0100 03000000 0800 0200 0f000000
		  1400 0400 0800 0100 04000000 0800 0200 0b000000
		  1400 0500 0800 0100 06000000 0800 0200 0b000000
		  1400 0600 0800 0100 07000000 0800 0200 0b000000
		  1400 0700 0800 0100 08000000 0800 0200 0b000000
		  1400 0800 0800 0100 0a000000 0800 0200 0b000000
		1c00 0700
		  1800 0100
		    0800 0200 0f000000
		    0a00 0100 706565727300 0000`)
	if diff := cmp.Diff(hexLines([][]byte{want}), hexLines([][]byte{got})); diff != "" {
		t.Errorf("family description (-want +got):\n%s", diff)
	}
}

func TestNotificationVectors(t *testing.T) {
	littleEndian(t)
	s := &Server{ids: testIDs}
	for _, tt := range []struct {
		name  string
		event datapath.Event
		want  string
	}{
		{
			"peer-del-ntf",
			datapath.Event{Kind: datapath.PeerDeleted, Ifindex: 7, PeerID: 10, Reason: peers.Userspace},
			`30000000 2400 0000 00000000 00000000  05 01 0000
			 0800 0100 07000000
			 1400 0280
			   0800 0f00 01000000
			   0800 0100 0a000000`,
		},
		{
			"peer-float-ntf IPv4",
			datapath.Event{
				Kind: datapath.PeerFloated, Ifindex: 7, PeerID: 1, Remote: netip.MustParseAddrPort("10.10.1.3:1"),
			},
			`38000000 2400 0000 00000000 00000000  0b 01 0000
			 0800 0100 07000000
			 1c00 0280
			   0800 0100 01000000
			   0800 0200 0a0a0103
			   0600 0540 0001 0000`,
		},
		{
			"peer-float-ntf IPv6",
			datapath.Event{
				Kind: datapath.PeerFloated, Ifindex: 2, PeerID: 1, ScopeID: 4,
				Remote: netip.MustParseAddrPort("[fe80::d8a6:a1ff:fe84:bbdf]:5900"),
			},
			`4c000000 2400 0000 00000000 00000000  0b 01 0000
			 0800 0100 02000000
			 3000 0280
			   0800 0100 01000000
			   1400 0300 fe80000000000000d8a6a1fffe84bbdf
			   0800 0400 04000000
			   0600 0540 170c 0000`,
		},
		{
			"key-swap-ntf",
			datapath.Event{Kind: datapath.KeyExhausted, Ifindex: 7, PeerID: 1, KeyID: 2},
			`30000000 2400 0000 00000000 00000000  09 01 0000
			 0800 0100 07000000
			 1400 0380
			   0800 0100 01000000
			   0600 0300 0200 0000`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := announced(s, ovpnFamily, tt.event)
			if diff := cmp.Diff(hexLines([][]byte{unhex(t, tt.want)}), hexLines([][]byte{got})); diff != "" {
				t.Errorf("notification (-want +got):\n%s", diff)
			}
		})
	}
}

// TestReplyVectors asks on a socket whose port differs from the vectors', so that is put in.
func TestReplyVectors(t *testing.T) {
	littleEndian(t)
	s := testServer(t)
	d := addDevice(t, s, testIfindex, peers.MP)
	d.peers = []*fakePeer{{
		info: datapath.PeerInfo{
			ID: 1, TxID: 10, VPN4: netip.MustParseAddr("5.5.5.2"), Keepalive: peers.Keepalive{Interval: 60, Timeout: 120},
			Remote: netip.MustParseAddrPort("10.10.1.2:1"), Local: netip.MustParseAddr("10.10.1.1"), LocalPort: 1,
			Stats: peers.Stats{
				VPNRxBytes: 168, VPNRxPackets: 2, VPNTxBytes: 168, VPNTxPackets: 2,
				LinkRxBytes: 1 << 32, LinkRxPackets: 2, LinkTxBytes: 216, LinkTxPackets: 2,
			},
		},
		keys: [2]crypto.KeyConfig{{ID: 0, Cipher: crypto.AESGCM}},
	}, {
		info: datapath.PeerInfo{
			ID: 2, TxID: 2, VPN6: netip.MustParseAddr("fd00::2"),
			Remote: netip.MustParseAddrPort("[2001:db8::1]:1194"), LocalPort: 1194,
		},
	}, {
		info: datapath.PeerInfo{ID: 3, TxID: 3, VPN4: netip.MustParseAddr("5.5.5.3"), TCP: true, LocalPort: 443},
	}}
	c := newClient(t, s)
	for _, tt := range []struct {
		name string
		req  []byte
		want string
	}{
		{
			"PEER_GET, UDP over IPv4", ask(uapi.CmdPeerGet, fnest(uapi.AttrPeer, f32(uapi.PeerID, 1))),
			`a4000000 2400 0000 11000000 PPPPPPPP  03 01 0000
			 9000 0280
			   0800 0100 01000000
			   0800 1800 0a000000
			   0800 0800 05050502
			   0800 0d00 3c000000
			   0800 0e00 78000000
			   0800 0200 0a0a0102
			   0600 0540 0001 0000
			   0800 0a00 0a0a0101
			   0600 0c40 0001 0000
			   0800 1000 a8000000
			   0800 1200 02000000
			   0800 1100 a8000000
			   0800 1300 02000000
			   0c00 1400 0000000001000000
			   0800 1600 02000000
			   0800 1500 d8000000
			   0800 1700 02000000`,
		},
		{
			"PEER_GET, UDP over IPv6", ask(uapi.CmdPeerGet, fnest(uapi.AttrPeer, f32(uapi.PeerID, 2))),
			`cc000000 2400 0000 11000000 PPPPPPPP  03 01 0000
			 b800 0280
			   0800 0100 02000000
			   0800 1800 02000000
			   1400 0900 fd000000000000000000000000000002
			   0800 0d00 00000000
			   0800 0e00 00000000
			   1400 0300 20010db8000000000000000000000001
			   0800 0400 00000000
			   0600 0540 04aa 0000
			   1400 0b00 00000000000000000000000000000000
			   0600 0c40 04aa 0000
			   0800 1000 00000000
			   0800 1200 00000000
			   0800 1100 00000000
			   0800 1300 00000000
			   0800 1400 00000000
			   0800 1600 00000000
			   0800 1500 00000000
			   0800 1700 00000000`,
		},
		{
			"PEER_GET, TCP", ask(uapi.CmdPeerGet, fnest(uapi.AttrPeer, f32(uapi.PeerID, 3))),
			`88000000 2400 0000 11000000 PPPPPPPP  03 01 0000
			 7400 0280
			   0800 0100 03000000
			   0800 1800 03000000
			   0800 0800 05050503
			   0800 0d00 00000000
			   0800 0e00 00000000
			   0600 0c40 01bb 0000
			   0800 1000 00000000
			   0800 1200 00000000
			   0800 1100 00000000
			   0800 1300 00000000
			   0800 1400 00000000
			   0800 1600 00000000
			   0800 1500 00000000
			   0800 1700 00000000`,
		},
		{
			"KEY_GET", ask(uapi.CmdKeyGet, fnest(uapi.AttrKeyconf, f32(uapi.KeyPeerID, 1), f32(uapi.KeySlot, 0))),
			`38000000 2400 0000 11000000 PPPPPPPP  07 01 0000
			 2400 0380
			   0800 0100 01000000
			   0800 0200 00000000
			   0800 0300 00000000
			   0800 0400 01000000`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := unhex(t, string(bytes.ReplaceAll([]byte(tt.want), []byte("PPPPPPPP"), []byte("00000000"))))
			nativeEndian.PutUint32(want[12:], c.Port())
			got := c.ask(tt.req)
			// The reply comes first, in a datagram of its own, then the acknowledgement.
			ack := acknowledge(tt.req, c.Port(), nil, ackOptions{})
			if diff := cmp.Diff(hexLines([][]byte{want, ack}), hexLines(got)); diff != "" {
				t.Errorf("answers (-want +got):\n%s", diff)
			}
		})
	}

	t.Run("PEER_GET dump", func(t *testing.T) {
		req := message(uapi.CmdPeerGet, unix.NLM_F_REQUEST|unix.NLM_F_DUMP|unix.NLM_F_ACK, f32(uapi.AttrIfindex, testIfindex))
		var one []byte
		for id := uint32(1); id <= 3; id++ {
			reply := c.ask(ask(uapi.CmdPeerGet, fnest(uapi.AttrPeer, f32(uapi.PeerID, id))))[0]
			nativeEndian.PutUint16(reply[6:], unix.NLM_F_MULTI)
			one = append(one, reply...)
		}
		end := unhex(t, "14000000 0300 0200 11000000 00000000 00000000")
		nativeEndian.PutUint32(end[12:], c.Port())
		if diff := cmp.Diff(hexLines([][]byte{one, end}), hexLines(c.ask(req))); diff != "" {
			t.Errorf("dump (-want +got):\n%s", diff)
		}
	})
}
