package datapath

import (
	"encoding/binary"
	"log/slog"
	"math"
	"net/netip"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"ovpn-go/crypto"
	"ovpn-go/peers"
	"ovpn-go/tun"
	"ovpn-go/tun/tuntest"
)

// stage is a worker without a goroutine, so that a test or benchmark drives its stages one at a time.
type stage struct {
	*worker
	from netip.AddrPort
	key  crypto.KeyConfig // of the other side
}

func newStage(t testing.TB) *stage {
	t.Helper()
	queue, kernel := tuntest.Pair(t)
	// A stack that swallows everything: writes to a socket whose other end is gone cost a system call and no
	// memory.
	kernel.Close()
	d := &Device{mode: peers.P2P, gso: GSOOn, table: peers.NewTable(peers.P2P), log: slog.New(slog.DiscardHandler)}
	w, err := newWorker(d, 0, queue)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.closeDescriptors)
	d.workers = []*worker{w}

	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	s := &stage{worker: w}
	_, s.from = loopbackUDP(t)
	own, other := keyPair(crypto.AESGCM, 0)
	s.key = other
	p := peers.New(peers.Config{ID: 1, TxID: 1})
	p.SetTransport(&transport{udp: &udpSocket{owner: d, lanes: []source{{fd: fd}}, info: udpInfo{Family: unix.AF_INET}}})
	if _, err := d.table.Add(p); err != nil {
		t.Fatal(err)
	}
	d.table.Rebind(p, &peers.Binding{Remote: s.from})
	key, err := crypto.NewKey(own)
	if err != nil {
		t.Fatal(err)
	}
	p.Keys.Install(crypto.Primary, key)
	return s
}

const (
	stageMSS      = 1368
	stageSegments = 45
)

// superFrame is what the stack hands over in one read of a bulk TCP transfer.
func superFrame() []byte {
	const header = 40
	frame := make([]byte, tun.VnetHdrLen+header+stageSegments*stageMSS)
	vnet := tun.VnetHdr{
		Flags: unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, GSOType: unix.VIRTIO_NET_HDR_GSO_TCPV4,
		HdrLen: header, GSOSize: stageMSS, CsumStart: 20, CsumOffset: 16,
	}
	vnet.Encode(frame)
	p := frame[tun.VnetHdrLen:]
	p[0], p[8], p[9], p[32] = 0x45, 64, unix.IPPROTO_TCP, 5<<4
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	copy(p[12:], []byte{10, 8, 0, 1, 10, 8, 0, 2})
	p[33] = 0x10 // ACK
	return frame
}

