package datapath

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/crypto"
	"ovpn-go/peers"
	"ovpn-go/tun"
)

func TestGSOByKernel(t *testing.T) {
	even, uneven := &batch{count: 2, stride: 100}, &batch{count: 2, stride: 100, short: true}
	for _, row := range []struct {
		mode         GSO
		release      string
		even, uneven bool
	}{
		{GSOAuto, "5.9.0", true, true},
		{GSOAuto, "6.19.7", true, true},
		{GSOAuto, "7.0.0", false, true},
		{GSOAuto, "7.1.4-generic", false, true},
		{GSOAuto, "7.1.5", true, true},
		{GSOAuto, "7.3.4", true, true},
		{GSOAuto, "", true, true},
		{GSOOn, "7.0.0", true, true},
		{GSOOff, "6.12.0", false, false},
	} {
		g := row.mode.on(tun.ParseRelease(row.release))
		if g.suits(even) != row.even || g.suits(uneven) != row.uneven {
			t.Errorf("%v on %q is %v: even %v, uneven %v", row.mode, row.release, g, g.suits(even), g.suits(uneven))
		}
	}
}

func TestGSOText(t *testing.T) {
	for _, want := range []GSO{GSOAuto, GSOOn, GSOOff} {
		text, err := want.MarshalText()
		var got GSO
		if err != nil || got.UnmarshalText(text) != nil || got != want {
			t.Errorf("%v becomes %q becomes %v", want, text, got)
		}
	}
	for _, text := range []string{"", "uneven", "yes"} {
		if new(GSO).UnmarshalText([]byte(text)) == nil {
			t.Errorf("%q is accepted", text)
		}
	}
}

func TestGSORefusals(t *testing.T) {
	for _, row := range []struct {
		err          error
		short, equal bool // still worth a try: datagrams that are shorter, and as long
	}{
		{unix.EIO, false, false},
		{unix.EMSGSIZE, true, false},
		{unix.EINVAL, true, false},
		{unix.ENETUNREACH, true, true},
	} {
		var g gsoState
		g.refused(row.err, 1000, 50)
		if g.allowed(999, 51) != row.short || g.allowed(1000, 51) != row.equal {
			t.Errorf("%v: short %v, equal %v", row.err, g.allowed(999, 51), g.allowed(1000, 51))
		}
		if !g.allowed(1000, 50+gsoRetrySeconds) {
			t.Errorf("%v: never tried again", row.err)
		}
	}
}

// A batch that the kernel refuses is sent again, one by one, and none of it is lost. Here it refuses because the
// client's socket sends without checksums.
func TestRefusedBatchesAreSentOneByOne(t *testing.T) {
	sockets := newSockets(t)
	a := newEnd(t, peers.P2P, sockets, "127.0.0.1:0")
	b := newEnd(t, peers.P2P, sockets, "127.0.0.1:0")
	raw, err := a.client.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_NO_CHECK, 1) })
	if err != nil {
		t.Fatal(err)
	}
	ka, kb := keyPair(crypto.AESGCM, 0)
	a.addPeer(t, PeerConfig{ID: 1, TxID: 2, Remote: b.addr()}, ka)
	b.addPeer(t, PeerConfig{ID: 2, TxID: 1, Remote: a.addr()}, kb)
	for i, end := range []*end{a, b} {
		if o := end.Offloads(); len(o.Sockets) != 1 || o.Sockets[0].OneByOne != 0 || o.Sockets[0].LocalPort != end.addr().Port() || o.GSO != "on" || !o.Write.TSO || o.RefusedFrames != 0 {
			t.Errorf("end %d before: %+v", i, o)
		}
	}
	const frames = 3
	for range frames {
		if _, err := a.link.stacks[0].Write(superFrame()); err != nil {
			t.Fatal(err)
		}
	}
	for end := time.Now().Add(10 * time.Second); b.table.Sole().Counters.Stats().LinkRxPackets < frames*stageSegments; {
		if time.Now().After(end) {
			t.Fatalf("%d of %d packets arrived", b.table.Sole().Counters.Stats().LinkRxPackets, frames*stageSegments)
		}
		time.Sleep(time.Millisecond)
	}
	if s := a.Stats(); s.TxPackets != frames*stageSegments || len(s.Drops) != 0 {
		t.Errorf("stats %+v", s)
	}
	if o := a.Offloads(); o.Sockets[0].OneByOne != 1 {
		t.Errorf("after: %+v", o)
	}
	if o := b.Offloads(); o.Sockets[0].OneByOne != 0 {
		t.Errorf("the other end: %+v", o)
	}
}
