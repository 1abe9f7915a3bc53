package datapath

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"ovpn-go/crypto"
	"ovpn-go/peers"
	"ovpn-go/tun/tuntest"
)

// A turn gives each source a share, however much one of them has: a peer on a flooded socket, or one with a fast
// connection, keeps nobody else waiting for longer than that.
func TestSourcesTakeTurns(t *testing.T) {
	s := newStage(t)
	var drained []string
	flood := source{fd: -1, worker: s.worker, drain: func() bool { drained = append(drained, "flood"); return true }}
	calm := source{fd: -1, worker: s.worker, drain: func() bool { drained = append(drained, "calm"); return false }}
	s.markReadable(&flood)
	for range 3 {
		s.markReadable(&calm)
		s.rx.turn()
	}
	want := []string{"flood", "calm", "flood", "calm", "flood", "calm"}
	if !slices.Equal(drained, want) {
		t.Errorf("drained in the order %v, want %v", drained, want)
	}
	if !flood.readable || calm.readable {
		t.Error("the source that has more is not the one that is left")
	}
}

// The kernel tells of an interface's end a moment before a read from its queue fails, and once only. A worker that goes back to
// sleep on the empty queue would keep the device for ever.
func TestDeletedInterfaceWhoseQueueStillReads(t *testing.T) {
	s := newStage(t)
	s.dev.table = peers.NewTable(peers.P2P) // nobody is to be told
	s.worker.dispatch([]unix.EpollEvent{{Fd: int32(s.queue.FD()), Events: unix.EPOLLIN}})
	s.worker.runAfter()
	if s.dev.stopping {
		t.Fatal("the device ends when its queue can be read")
	}
	s.worker.dispatch([]unix.EpollEvent{{Fd: int32(s.queue.FD()), Events: unix.EPOLLERR}})
	s.worker.runAfter()
	if !s.dev.stopping {
		t.Error("the device goes on")
	}
}

// The share of a UDP socket in a turn is bounded, as is what a device holds of a flood: the rest waits in the socket,
// whose buffer is limited.
func TestFloodedSocketHasItsShare(t *testing.T) {
	s := newStage(t)
	fd, at := loopbackUDP(t)
	sock := new(udpSocket)
	const share = receivesPerTurn * vectorLen
	const more = 20
	runt := []byte{0}
	for range share + more {
		if err := unix.Sendto(fd, runt, 0, sockaddr(unix.AF_INET, at)); err != nil {
			t.Fatal(err)
		}
	}
	// A datagram of one byte is dropped and counted.
	received := func() int { return int(s.dev.Stats().Drops[DropRunt.String()]) }
	if !s.rx.socket(sock, fd) || received() != share {
		t.Errorf("one turn took %d datagrams of %d, want %d and more to come", received(), share+more, share)
	}
	if s.rx.socket(sock, fd) || received() != share+more {
		t.Errorf("two turns took %d datagrams of %d, want all", received(), share+more)
	}
}

// Peers that flood a device through one queue, the interface's or a socket's, lose in proportion to what they bring: what
// waits is taken in the order in which it came. So the loss does not fall on a peer that brings a tenth.
func TestFloodsLoseInProportion(t *testing.T) {
	const (
		flood, calm = 0, 1
		every       = 11 // the calm peer's packets among all
		rounds      = 40
		burst       = 3 * 128 // packets between two turns: more than either takes
	)
	tests := []struct {
		from string
		// open returns what brings a packet of a peer, or loses it, and what takes some of those that wait.
		open  func(t *testing.T, s *stage) (bring func(peer uint32), turn func())
		taken func(peers.Stats) uint64
	}{
		{"the interface", floodInterface, func(c peers.Stats) uint64 { return c.LinkTxPackets }},
		{"the socket", floodSocket, func(c peers.Stats) uint64 { return c.LinkRxPackets }},
	}
	for _, test := range tests {
		t.Run(test.from, func(t *testing.T) {
			s := manyPeers(t, 2)
			bring, turn := test.open(t, s)
			for i := range rounds * burst {
				if i%every == every/2 {
					bring(calm)
				} else {
					bring(flood)
				}
				if i%burst == burst-1 {
					turn()
				}
			}
			of := func(peer uint32) int { return int(test.taken(s.dev.table.ByID(peer + 1).Counters.Stats())) }
			all := of(flood) + of(calm)
			if all < rounds || all > rounds*burst/2 {
				t.Fatalf("%d of %d packets were taken: no flood", all, rounds*burst)
			}
			// The packets between two losses may be one short of a whole number of periods.
			if want := all/every - rounds; of(calm) < want || of(calm) > all/every+rounds {
				t.Errorf("%d of %d packets are the calm peer's, want one of %d", of(calm), all, every)
			}
			drops := s.dev.Stats().Drops
			delete(drops, DropLink.String()) // the stage's stack takes nothing
			if len(drops) != 0 {
				t.Errorf("drops %v", drops)
			}
		})
	}
}

// floodInterface brings packets as the stack does, to an interface whose queue may be full.
func floodInterface(t *testing.T, s *stage) (bring func(peer uint32), turn func()) {
	queue, stack := tuntest.Pair(t)
	s.queue = queue
	fd := rawFD(t, stack)
	frames := [][]byte{}
	for peer := range uint32(2) {
		frames = append(frames, tuntest.Frame(udp4("192.0.2.1", vpnOf(peer).String(), "36 bytes make a packet of 64 of it..")))
	}
	bring = func(peer uint32) {
		if _, err := unix.Write(fd, frames[peer]); err != nil && err != unix.EAGAIN {
			t.Fatal(err)
		}
	}
	return bring, s.tx.turn
}

// floodSocket brings packets as the peers do, to a socket whose buffer may be full.
func floodSocket(t *testing.T, s *stage) (bring func(peer uint32), turn func()) {
	receiving, to := loopbackUDP(t)
	sending, remote := loopbackUDP(t)
	for _, p := range s.dev.table.All() {
		s.dev.table.Rebind(p, &peers.Binding{Remote: remote})
	}
	_, other := keyPair(crypto.AESGCM, 0)
	id := uint32(0)
	bring = func(peer uint32) {
		id++
		inner := udp4(vpnOf(peer).String(), "192.0.2.1", "36 bytes make a packet of 64 of it..")
		if err := unix.Sendto(sending, sealed(t, other, peer+1, id, inner), 0, sockaddr(unix.AF_INET, to)); err != nil {
			t.Fatal(err)
		}
	}
	sock := new(udpSocket)
	return bring, func() { s.rx.socket(sock, receiving); s.rx.flush() }
}
