package netlinksrv

import (
	"bytes"
	"encoding/hex"
	"log/slog"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ovpn-go/crypto"
	"ovpn-go/datapath"
	"ovpn-go/netlinksrv/uapi"
	"ovpn-go/peers"
)

func TestDecode(t *testing.T) {
	for _, tt := range []struct {
		name string
		msg  []byte
		want string
	}{
		{"PEER_NEW", ask(uapi.CmdPeerNew, fnest(uapi.AttrPeer, f32(uapi.PeerID, 3), faddr(uapi.PeerRemoteIPv4, "192.0.2.1"), f16(uapi.PeerRemotePort, 1194),
			faddr(uapi.PeerVPNIPv6, "fd00::3"))),
			"peer-new flags=0x5 seq=17 ifindex=7 peer{ id=3 remote-ipv4=192.0.2.1 remote-port=1194 vpn-ipv6=fd00::3 }"},
		{"KEY_NEW", ask(uapi.CmdKeyNew, keyFields(crypto.AESGCM, []byte("secretsecret!!!!"))),
			"key-new flags=0x5 seq=17 ifindex=7 keyconf{ peer-id=0 slot=1 key-id=3 cipher-alg=1 " +
				"encrypt-dir{ cipher-key=(16 bytes) nonce-tail=(8 bytes) } decrypt-dir{ cipher-key=(16 bytes) nonce-tail=(8 bytes) } }"},
		{"notification", announced(&Server{}, ovpnFamily, datapath.Event{Kind: datapath.KeyExhausted, Ifindex: 7, PeerID: 1, KeyID: 2}),
			"key-swap-ntf flags=0x0 seq=0 ifindex=7 keyconf{ peer-id=1 key-id=2 }"},
		{"signed", message(uapi.CmdPeerGet, 0, fnest(uapi.AttrPeer, f32(uapi.PeerSocketNetNSID, 0xffffffff))),
			"peer-get flags=0x0 seq=17 peer{ socket-netnsid=-1 }"},
		{"not signed", message(uapi.CmdPeerGet, 0, fnest(uapi.AttrPeer, f32(uapi.PeerID, 0xffffffff))),
			"peer-get flags=0x0 seq=17 peer{ id=4294967295 }"},
		{"wrong lengths", message(uapi.CmdPeerGet, 0, fnest(uapi.AttrPeer, fraw(uapi.PeerID, make([]byte, 16)...),
			fraw(uapi.PeerRemoteIPv4, 1, 2, 3), fraw(uapi.PeerRemoteIPv6, 1, 2, 3), fraw(uapi.PeerSocketNetNSID, 1, 2, 3))),
			"peer-get flags=0x0 seq=17 peer{ id=(16 bytes) remote-ipv4=(3 bytes) remote-ipv6=(3 bytes) socket-netnsid=(3 bytes) }"},
		{"no attributes", message(uapi.CmdPeerGet, 0), "peer-get flags=0x0 seq=17"},
		{"malformed", append(message(77, 0, fraw(99, 1), fraw(uapi.PeerID, 1)), 1, 2, 3),
			"command(77) flags=0x0 seq=17 attribute(99)=(1 bytes) ifindex=(1 bytes) (3 bytes left)"},
		{"no message", []byte{1}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := families[ovpnFamily].decode(tt.msg); got != tt.want {
				t.Errorf("decode:\n%s\nwant:\n%s", got, tt.want)
			}
		})
	}
}

// TestLogHoldsNoKeys reads all that is logged about keys that are accepted and refused.
func TestLogHoldsNoKeys(t *testing.T) {
	var out bytes.Buffer
	s := testServer(t)
	s.log = slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
	d := addDevice(t, s, testIfindex, peers.P2P)
	d.peers = []*fakePeer{{}}
	c := newClient(t, s)
	secret := []byte("0123456789abcdef")
	c.ask(ask(uapi.CmdKeyNew, keyFields(crypto.AESGCM, secret)))
	c.ask(ask(uapi.CmdKeyNew, keyFields(crypto.ChaCha20Poly1305, secret)))
	c.ask(message(uapi.CmdKeyNew, requestFlags|unix.NLM_F_CREATE, keyFields(crypto.AESGCM, secret)))
	if !strings.Contains(out.String(), "key-new") {
		t.Errorf("nothing is logged:\n%s", &out)
	}
	for _, form := range []string{string(secret), hex.EncodeToString(secret), "48 49 50 51"} {
		if strings.Contains(out.String(), form) {
			t.Errorf("the log has the key as %q:\n%s", form, &out)
		}
	}
}
