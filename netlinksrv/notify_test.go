package netlinksrv

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ovpn-go/datapath"
	"ovpn-go/netlinksrv/uapi"
	"ovpn-go/peers"
	"ovpn-go/tun/netns"
)

// TestNotifyMembers: an event reaches the members of the group in the namespace of the peer's socket, and nobody
// else.
func TestNotifyMembers(t *testing.T) {
	s := testServer(t)
	member, other, former := newClient(t, s), newClient(t, s), newClient(t, s)
	member.join()
	former.join()
	group := nativeEndian.AppendUint32(nil, testGroup)
	if err := former.SetOption(former.task, unix.SOL_NETLINK, unix.NETLINK_DROP_MEMBERSHIP, group); err != nil {
		t.Fatal(err)
	}
	float := datapath.Event{
		Kind: datapath.PeerFloated, Ifindex: 7, PeerID: 1, NetNS: homeID(t), Remote: netip.MustParseAddrPort("10.0.0.1:1"),
	}
	s.notify(float)
	float.NetNS = netns.ID{Ino: 1}
	s.notify(float)
	for _, tt := range []struct {
		name string
		c    *client
		want int
	}{{"member", member, 1}, {"not a member", other, 0}, {"member no more", former, 0}} {
		if got := tt.c.in.take(); len(got) != tt.want {
			t.Errorf("%s: %d notifications, want %d", tt.name, len(got), tt.want)
		}
	}
}

// TestNotifyBeforeAck: whoever deletes a peer and listens hears of it before the request is acknowledged.
func TestNotifyBeforeAck(t *testing.T) {
	s := testServer(t)
	d := addDevice(t, s, testIfindex, peers.P2P)
	d.peers = []*fakePeer{{info: datapath.PeerInfo{ID: 3}}}
	c := newClient(t, s)
	c.join()
	req := ask(uapi.CmdPeerDel, fnest(uapi.AttrPeer, f32(uapi.PeerID, 3)))
	want := [][]byte{
		announced(s, ovpnFamily, datapath.Event{Kind: datapath.PeerDeleted, Ifindex: testIfindex, PeerID: 3, Reason: peers.Userspace}),
		acknowledge(req, c.Port(), nil, ackOptions{}),
	}
	if diff := cmp.Diff(hexLines(want), hexLines(c.ask(req))); diff != "" {
		t.Errorf("datagrams (-want +got):\n%s", diff)
	}
}

func TestNotifyOverrun(t *testing.T) {
	s := testServer(t)
	c := newClient(t, s)
	c.join()
	c.in.makeRoom(1)
	ev := datapath.Event{Kind: datapath.KeyExhausted, NetNS: homeID(t)}
	s.notify(ev)
	s.notify(ev) // Lost, and nobody waits.
	c.in.makeRoom(-1)
	s.notify(ev)
	if got := len(c.in.take()); got != 2 {
		t.Errorf("%d notifications, want 2", got)
	}
}

// TestCloseAnnouncesTeardown: a server that ends tells the listeners of every peer, in the order of a dump.
func TestCloseAnnouncesTeardown(t *testing.T) {
	s := testServer(t)
	d := addDevice(t, s, testIfindex, peers.MP)
	d.peers = []*fakePeer{{info: datapath.PeerInfo{ID: 3}}, {info: datapath.PeerInfo{ID: 1}}}
	c := newClient(t, s)
	c.join()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	event := datapath.Event{Kind: datapath.PeerDeleted, Ifindex: testIfindex, Reason: peers.Teardown}
	var want [][]byte
	for _, event.PeerID = range []uint32{3, 1} {
		want = append(want, announced(s, ovpnFamily, event))
	}
	if diff := cmp.Diff(hexLines(want), hexLines(c.in.take())); diff != "" {
		t.Errorf("datagrams (-want +got):\n%s", diff)
	}
	if _, err := s.OpenGeneric(s.home, c.in.deliver); err == nil {
		t.Error("a closed server opens sockets")
	}
}
