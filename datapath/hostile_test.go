package datapath

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/crypto"
	"ovpn-go/peers"
)

// A peer with keys of its own moves only itself: a packet that names another peer is not authentic, and one from another
// peer's address takes nothing from that peer.
func TestPeerMovesOnlyItself(t *testing.T) {
	d := newEnd(t, peers.MP, newSockets(t), "127.0.0.1:0")
	_, home := loopbackUDP(t)
	victim, victimAt := loopbackUDP(t)
	elsewhere, elsewhereAt := loopbackUDP(t)
	hostileKey, ofHostile := keyPair(crypto.AESGCM, 0)
	ofVictim := ofHostile
	ofVictim.Decrypt.Key = bytes.Repeat([]byte{0x44}, 32)
	victimKey := hostileKey
	victimKey.Encrypt.Key = ofVictim.Decrypt.Key
	d.addPeer(t, PeerConfig{ID: 1, TxID: 1, Remote: home, VPN4: netip.MustParseAddr("10.8.0.2")}, ofHostile)
	d.addPeer(t, PeerConfig{ID: 2, TxID: 2, Remote: victimAt, VPN4: netip.MustParseAddr("10.8.0.3")}, ofVictim)
	send := func(from int, packet []byte) {
		t.Helper()
		if err := unix.Sendto(from, packet, 0, sockaddr(unix.AF_INET, d.addr())); err != nil {
			t.Fatal(err)
		}
	}
	remotes := func() (at [2]netip.AddrPort) {
		for i := range at {
			info, err := d.Peer(uint32(i) + 1)
			if err != nil {
				t.Fatal(err)
			}
			at[i] = info.Remote
		}
		return at
	}

	send(elsewhere, sealed(t, hostileKey, 2, 1, crypto.Keepalive[:]))
	d.waitDrops(t, DropAuthentication, 1)
	if got, want := remotes(), [2]netip.AddrPort{home, victimAt}; got != want {
		t.Errorf("after a packet in the other's name: at %v, want %v", got, want)
	}
	// The hostile peer may say that it is where the other one is.
	send(victim, sealed(t, hostileKey, 1, 2, crypto.Keepalive[:]))
	if ev := d.event(t); ev.Kind != PeerFloated || ev.PeerID != 1 {
		t.Errorf("event %+v, want that peer 1 floated", ev)
	}
	// A keepalive that is neither dropped nor announced is seen by its being counted.
	send(victim, sealed(t, victimKey, 2, 1, crypto.Keepalive[:]))
	eventually(t, "the other peer is heard", func() bool {
		info, err := d.Peer(2)
		return err == nil && info.Stats.LinkRxPackets == 2
	})
	if got, want := remotes(), [2]netip.AddrPort{victimAt, victimAt}; got != want {
		t.Errorf("after a move to the other's address: at %v, want %v", got, want)
	}
	send(elsewhere, sealed(t, hostileKey, 1, 3, crypto.Keepalive[:]))
	d.event(t)
	if got, want := remotes(), [2]netip.AddrPort{elsewhereAt, victimAt}; got != want {
		t.Errorf("after it went on: at %v, want %v", got, want)
	}
	if drops := d.Stats().Drops; drops[DropAuthentication.String()] != 1 || drops[DropReplay.String()] != 0 {
		t.Errorf("drops %v, want one packet that is not authentic", drops)
	}
}

// Swapping the slots, and a new key in the other one, leave a key's packet ids where they are.
func TestPacketIDsGoOnAcrossSwaps(t *testing.T) {
	a, b := newTunnel(t)
	next, _ := keyPair(crypto.AESGCM, 1)
	next.Encrypt.Key = bytes.Repeat([]byte{0x55}, 32)
	steps := []struct {
		what string
		do   func() error
	}{
		{"at first", func() error { return nil }},
		{"with another key in the secondary slot", func() error { return a.InstallKey(1, crypto.Secondary, next) }},
		{"under the other key", func() error { return a.SwapKeys(1) }},
		{"swapped back", func() error { return a.SwapKeys(1) }},
		{"with the other key replaced", func() error { return a.InstallKey(1, crypto.Secondary, next) }},
		{"with the other key deleted", func() error { return a.DeleteKey(1, crypto.Secondary) }},
	}
	// What a sends is looked at on the wire, by a client whose device has let go of its socket.
	if err := b.DeletePeer(2); err != nil {
		t.Fatal(err)
	}
	var ids []uint32
	for _, step := range steps {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		a.send(t, udp4("10.8.0.1", "10.8.0.2", step.what))
		packet := make([]byte, 2000)
		b.client.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, err := b.client.Read(packet)
		if err != nil || n < crypto.Overhead {
			t.Fatalf("%s: read %d bytes: %v", step.what, n, err)
		}
		if crypto.KeyID(packet[0]) == 0 {
			if id := crypto.PacketID(packet); slices.Contains(ids, id) {
				t.Errorf("%s: packet id %d again", step.what, id)
			} else {
				ids = append(ids, id)
			}
		}
	}
	if want := []uint32{1, 2, 3, 4, 5}; !slices.Equal(ids, want) {
		t.Errorf("packet ids %v, want %v", ids, want)
	}
}
