package netlinksrv

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ovpn-go/datapath"
	"ovpn-go/netlinksrv/uapi"
	"ovpn-go/peers"
)

const dumpFlags = unix.NLM_F_REQUEST | unix.NLM_F_DUMP

// crowd is a device with n peers, of 4 digits at most.
func crowd(t testing.TB, s *Server, n int) *fakeDevice {
	t.Helper()
	d := addDevice(t, s, testIfindex, peers.MP)
	for id := range n {
		d.peers = append(d.peers, &fakePeer{info: datapath.PeerInfo{
			ID: uint32(id), TxID: uint32(id), VPN4: netip.AddrFrom4([4]byte{10, 8, byte(id >> 8), byte(id)}),
			Remote: netip.MustParseAddrPort("10.0.0.1:1194"),
		}})
	}
	return d
}

// dumped splits a dump into the ids of its peers, by datagram, and how it ended.
func dumped(t *testing.T, datagrams [][]byte) (ids [][]uint32, end refusal) {
	t.Helper()
	if len(datagrams) == 0 {
		t.Fatal("no answer")
	}
	last := len(datagrams) - 1
	for _, d := range datagrams[:last] {
		if len(d) > maxDumpDatagram {
			t.Errorf("a datagram of %d bytes, more than %d", len(d), maxDumpDatagram)
		}
		var in []uint32
		for {
			msg, rest, ok := cutMessage(d)
			if !ok {
				break
			}
			if h := parseHeader(msg); h.kind != testFamily || h.flags != unix.NLM_F_MULTI || msg[headerSize] != uapi.CmdPeerGet {
				t.Errorf("message %+v, command %d in a dump", h, msg[headerSize])
			}
			each(msg, firstAttribute, func(a attribute) {
				eachInside(a, func(a attribute) {
					if a.number() == uapi.PeerID {
						in = append(in, a.u32())
					}
				})
			})
			d = rest
		}
		ids = append(ids, in)
	}
	if h := parseHeader(datagrams[last]); h.kind != unix.NLMSG_DONE || h.flags&unix.NLM_F_MULTI == 0 {
		t.Errorf("last message %+v does not end a dump", h)
	}
	return ids, readRefusal(t, datagrams[last])
}

func TestDumpPeers(t *testing.T) {
	for _, tt := range []struct {
		name      string
		peers     int
		datagrams []int
	}{
		{"none", 0, nil},
		{"one", 1, []int{1}},
		// 160 bytes each, as in the kernel's first datagram.
		{"a full datagram", 23, []int{23}},
		{"one more", 24, []int{23, 1}},
		{"many", 60, []int{23, 23, 14}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := testServer(t)
			crowd(t, s, tt.peers)
			c := newClient(t, s)
			ids, end := dumped(t, c.ask(message(uapi.CmdPeerGet, dumpFlags|unix.NLM_F_ACK, f32(uapi.AttrIfindex, testIfindex))))
			var sizes []int
			next := uint32(0)
			for _, in := range ids {
				sizes = append(sizes, len(in))
				for _, id := range in {
					if id != next {
						t.Errorf("peer %d, want %d", id, next)
					}
					next++
				}
			}
			if diff := cmp.Diff(tt.datagrams, sizes); diff != "" {
				t.Errorf("peers per datagram (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(refusal{}, end); diff != "" {
				t.Errorf("end (-want +got):\n%s", diff)
			}
		})
	}
}

// TestDumpRefusals: what is wrong with the request is an error, what is wrong with the interface ends the dump.
func TestDumpRefusals(t *testing.T) {
	for _, tt := range []struct {
		name string
		req  []byte
		kind uint16
		want refusal
	}{
		{"V1", message(uapi.CmdPeerGet, dumpFlags, f32(uapi.AttrIfindex, testIfindex), fnest(uapi.AttrPeer)), unix.NLMSG_ERROR,
			refusal{Errno: unix.EINVAL, Text: "Unknown attribute type", Offset: firstAttribute + 8}},
		{"I1", message(uapi.CmdPeerGet, dumpFlags), unix.NLMSG_DONE, refusal{Errno: unix.EINVAL, MissType: uapi.AttrIfindex}},
		{"I2", message(uapi.CmdPeerGet, dumpFlags, f32(uapi.AttrIfindex, 1234)), unix.NLMSG_DONE,
			refusal{Errno: unix.ENODEV, Text: "ovpn: ifindex does not match any interface"}},
		{"I3", message(uapi.CmdPeerGet, dumpFlags, f32(uapi.AttrIfindex, otherLink)), unix.NLMSG_DONE,
			refusal{Errno: unix.EINVAL, Text: "ovpn: specified interface is not ovpn", Offset: firstAttribute}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := testServer(t)
			crowd(t, s, 1)
			c := newExplainedClient(t, s)
			got := c.ask(tt.req)
			if len(got) != 1 || parseHeader(got[0]).kind != tt.kind {
				t.Fatalf("answers, want one of type %d:\n%s", tt.kind, hexLines(got))
			}
			if diff := cmp.Diff(tt.want, readRefusal(t, got[0])); diff != "" {
				t.Errorf("refusal (-want +got):\n%s", diff)
			}
		})
	}
}

