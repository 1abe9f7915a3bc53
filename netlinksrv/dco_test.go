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

// dcoAsk is ask for the family of the module that came before.
func dcoAsk(cmd uint8, fields ...field) []byte {
	msg := ask(cmd, fnest(dcoNest(cmd), fields...))
	nativeEndian.PutUint16(msg[4:], testIDs[dcoFamily].family)
	return msg
}

func dcoKeyFields(slot, id uint8, cipher uint16, key []byte) []field {
	direction := func(number uint16) field {
		return fnest(number, fraw(uapi.DirCipherKey, key...), fraw(uapi.DirNonceTail, 1, 2, 3, 4, 5, 6, 7, 8))
	}
	return []field{
		f32(dcoPeerID, 1), fraw(dcoKeySlot, slot), fraw(dcoKeyID, id), fraw(dcoKeyCipher, nativeEndian.AppendUint16(nil, cipher)...),
		direction(dcoKeyEncrypt), direction(dcoKeyDecrypt),
	}
}

func ovpnKeyFields(slot, id uint32, cipher crypto.Cipher, key []byte) field {
	direction := func(number uint16) field {
		return fnest(number, fraw(uapi.DirCipherKey, key...), fraw(uapi.DirNonceTail, 1, 2, 3, 4, 5, 6, 7, 8))
	}
	return fnest(uapi.AttrKeyconf, f32(uapi.KeyPeerID, 1), f32(uapi.KeySlot, slot), f32(uapi.KeyKeyID, id), f32(uapi.KeyCipher, uint32(cipher)),
		direction(uapi.KeyEncryptDir), direction(uapi.KeyDecryptDir))
}

// sockaddr4 and sockaddr6 are 192.0.2.1 and fe80::1%3 with port 1194.
var (
	sockaddr4 = append(append(nativeEndian.AppendUint16(nil, unix.AF_INET), 4, 170, 192, 0, 2, 1), make([]byte, 8)...)
	sockaddr6 = nativeEndian.AppendUint32(append(append(nativeEndian.AppendUint16(nil, unix.AF_INET6), 4, 170, 0, 0, 0, 0),
		netip.MustParseAddr("fe80::1").AsSlice()...), 3)
)

