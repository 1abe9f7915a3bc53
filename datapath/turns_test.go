package datapath

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"
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

// The share of a UDP socket in a turn is bounded, as is what a device holds of a flood: the rest waits in the socket,
// whose buffer is limited.
func TestFloodedSocketHasItsShare(t *testing.T) {
	s := newStage(t)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	to, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	sock := new(udpSocket)
	const share = receivesPerTurn * vectorLen
	const more = 20
	runt := []byte{0}
	for range share + more {
		if err := unix.Sendto(fd, runt, 0, to); err != nil {
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