// groBuffer is one UDP GRO buffer of a bulk TCP transfer, with packet ids from first on.
func groBuffer(t testing.TB, cfg crypto.KeyConfig, first uint32) (data []byte, stride int) {
	t.Helper()
	key, err := crypto.NewKey(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var split tun.Splitter
	if err := split.Reset(superFrame()); err != nil {
		t.Fatal(err)
	}
	data = make([]byte, 0, receiveBufferLen)
	for id := first; ; id++ {
		packet, ok := split.Next()
		if !ok {
			return data, stride
		}
		n := len(data)
		data = data[:n+crypto.Overhead+len(packet)]
		key.Seal(data[n:], packet, crypto.Op(0, 1), id)
		stride = max(stride, len(data)-n)
	}
}

func TestTransmitDoesNotAllocate(t *testing.T) {
	s := newStage(t)
	frame, work := superFrame(), superFrame()
	if n := testing.AllocsPerRun(100, func() {
		copy(work, frame)
		s.tx.transmit(work)
		s.tx.flush()
	}); n != 0 {
		t.Errorf("%v allocations per super-frame, want 0", n)
	}
	st := s.dev.Stats()
	if st.TxPackets != 101*stageSegments || len(st.Drops) != 0 {
		t.Errorf("stats = %+v, want %d packets and no drops", st, 101*stageSegments)
	}
}

// The ways out that are taken where batches of datagrams can't be, or where packets are too long.
func TestOtherWaysOutDoNotAllocate(t *testing.T) {
	for _, row := range []struct {
		way    string
		change func(t *testing.T, s *stage, tr *transport)
	}{
		{"one by one", func(_ *testing.T, s *stage, _ *transport) { s.dev.gso = GSOOff }},
		{"with hints", func(_ *testing.T, s *stage, tr *transport) { tr.path.whole.Store(stageMSS) }},
		{"TCP", func(t *testing.T, s *stage, tr *transport) {
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			var reader sync.WaitGroup
			reader.Go(func() {
				for buf := make([]byte, 1<<20); ; {
					if n, err := unix.Read(fds[1], buf); n == 0 || err != nil && err != unix.EINTR {
						return
					}
				}
			})
			t.Cleanup(func() {
				unix.Close(fds[0])
				reader.Wait()
				unix.Close(fds[1])
			})
			tr.udp, tr.tcp = nil, &tcpConn{dev: s.dev, worker: s.worker, stream: source{fd: fds[0]}, client: source{fd: -1}}
			tr.tcp.become(tcpPlain, tcpCarrying)
		}},
	} {
		t.Run(row.way, func(t *testing.T) {
			s := newStage(t)
			tr := transportOf(s.dev.table.Sole())
			tr.path.due.Store(math.MaxInt64) // the route is not looked up for each packet
			row.change(t, s, tr)
			frame, work := superFrame(), superFrame()
			frame[tun.VnetHdrLen+6] = 0x40 // DF
			if n := testing.AllocsPerRun(100, func() {
				copy(work, frame)
				s.tx.transmit(work)
				s.tx.flush()
				s.tx.hints.sent = 0
			}); n != 0 {
				t.Errorf("%v allocations per super-frame, want 0", n)
			}
			if drops := s.dev.Stats().Drops; len(drops) != 0 && tr.tcp == nil {
				t.Errorf("drops = %v, want none", drops)
			}
		})
	}
}

func TestReceiveDoesNotAllocate(t *testing.T) {
	s := newStage(t)
	var buffers [][]byte
	var stride int
	for i := range uint32(101) {
		var b []byte
		b, stride = groBuffer(t, s.key, 1+i*stageSegments)
		buffers = append(buffers, b)
	}
	i := 0
	if n := testing.AllocsPerRun(100, func() {
		s.rx.buffer(nil, received{data: buffers[i], stride: stride, remote: s.from})
		s.rx.flush()
		i++
	}); n != 0 {
		t.Errorf("%v allocations per GRO buffer, want 0", n)
	}
	if got := s.dev.table.Sole().Counters.Stats().LinkRxPackets; got != 101*stageSegments {
		t.Errorf("%d packets received, want %d", got, 101*stageSegments)
	}
	// The stack's end is gone, as an interface is that is down: nothing was delivered, and all of it dropped.
	st := s.dev.Stats()
	if st.RxPackets != 0 || st.Drops[DropLink.String()] != 101*stageSegments {
		t.Errorf("stats = %+v, want no packets and %d drops for the link", st, 101*stageSegments)
	}
}

func TestTooLongPacketIsDropped(t *testing.T) {
	s := newStage(t)
	frame := make([]byte, tun.VnetHdrLen+65535)
	frame[tun.VnetHdrLen] = 0x45
	s.tx.transmit(frame)
	if got := s.dev.Stats().Drops[DropTooLong.String()]; got != 1 {
		t.Errorf("%d drops, want 1", got)
	}
	longest := frame[:tun.VnetHdrLen+maxInner]
	s.tx.transmit(longest)
	s.tx.flush()
	if st := s.dev.Stats(); st.TxPackets != 1 {
		t.Errorf("stats = %+v, want the longest packet sent", st)
	}
}

// BenchmarkTransmit is one super-frame from the splitter to the UDP send over loopback.
func BenchmarkTransmit(b *testing.B) {
	s := newStage(b)
	frame, work := superFrame(), superFrame()
	b.SetBytes(int64(len(frame)))
	b.ReportAllocs()
	for b.Loop() {
		copy(work, frame)
		s.tx.transmit(work)
		s.tx.flush()
	}
}

// BenchmarkReceive is one GRO buffer up to the TUN write, which fails at once. The packet ids must be new each
// time, so the sealing is done with the clock stopped.
func BenchmarkReceive(b *testing.B) {
	s := newStage(b)
	first := uint32(1)
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		data, stride := groBuffer(b, s.key, first)
		b.SetBytes(int64(len(data)))
		first += stageSegments
		b.StartTimer()
		s.rx.buffer(nil, received{data: data, stride: stride, remote: s.from})
		s.rx.flush()
	}
}
