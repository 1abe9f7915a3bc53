package client

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv/uapi"
)

func encode(t testing.TB, add func(*netlink.AttributeEncoder)) []byte {
	t.Helper()
	a := netlink.NewAttributeEncoder()
	add(a)
	b, err := a.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func port(n uint16) []byte { return binary.BigEndian.AppendUint16(nil, n) }

// sample is a peer as the kernel writes it: ports with the flag for network byte order, numbers as short as they can be.
func sample(t testing.TB) []byte {
	return encode(t, func(a *netlink.AttributeEncoder) {
		a.Nested(uapi.AttrPeer, func(a *netlink.AttributeEncoder) error {
			a.Int32(uapi.PeerSocketNetNSID, -1)
			a.Uint32(uapi.PeerID, 5)
			a.Uint32(uapi.PeerTxID, 6)
			a.Bytes(uapi.PeerVPNIPv4, []byte{10, 8, 0, 5})
			a.Uint32(uapi.PeerKeepaliveInterval, 10)
			a.Uint32(uapi.PeerKeepaliveTimeout, 60)
			a.Bytes(uapi.PeerRemoteIPv6, netip.MustParseAddr("fe80::1").AsSlice())
			a.Uint32(uapi.PeerRemoteScopeID, 3)
			a.Bytes(uapi.PeerRemotePort|unix.NLA_F_NET_BYTEORDER, port(1194))
			a.Bytes(uapi.PeerLocalIPv6, netip.IPv6Unspecified().AsSlice())
			a.Bytes(uapi.PeerLocalPort|unix.NLA_F_NET_BYTEORDER, port(1195))
			a.Uint32(uapi.PeerVPNRxBytes, 1)
			a.Uint64(uapi.PeerVPNTxBytes, 1<<40)
			a.Uint32(uapi.PeerVPNRxPackets, 3)
			a.Uint32(uapi.PeerVPNTxPackets, 4)
			a.Uint32(uapi.PeerLinkRxBytes, 5)
			a.Uint32(uapi.PeerLinkTxBytes, 6)
			a.Uint32(uapi.PeerLinkRxPackets, 7)
			a.Uint32(uapi.PeerLinkTxPackets, 8)
			a.Uint32(200, 1) // of a later kernel
			return nil
		})
	})
}

func TestParsePeer(t *testing.T) {
	got, err := parsePeers([]genetlink.Message{{Data: sample(t)}})
	if err != nil {
		t.Fatal(err)
	}
	unknown := int32(-1)
	want := []Peer{{
		ID: 5, TxID: 6, VPN4: netip.MustParseAddr("10.8.0.5"),
		Remote: netip.MustParseAddrPort("[fe80::1%3]:1194"), Local: netip.IPv6Unspecified(), LocalPort: 1195,
		Keepalive:     Keepalive{10 * time.Second, time.Minute},
		SocketNetNSID: &unknown,
		VPN:           Traffic{RxBytes: 1, TxBytes: 1 << 40, RxPackets: 3, TxPackets: 4},
		Link:          Traffic{RxBytes: 5, TxBytes: 6, RxPackets: 7, TxPackets: 8},
	}}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("parsed (-want +got):\n%s", diff)
	}
}

func TestParseEvent(t *testing.T) {
	tests := []struct {
		name    string
		command uint8
		body    func(*netlink.AttributeEncoder)
		want    Event
	}{
		{"a peer is deleted", uapi.CmdPeerDelNtf, func(a *netlink.AttributeEncoder) {
			a.Uint32(uapi.AttrIfindex, 4)
			a.Nested(uapi.AttrPeer, func(a *netlink.AttributeEncoder) error {
				a.Uint32(uapi.PeerDelReason, 2)
				a.Uint32(uapi.PeerID, 5)
				return nil
			})
		}, Event{Kind: PeerDeleted, Ifindex: 4, PeerID: 5, Reason: Expired}},
		{"a peer floats", uapi.CmdPeerFloatNtf, func(a *netlink.AttributeEncoder) {
			a.Uint32(uapi.AttrIfindex, 4)
			a.Nested(uapi.AttrPeer, func(a *netlink.AttributeEncoder) error {
				a.Uint32(uapi.PeerID, 5)
				a.Bytes(uapi.PeerRemoteIPv4, []byte{192, 0, 2, 1})
				a.Bytes(uapi.PeerRemotePort|unix.NLA_F_NET_BYTEORDER, port(7))
				return nil
			})
		}, Event{Kind: PeerFloated, Ifindex: 4, PeerID: 5, Remote: netip.MustParseAddrPort("192.0.2.1:7")}},
		{"a key is used up, of which the number has 16 bits", uapi.CmdKeySwapNtf, func(a *netlink.AttributeEncoder) {
			a.Uint32(uapi.AttrIfindex, 4)
			a.Nested(uapi.AttrKeyconf, func(a *netlink.AttributeEncoder) error {
				a.Uint32(uapi.KeyPeerID, 5)
				a.Uint16(uapi.KeyKeyID, 3)
				return nil
			})
		}, Event{Kind: KeyExhausted, Ifindex: 4, PeerID: 5, KeyID: 3}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, ok, err := parseEvent(genetlink.Message{Header: genetlink.Header{Command: test.command}, Data: encode(t, test.body)})
			if err != nil || !ok || got != test.want {
				t.Errorf("parseEvent = %+v, %v, %v, want %+v", got, ok, err, test.want)
			}
		})
	}
	if _, ok, err := parseEvent(genetlink.Message{Header: genetlink.Header{Command: 77}}); ok || err != nil {
		t.Errorf("an announcement of an unknown kind: %v, %v", ok, err)
	}
}

// FuzzParse: whatever arrives, nothing panics.
func FuzzParse(f *testing.F) {
	f.Add(uint8(uapi.CmdPeerGet), sample(f))
	f.Add(uint8(uapi.CmdPeerDelNtf), []byte{5, 0, 1, 0, 9})
	f.Add(uint8(uapi.CmdKeySwapNtf), []byte{12, 0, 3, 128, 5, 0, 3, 0, 9, 0, 0, 0})
	f.Fuzz(func(t *testing.T, command uint8, data []byte) {
		message := genetlink.Message{Header: genetlink.Header{Command: command}, Data: data}
		_, _ = parsePeers([]genetlink.Message{message})
		_, _, _ = parseEvent(message)
		if _, ok := parseLink(netlink.Message{Header: netlink.Header{Type: unix.RTM_NEWLINK}, Data: data}); ok && len(data) < unix.SizeofIfInfomsg {
			t.Error("a link without a header")
		}
		if ad, err := netlink.NewAttributeDecoder(data); err == nil {
			_ = new(Key).decode(ad)
		}
	})
}
