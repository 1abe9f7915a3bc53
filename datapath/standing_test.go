package datapath

import (
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/tun"
	"ovpn-go/tun/tuntest"
)

func TestStanding(t *testing.T) {
	const ms = int64(time.Millisecond)
	start := int64(time.Hour)
	// lost plays turns a tenth of a millisecond apart that read so many bytes each, of which those at the given times ran the
	// queue dry.
	lost := func(length int64, bytes int, dry ...int64) (n int) {
		var s standing
		for at := int64(0); at < length; at += ms / 10 {
			now := start + at
			if s.due(now) {
				n++
			}
			s.seen(now, bytes, slices.Contains(dry, at))
		}
		return n
	}
	for _, row := range []struct {
		rule   string
		length int64
		bytes  int
		dry    []int64
		want   int
	}{
		{"a queue that has not stood for long loses nothing", standingFor, bytesPerTurn, nil, 0},
		{"then one packet", standingFor + ms, bytesPerTurn, nil, 1},
		{"and more often the longer it stands", 10 * standingFor, bytesPerTurn, nil, 25},
		{"one that runs dry begins anew", 2*standingFor - ms, bytesPerTurn, []int64{standingFor - ms}, 0},
		{"a slow machine's loses nothing before as much was read", 20 * standingFor, standingBytes / 600, nil, 0},
		{"but then", 20*standingFor + 2*ms, standingBytes / 600, nil, 1},
	} {
		if got := lost(row.length, row.bytes, row.dry...); got != row.want {
			t.Errorf("%s: %d lost, want %d", row.rule, got, row.want)
		}
	}
}

// A standing queue costs TCP's super-frames a packet at a time, and nobody else one.
func TestStandingQueueLosesOfStreamsOnly(t *testing.T) {
	s := newStage(t)
	stand := func() { s.tx.queue = standing{since: 1, next: s.clock.mono} }
	lost := func() int { return int(s.dev.Stats().Drops[DropStanding.String()]) }

	stand()
	s.tx.transmit(superFrame())
	s.tx.transmit(superFrame())
	s.tx.flush()
	st := s.dev.Stats()
	if lost() != 1 || st.TxPackets != 2*stageSegments-1 {
		t.Errorf("%d lost and %d sent of two super-frames, want 1 and %d", lost(), st.TxPackets, 2*stageSegments-1)
	}
	c := s.dev.table.Sole().Counters.Stats()
	if c.VPNTxPackets != 2*stageSegments-1 || c.LinkTxPackets != 2*stageSegments-1 {
		t.Errorf("the peer's counters have %d and %d packets, want those that were not lost in the interface's queue", c.VPNTxPackets, c.LinkTxPackets)
	}

	udp := superFrame()
	vnet := tun.VnetHdr{Flags: unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, GSOType: unix.VIRTIO_NET_HDR_GSO_UDP_L4,
		HdrLen: 28, GSOSize: stageMSS, CsumStart: 20, CsumOffset: 6}
	vnet.Encode(udp)
	udp[tun.VnetHdrLen+9] = unix.IPPROTO_UDP
	for name, frame := range map[string][]byte{
		"a UDP super-frame": udp,
		"a lone packet":     tuntest.Frame(tuntest.TCP4("10.8.0.1:1", "10.8.0.2:2", 1, []byte("x"))),
	} {
		stand()
		before := s.dev.Stats().TxPackets
		s.tx.transmit(frame)
		s.tx.flush()
		if s.dev.Stats().TxPackets == before {
			t.Errorf("%s was not sent", name)
		}
		if lost() != 1 {
			t.Errorf("%s lost a packet", name)
		}
	}
	frame, work := superFrame(), superFrame()
	if n := testing.AllocsPerRun(100, func() {
		stand()
		copy(work, frame)
		s.tx.transmit(work)
		s.tx.flush()
	}); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
	if lost() < 100 {
		t.Errorf("%d lost in all, want one for each super-frame", lost())
	}
}
