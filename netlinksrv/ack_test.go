package netlinksrv

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv/uapi"
	"ovpn-go/peers"
)

func TestAcknowledge(t *testing.T) {
	littleEndian(t)
	// A message of 22 bytes, so that its echo needs padding.
	msg := unhex(t, "16000000 2400 0500 11000000 63000000  03 00 0000  aabb")
	refused := &requestError{
		errno: unix.EINVAL, text: "ovpn: no", bad: 0x18, policy: &keyPolicies[uapi.KeySlot], missing: 2, nest: 0x1c,
	}
	for _, tt := range []struct {
		name string
		err  *requestError
		opt  ackOptions
		want string
	}{
		{
			"success is capped", nil, ackOptions{},
			`24000000 0200 0001 11000000 22000000  00000000
			 16000000 2400 0500 11000000 63000000`,
		},
		{
			"success with both options", nil, ackOptions{cap: true, extended: true},
			`24000000 0200 0001 11000000 22000000  00000000
			 16000000 2400 0500 11000000 63000000`,
		},
		{
			"refusal echoes the request", refused, ackOptions{},
			`2c000000 0200 0000 11000000 22000000  eaffffff
			 16000000 2400 0500 11000000 63000000  03 00 0000  aabb 0000`,
		},
		{
			"NETLINK_CAP_ACK", refused, ackOptions{cap: true},
			`24000000 0200 0001 11000000 22000000  eaffffff
			 16000000 2400 0500 11000000 63000000`,
		},
		{
			"NETLINK_EXT_ACK", refused, ackOptions{extended: true},
			`78000000 0200 0002 11000000 22000000  eaffffff
			 16000000 2400 0500 11000000 63000000  03 00 0000  aabb 0000
			 0d00 0100 6f76706e3a206e6f00 000000
			 0800 0200 18000000
			 2400 0480
			   0c00 0400 0000000000000000
			   0c00 0500 0100000000000000
			   0800 0100 04000000
			 0800 0500 02000000
			 0800 0600 1c000000`,
		},
		{
			"both options", refused, ackOptions{cap: true, extended: true},
			`70000000 0200 0003 11000000 22000000  eaffffff
			 16000000 2400 0500 11000000 63000000
			 0d00 0100 6f76706e3a206e6f00 000000
			 0800 0200 18000000
			 2400 0480
			   0c00 0400 0000000000000000
			   0c00 0500 0100000000000000
			   0800 0100 04000000
			 0800 0500 02000000
			 0800 0600 1c000000`,
		},
		{
			"warning", &requestError{text: "no", bad: 24}, ackOptions{extended: true},
			`2c000000 0200 0003 11000000 22000000  00000000
			 16000000 2400 0500 11000000 63000000
			 0700 0100 6e6f00 00`,
		},
		{
			"warning that nobody wants", &requestError{text: "no"}, ackOptions{},
			`24000000 0200 0001 11000000 22000000  00000000
			 16000000 2400 0500 11000000 63000000`,
		},
		{
			"nothing to explain", &requestError{errno: unix.EPERM}, ackOptions{cap: true, extended: true},
			`24000000 0200 0001 11000000 22000000  ffffffff
			 16000000 2400 0500 11000000 63000000`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := acknowledge(msg, 0x22, tt.err, tt.opt)
			if diff := cmp.Diff(hexLines([][]byte{unhex(t, tt.want)}), hexLines([][]byte{got})); diff != "" {
				t.Errorf("acknowledgement (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDone(t *testing.T) {
	littleEndian(t)
	req := header{seq: 0x11}
	refused := &requestError{errno: unix.ENODEV, text: "no"}
	for _, tt := range []struct {
		name string
		err  *requestError
		opt  ackOptions
		want string
	}{
		{"success", nil, ackOptions{extended: true}, "14000000 0300 0200 11000000 22000000 00000000"},
		{"refusal", refused, ackOptions{}, "14000000 0300 0200 11000000 22000000 edffffff"},
		{
			"refusal with NETLINK_EXT_ACK", refused, ackOptions{extended: true},
			"1c000000 0300 0202 11000000 22000000 edffffff 0700 0100 6e6f00 00",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := done(req, 0x22, tt.err, tt.opt)
			if diff := cmp.Diff(hexLines([][]byte{unhex(t, tt.want)}), hexLines([][]byte{got})); diff != "" {
				t.Errorf("end of dump (-want +got):\n%s", diff)
			}
		})
	}
}

// TestPolicyDescriptions has each form in which an extended acknowledgement tells a policy.
func TestPolicyDescriptions(t *testing.T) {
	littleEndian(t)
	for _, tt := range []struct {
		name   string
		policy *attributePolicy
		want   string
	}{
		{"u32", &peerPolicies[uapi.PeerKeepaliveInterval], `2400 0480
			0c00 0400 0000000000000000  0c00 0500 8051010000000000  0800 0100 04000000`},
		{"u32, full range", &peerPolicies[uapi.PeerSocket], `2400 0480
			0c00 0400 0000000000000000  0c00 0500 ffffffff00000000  0800 0100 04000000`},
		{"s32", &peerPolicies[uapi.PeerSocketNetNSID], `2400 0480
			0c00 0200 00000080ffffffff  0c00 0300 ffffff7f00000000  0800 0100 08000000`},
		{"uint", &peerPolicies[uapi.PeerVPNRxBytes], `2400 0480
			0c00 0400 0000000000000000  0c00 0500 ffffffffffffffff  0800 0100 11000000`},
		{"binary of exact length", &peerPolicies[uapi.PeerVPNIPv6], `1c00 0480
			0800 0600 10000000  0800 0700 10000000  0800 0100 0a000000`},
		{"binary of limited length", &keyDirection.attrs[uapi.DirCipherKey], `0c00 0480  0800 0100 0a000000`},
		{"nest", &keyPolicies[uapi.KeyEncryptDir], `0c00 0480  0800 0100 0d000000`},
		{"be16", &peerPolicies[uapi.PeerRemotePort], ``},
		{"be32", &peerPolicies[uapi.PeerVPNIPv4], ``},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var b builder
			b.describe(ackPolicy|unix.NLA_F_NESTED, tt.policy, nil)
			if diff := cmp.Diff(hexLines([][]byte{unhex(t, tt.want)}), hexLines([][]byte{b.buf})); diff != "" {
				t.Errorf("description (-want +got):\n%s", diff)
			}
		})
	}
}

// TestAckOptionsFollowTheSocket checks that the two options are those of the socket that asks.
func TestAckOptionsFollowTheSocket(t *testing.T) {
	s := testServer(t)
	addDevice(t, s, testIfindex, peers.P2P)
	req := ask(uapi.CmdPeerGet, fnest(uapi.AttrPeer, f32(uapi.PeerID, 5)))
	plain, both := newClient(t, s), newClient(t, s)
	both.set(unix.NETLINK_EXT_ACK)
	both.set(unix.NETLINK_CAP_ACK)
	flags := func(c *client) uint16 { return parseHeader(c.ask(req)[0]).flags }
	if got := flags(plain); got != 0 {
		t.Errorf("flags without options: %#x, want 0", got)
	}
	if got := flags(both); got != flagCapped|flagAckTLVs {
		t.Errorf("flags with both options: %#x, want %#x", got, flagCapped|flagAckTLVs)
	}
	for _, name := range []int{unix.NETLINK_EXT_ACK, unix.NETLINK_CAP_ACK} {
		if err := both.SetOption(both.task, unix.SOL_NETLINK, name, []byte{0, 0, 0, 0}); err != nil {
			t.Fatal(err)
		}
	}
	if got := flags(both); got != 0 {
		t.Errorf("flags after the options are off again: %#x, want 0", got)
	}
}
