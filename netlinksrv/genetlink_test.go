package netlinksrv

import (
	"errors"
	"iter"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"ovpn-go/datapath"
	"ovpn-go/netlinksrv/uapi"
	"ovpn-go/peers"
)

// libraryConn puts a client of ours under the library's connection, in place of a socket.
type libraryConn struct {
	*client
	queue [][]byte
}

func (l *libraryConn) Close() error { return nil }

func (l *libraryConn) Send(m netlink.Message) error {
	b, err := m.MarshalBinary()
	if err == nil {
		l.queue = append(l.queue, l.ask(b)...)
	}
	return err
}

func (l *libraryConn) SendMessages([]netlink.Message) error { return errors.ErrUnsupported }

func (l *libraryConn) Receive() (messages []netlink.Message, err error) {
	if len(l.queue) == 0 {
		return nil, unix.EAGAIN
	}
	datagram := l.queue[0]
	l.queue = l.queue[1:]
	for {
		msg, rest, ok := cutMessage(datagram)
		if !ok {
			return messages, nil
		}
		var m netlink.Message
		// The library wants the padding of an acknowledgement's echo to be there, and nothing else of it.
		if err := m.UnmarshalBinary(msg); err != nil {
			return nil, err
		}
		messages = append(messages, m)
		datagram = rest
	}
}

func (l *libraryConn) ReceiveIter() iter.Seq2[netlink.Message, error] {
	return func(yield func(netlink.Message, error) bool) {
		messages, err := l.Receive()
		if err != nil {
			yield(netlink.Message{}, err)
			return
		}
		for _, m := range messages {
			if !yield(m, nil) {
				return
			}
		}
	}
}

// TestGoLibrary drives the family with github.com/mdlayher/genetlink, which checks more of an answer than others.
func TestGoLibrary(t *testing.T) {
	s := testServer(t)
	d := addDevice(t, s, testIfindex, peers.P2P)
	d.peers = []*fakePeer{{info: datapath.PeerInfo{ID: 5, TxID: 6, TCP: true}}}
	c := newExplainedClient(t, s)
	lower := &libraryConn{client: c}
	conn := genetlink.NewConn(netlink.NewConn(lower, c.Port()))

	family, err := conn.GetFamily("ovpn")
	if err != nil {
		t.Fatal(err)
	}
	want := genetlink.Family{
		ID: testFamily, Version: 1, Name: "ovpn", Groups: []genetlink.MulticastGroup{{ID: testGroup, Name: "peers"}},
	}
	if diff := cmp.Diff(want, family); diff != "" {
		t.Errorf("family (-want +got):\n%s", diff)
	}
	if _, err := conn.GetFamily("no-such-family"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("unknown family: %v, want ENOENT", err)
	}
	families, err := conn.ListFamilies()
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, f := range families {
		if f.Name == "ovpn" {
			found++
			if diff := cmp.Diff(want, f); diff != "" {
				t.Errorf("family in the list (-want +got):\n%s", diff)
			}
		}
	}
	if found != 1 || len(families) < 2 {
		t.Errorf("ovpn is %d times in a list of %d families", found, len(families))
	}

	request := func(flags netlink.HeaderFlags, id uint32) ([]genetlink.Message, error) {
		e := netlink.NewAttributeEncoder()
		e.Uint32(uapi.AttrIfindex, testIfindex)
		if flags&netlink.Dump == 0 {
			e.Nested(uapi.AttrPeer, func(e *netlink.AttributeEncoder) error {
				e.Uint32(uapi.PeerID, id)
				return nil
			})
		}
		data, err := e.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return conn.Execute(genetlink.Message{
			Header: genetlink.Header{Command: uapi.CmdPeerGet, Version: 1}, Data: data,
		}, family.ID, netlink.Request|flags)
	}
	for _, flags := range []netlink.HeaderFlags{0, netlink.Dump} {
		got, err := request(flags, 5)
		if err != nil || len(got) != 1 || got[0].Header.Command != uapi.CmdPeerGet {
			t.Errorf("PEER_GET with flags %v: %+v, %v", flags, got, err)
		}
	}
	_, err = request(0, 7)
	var op *netlink.OpError
	if !errors.As(err, &op) || !errors.Is(err, unix.ENOENT) || op.Message != "ovpn: cannot find peer with id 7" {
		t.Errorf("PEER_GET of an unknown peer: %v", err)
	}
	if len(lower.queue) > 0 {
		t.Errorf("the library left behind:\n%s", hexLines(lower.queue))
	}
}