// TestDumpWhileDumping: of two dumps in one datagram the second is refused before the first has ended.
func TestDumpWhileDumping(t *testing.T) {
	s := testServer(t)
	crowd(t, s, 1)
	c := newClient(t, s)
	dump := message(uapi.CmdPeerGet, dumpFlags, f32(uapi.AttrIfindex, testIfindex))
	got := c.ask(append(bytes.Clone(dump), dump...))
	if len(got) != 3 {
		t.Fatalf("%d datagrams, want a peer, an error and the end:\n%s", len(got), hexLines(got))
	}
	if e := readRefusal(t, got[1]); e.Errno != unix.EBUSY {
		t.Errorf("second dump: %v, want EBUSY", e.Errno)
	}
	dumped(t, [][]byte{got[0], got[2]})
	dumped(t, c.ask(dump))
}

// TestDumpGoesOnByCount: after the first datagram a dump goes on behind as many peers as it has given, of those that
// there are then. So one is missed when another has been deleted meanwhile.
func TestDumpGoesOnByCount(t *testing.T) {
	s := testServer(t)
	crowd(t, s, 25)
	c := newClient(t, s)
	dump := message(uapi.CmdPeerGet, dumpFlags, f32(uapi.AttrIfindex, testIfindex))
	deletion := message(uapi.CmdPeerDel, unix.NLM_F_REQUEST, f32(uapi.AttrIfindex, testIfindex), fnest(uapi.AttrPeer, f32(uapi.PeerID, 0)))
	ids, _ := dumped(t, c.ask(append(dump, deletion...)))
	if len(ids) != 2 || len(ids[0]) != 23 {
		t.Fatalf("peers by datagram are %v", ids)
	}
	if diff := cmp.Diff([]uint32{24}, ids[1]); diff != "" {
		t.Errorf("second datagram (-want +got):\n%s", diff)
	}
}

// TestDumpWaitsForRoom: a client that does not read loses nothing of a dump, unlike other answers.
func TestDumpWaitsForRoom(t *testing.T) {
	s := testServer(t)
	crowd(t, s, 60)
	c := newClient(t, s)
	dump := message(uapi.CmdPeerGet, dumpFlags, f32(uapi.AttrIfindex, testIfindex))
	c.in.makeRoom(1)
	if got := c.ask(dump); len(got) != 1 {
		t.Fatalf("%d datagrams in a queue of one", len(got))
	}
	c.ask(dump) // Refused, and the refusal is lost.
	c.in.makeRoom(-1)
	var rest [][]byte
	deadline := time.After(10 * time.Second)
	for len(rest) < 3 {
		select {
		case <-c.in.arrived:
			rest = append(rest, c.in.take()...)
		case <-deadline:
			t.Fatalf("%d more datagrams, want 3", len(rest))
		}
	}
	ids, _ := dumped(t, rest)
	if diff := cmp.Diff([]int{23, 14}, []int{len(ids[0]), len(ids[1])}); diff != "" {
		t.Errorf("peers in the datagrams that waited (-want +got):\n%s", diff)
	}
}

// TestDumpOfVanishingDevice: the interface is looked at again for each datagram.
func TestDumpOfVanishingDevice(t *testing.T) {
	s := testServer(t)
	d := crowd(t, s, 60)
	c := newExplainedClient(t, s)
	c.in.makeRoom(1)
	first := c.ask(message(uapi.CmdPeerGet, dumpFlags, f32(uapi.AttrIfindex, testIfindex)))
	d.Close()
	// The next datagram was made already; the one after it is not.
	c.in.makeRoom(-1)
	rest := first
	for deadline := time.After(10 * time.Second); len(rest) < 3; {
		select {
		case <-c.in.arrived:
			rest = append(rest, c.in.take()...)
		case <-deadline:
			t.Fatalf("%d datagrams, want 3", len(rest))
		}
	}
	_, end := dumped(t, rest)
	want := refusal{Errno: unix.ENODEV, Text: "ovpn: ifindex does not match any interface"}
	if diff := cmp.Diff(want, end); diff != "" {
		t.Errorf("end (-want +got):\n%s", diff)
	}
}

func TestCloseEndsADumpThatWaits(t *testing.T) {
	s := testServer(t)
	crowd(t, s, 60)
	c := newClient(t, s)
	c.in.makeRoom(0)
	c.ask(message(uapi.CmdPeerGet, dumpFlags, f32(uapi.AttrIfindex, testIfindex)))
	c.GenericSocket.Close() // Would not return.
}

func BenchmarkDumpPeers(b *testing.B) {
	s := testServer(b)
	d := crowd(b, s, 1000)
	infos := d.Peers()
	r := &request{server: s}
	ids := &namespaceIDs{from: s.home}
	var size int64
	for b.Loop() {
		size = 0
		for i := range infos {
			size += int64(len(r.peerReply(&infos[i], unix.NLM_F_MULTI, ids)))
		}
	}
	b.SetBytes(size)
}
