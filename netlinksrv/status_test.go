package netlinksrv

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ovpn-go/crypto"
	"ovpn-go/datapath"
	"ovpn-go/peers"
	"ovpn-go/tun/netns"
)

func TestStatus(t *testing.T) {
	s := testServer(t)
	d := addDevice(t, s, testIfindex, peers.MP)
	for _, id := range []uint32{9, 1, 5} {
		d.peers = append(d.peers, &fakePeer{info: datapath.PeerInfo{ID: id, Silence: time.Duration(id) * time.Second}})
	}
	d.peers[1].keys[crypto.Secondary] = crypto.KeyConfig{ID: 3, Cipher: crypto.AESGCM}
	d.peers[1].keys[crypto.Primary] = crypto.KeyConfig{ID: 4, Cipher: crypto.ChaCha20Poly1305}
	one := PeerStatus{ID: 1, Silence: time.Second, Keys: []KeyStatus{
		{crypto.Primary, datapath.KeyInfo{ID: 4, Cipher: crypto.ChaCha20Poly1305}},
		{crypto.Secondary, datapath.KeyInfo{ID: 3, Cipher: crypto.AESGCM}},
	}}
	five, nine := PeerStatus{ID: 5, Silence: 5 * time.Second}, PeerStatus{ID: 9, Silence: 9 * time.Second}
	ns, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	for _, row := range []struct {
		name          string
		admin         error
		ifindex, from uint32
		limit         int
		want          []PeerStatus
		err           error
	}{
		{"all, in the order of ids", nil, testIfindex, 0, 10, []PeerStatus{one, five, nine}, nil},
		{"no more than asked for", nil, testIfindex, 0, 2, []PeerStatus{one, five}, nil},
		{"from an id on", nil, testIfindex, 5, 10, []PeerStatus{five, nine}, nil},
		{"beyond the last", nil, testIfindex, 10, 10, []PeerStatus{}, nil},
		{"without the right", unix.EPERM, testIfindex, 0, 10, nil, unix.EPERM},
		{"without the right, of nothing", unix.EPERM, testIfindex + 1, 0, 10, nil, unix.EPERM},
		{"of nothing", nil, testIfindex + 1, 0, 10, nil, unix.ENODEV},
	} {
		t.Run(row.name, func(t *testing.T) {
			got, err := s.Status(func(*netns.NS) error { return row.admin }, ns, row.ifindex, row.from, row.limit)
			if !errors.Is(err, row.err) {
				t.Errorf("error %v, want %v", err, row.err)
			}
			if diff := cmp.Diff(row.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