// TestDCOMeansTheSame sends each request to one device and the kernel's family's request of the same meaning to another. What becomes
// of the devices must be the same.
func TestDCOMeansTheSame(t *testing.T) {
	peer := func(fields ...field) field { return fnest(uapi.AttrPeer, fields...) }
	key16, key32 := bytes.Repeat([]byte{7}, 16), bytes.Repeat([]byte{9}, 32)
	id := f32(uapi.PeerID, 9)
	for _, tt := range []struct {
		name      string
		mode      peers.Mode
		dco, ovpn []byte
	}{
		{"a new peer over IPv4", peers.MP,
			dcoAsk(dcoNewPeer, id, fraw(dcoNewRemote, sockaddr4...), f32(dcoNewSocket, udpFD), faddr(dcoNewVPN4, "10.8.0.9"),
				faddr(dcoNewVPN6, "fd00::9"), faddr(dcoNewLocalIP, "192.0.2.2")),
			ask(uapi.CmdPeerNew, peer(id, faddr(uapi.PeerRemoteIPv4, "192.0.2.1"), f16(uapi.PeerRemotePort, 1194), f32(uapi.PeerSocket, udpFD),
				faddr(uapi.PeerVPNIPv4, "10.8.0.9"), faddr(uapi.PeerVPNIPv6, "fd00::9"), faddr(uapi.PeerLocalIPv4, "192.0.2.2")))},
		{"a new peer over IPv6", peers.MP,
			dcoAsk(dcoNewPeer, id, fraw(dcoNewRemote, sockaddr6...), f32(dcoNewSocket, udpFD), faddr(dcoNewVPN4, "10.8.0.9"),
				faddr(dcoNewLocalIP, "fe80::2")),
			ask(uapi.CmdPeerNew, peer(id, faddr(uapi.PeerRemoteIPv6, "fe80::1"), f32(uapi.PeerRemoteScopeID, 3), f16(uapi.PeerRemotePort, 1194),
				f32(uapi.PeerSocket, udpFD), faddr(uapi.PeerVPNIPv4, "10.8.0.9"), faddr(uapi.PeerLocalIPv6, "fe80::2")))},
		{"a new peer over TCP", peers.MP,
			dcoAsk(dcoNewPeer, id, f32(dcoNewSocket, tcpFD), faddr(dcoNewVPN4, "10.8.0.9")),
			ask(uapi.CmdPeerNew, peer(id, f32(uapi.PeerSocket, tcpFD), faddr(uapi.PeerVPNIPv4, "10.8.0.9")))},
		{"a new peer over TCP, whose remote address means nothing", peers.MP,
			dcoAsk(dcoNewPeer, id, fraw(dcoNewRemote, sockaddr4...), f32(dcoNewSocket, tcpFD), faddr(dcoNewVPN4, "10.8.0.9"),
				faddr(dcoNewLocalIP, "192.0.2.2")),
			ask(uapi.CmdPeerNew, peer(id, f32(uapi.PeerSocket, tcpFD), faddr(uapi.PeerVPNIPv4, "10.8.0.9")))},
		{"a new peer of a P2P link, whose VPN addresses mean nothing", peers.P2P,
			dcoAsk(dcoNewPeer, id, fraw(dcoNewRemote, sockaddr4...), f32(dcoNewSocket, udpFD), faddr(dcoNewVPN4, "10.8.0.9")),
			ask(uapi.CmdPeerNew, peer(id, faddr(uapi.PeerRemoteIPv4, "192.0.2.1"), f16(uapi.PeerRemotePort, 1194), f32(uapi.PeerSocket, udpFD)))},
		{"keepalive", peers.MP,
			dcoAsk(dcoSetPeer, f32(dcoPeerID, 1), f32(dcoSetInterval, 10), f32(dcoSetTimeout, 60)),
			ask(uapi.CmdPeerSet, peer(f32(uapi.PeerID, 1), f32(uapi.PeerKeepaliveInterval, 10), f32(uapi.PeerKeepaliveTimeout, 60)))},
		{"a peer goes", peers.MP, dcoAsk(dcoDelPeer, f32(dcoDelPeerID, 1)), ask(uapi.CmdPeerDel, peer(f32(uapi.PeerID, 1)))},
		{"a key", peers.MP, dcoAsk(dcoNewKey, dcoKeyFields(1, 5, 1, key16)...), ask(uapi.CmdKeyNew, ovpnKeyFields(1, 5, crypto.AESGCM, key16))},
		{"a key of the other cipher", peers.MP, dcoAsk(dcoNewKey, dcoKeyFields(0, 7, 2, key32)...),
			ask(uapi.CmdKeyNew, ovpnKeyFields(0, 7, crypto.ChaCha20Poly1305, key32))},
		{"slots are swapped", peers.MP, dcoAsk(dcoSwapKeys, f32(dcoPeerID, 1)), ask(uapi.CmdKeySwap, fnest(uapi.AttrKeyconf, f32(uapi.KeyPeerID, 1)))},
		{"a slot is emptied", peers.MP, dcoAsk(dcoDelKey, f32(dcoPeerID, 1), fraw(dcoKeySlot, 0)),
			ask(uapi.CmdKeyDel, fnest(uapi.AttrKeyconf, f32(uapi.KeyPeerID, 1), f32(uapi.KeySlot, 0)))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			after := func(req []byte) string {
				d, c := peerDevice(t, tt.mode)
				c.ask(ask(uapi.CmdKeyNew, ovpnKeyFields(0, 1, crypto.AESGCM, key16)))
				before := d.state()
				answers := c.ask(req)
				if len(answers) != 1 || readRefusal(t, answers[0]).Errno != 0 {
					t.Fatalf("answers are\n%s", hexLines(answers))
				}
				if d.state() == before {
					t.Error("nothing has changed")
				}
				return d.state()
			}
			if diff := cmp.Diff(after(bytes.Clone(tt.ovpn)), after(bytes.Clone(tt.dco))); diff != "" {
				t.Errorf("device after the request (-ovpn +ovpn-dco-v2):\n%s", diff)
			}
		})
	}
}

func TestDCORefuses(t *testing.T) {
	id, socket := f32(dcoPeerID, 9), f32(dcoNewSocket, udpFD)
	remote := fraw(dcoNewRemote, sockaddr4...)
	vpn := faddr(dcoNewVPN4, "10.8.0.9")
	strange := bytes.Clone(sockaddr4)
	strange[0] = 99
	for _, tt := range []struct {
		name  string
		req   []byte
		errno unix.Errno
	}{
		{"no peer id", dcoAsk(dcoNewPeer, remote, socket, vpn), unix.EINVAL},
		{"no socket", dcoAsk(dcoNewPeer, id, remote, vpn), unix.EINVAL},
		{"a descriptor that is none", dcoAsk(dcoNewPeer, id, remote, f32(dcoNewSocket, noFD), vpn), unix.ENOTSOCK},
		{"no VPN address in mode MP", dcoAsk(dcoNewPeer, id, remote, socket), unix.EINVAL},
		{"UDP without a remote address", dcoAsk(dcoNewPeer, id, socket, vpn), unix.EINVAL},
		{"a remote address of another family", dcoAsk(dcoNewPeer, id, fraw(dcoNewRemote, strange...), socket, vpn), unix.EINVAL},
		{"a remote address that is cut", dcoAsk(dcoNewPeer, id, fraw(dcoNewRemote, sockaddr4[:8]...), socket, vpn), unix.EINVAL},
		{"a remote IPv6 address that is cut", dcoAsk(dcoNewPeer, id, fraw(dcoNewRemote, sockaddr6[:24]...), socket, vpn), unix.EINVAL},
		{"a local address of the other family", dcoAsk(dcoNewPeer, id, remote, socket, vpn, faddr(dcoNewLocalIP, "fe80::2")), unix.EINVAL},
		{"a local address of an odd length", dcoAsk(dcoNewPeer, id, remote, socket, vpn, fraw(dcoNewLocalIP, 1, 2, 3)), unix.EINVAL},
		{"a peer id that is taken", dcoAsk(dcoNewPeer, f32(dcoPeerID, 1), remote, socket, vpn), unix.EEXIST},
		{"half a keepalive", dcoAsk(dcoSetPeer, f32(dcoPeerID, 1), f32(dcoSetInterval, 10)), unix.EINVAL},
		{"no such peer", dcoAsk(dcoDelPeer, f32(dcoDelPeerID, 9)), unix.ENOENT},
		{"a slot that is none", dcoAsk(dcoNewKey, dcoKeyFields(2, 1, 1, make([]byte, 16))...), unix.ERANGE},
		{"a key id that is none", dcoAsk(dcoNewKey, dcoKeyFields(0, 8, 1, make([]byte, 16))...), unix.ERANGE},
		{"a cipher that is none", dcoAsk(dcoNewKey, dcoKeyFields(0, 1, 3, make([]byte, 16))...), unix.ERANGE},
		{"no cipher", dcoAsk(dcoNewKey, dcoKeyFields(0, 1, 0, make([]byte, 16))...), unix.EINVAL},
		{"a key of a wrong length", dcoAsk(dcoNewKey, dcoKeyFields(0, 1, 1, make([]byte, 15))...), unix.EINVAL},
		{"no slot", dcoAsk(dcoDelKey, f32(dcoPeerID, 1)), unix.EINVAL},
		{"a command that is none", dcoAsk(8), unix.EOPNOTSUPP},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, c := peerDevice(t, peers.MP)
			before := d.state()
			answers := c.ask(tt.req)
			if len(answers) != 1 || readRefusal(t, answers[0]).Errno != tt.errno {
				t.Errorf("answers are, instead of %v,\n%s", tt.errno, hexLines(answers))
			}
			if diff := cmp.Diff(before, d.state()); diff != "" {
				t.Errorf("the device has changed:\n%s", diff)
			}
		})
	}
}

// TestDCODescribesPeers: all attributes are there, whatever they say.
func TestDCODescribesPeers(t *testing.T) {
	littleEndian(t)
	d, c := peerDevice(t, peers.MP)
	d.peers[0].info.LocalPort = 1195
	d.peers[0].info.Keepalive = peers.Keepalive{Interval: 10, Timeout: 60}
	d.peers[0].info.Stats.VPNRxBytes = 1 << 33
	d.peers[0].info.Stats.LinkTxPackets = 1<<33 + 5
	one := c.ask(dcoAsk(dcoGetPeer, f32(dcoPeerID, 1)))
	want := unhex(t, `c0000000 2500 0000 11000000 7f000000  07 01 0000
		ac00 0880
		  0800 0100 01000000
		  1400 0200 0200 04aa 0a000001 0000000000000000
		  0800 0300 0a080001
		  1400 0400 fd000000000000000000000000000001
		  0800 0500 00000000
		  0600 0600 04ab 0000
		  0800 0700 0a000000
		  0800 0800 3c000000
		  0c00 0900 0000000002000000
		  0c00 0a00 0000000000000000
		  0800 0b00 00000000
		  0800 0c00 00000000
		  0c00 0d00 0000000000000000
		  0c00 0e00 0000000000000000
		  0800 0f00 00000000
		  0800 1000 05000000`)
	nativeEndian.PutUint32(want[12:], c.Port())
	if diff := cmp.Diff(hexLines([][]byte{want}), hexLines(one[:1])); diff != "" {
		t.Errorf("a peer (-want +got):\n%s", diff)
	}
	dump := dcoAsk(dcoGetPeer)[:firstAttribute]
	var b builder
	b.buf = dump
	b.u32(uapi.AttrIfindex, testIfindex)
	b.endMessage(0)
	nativeEndian.PutUint16(b.buf[6:], dumpFlags)
	all := c.ask(b.buf)
	if len(all) != 2 || parseHeader(all[1]).kind != unix.NLMSG_DONE {
		t.Fatalf("a list is\n%s", hexLines(all))
	}
	first, rest, _ := cutMessage(all[0])
	second, _, ok := cutMessage(rest)
	if !ok || parseHeader(first).flags != unix.NLM_F_MULTI || !bytes.Equal(first[headerSize:], one[0][headerSize:]) {
		t.Errorf("a list is\n%s", hexLines(all))
	}
	if err := replies(dcoFamily).validate(second[firstAttribute:], firstAttribute); err != nil {
		t.Errorf("a peer over TCP: %v", err)
	}
}

// TestDCOAnnouncesDeletions, and nothing else: OpenVPN 2.6 complains of what it does not know.
func TestDCOAnnouncesDeletions(t *testing.T) {
	littleEndian(t)
	s := &Server{ids: testIDs}
	got := announced(s, dcoFamily, datapath.Event{Kind: datapath.PeerDeleted, Ifindex: 7, PeerID: 3, Reason: peers.Expired})
	want := unhex(t, `30000000 2500 0000 00000000 00000000  03 01 0000
		0800 0100 07000000
		1400 0480
		  0500 0100 02 000000
		  0800 0200 03000000`)
	if diff := cmp.Diff(hexLines([][]byte{want}), hexLines([][]byte{got})); diff != "" {
		t.Errorf("announcement (-want +got):\n%s", diff)
	}
	for _, kind := range []datapath.EventKind{datapath.PeerFloated, datapath.KeyExhausted} {
		if got := announced(s, dcoFamily, datapath.Event{Kind: kind}); got != nil {
			t.Errorf("event %v is announced as\n%s", kind, hexLines([][]byte{got}))
		}
	}
}
