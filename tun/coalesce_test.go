package tun_test

import (
	"bytes"
	"encoding/binary"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ovpn-go/tun"
	"ovpn-go/tun/tuntest"
)

// commit hands a packet to the Coalescer as a tunnel does.
func commit(c *tun.Coalescer, packet []byte) (dropped int) {
	copy(c.Next(len(packet)), packet)
	return c.Commit()
}

// gather is the test's end of a Coalescer: it knows what was committed and checks what arrives.
type gather struct {
	t         testing.TB
	coalescer *tun.Coalescer
	kernel    *os.File
	committed [][]byte // and not yet arrived
	frames    int
	largest   int // packets in one frame
}

func newGather(t testing.TB) *gather {
	queue, kernel := tuntest.Pair(t)
	return &gather{t: t, coalescer: tun.NewCoalescer(queue), kernel: kernel}
}

func (g *gather) commit(packet []byte) {
	g.t.Helper()
	g.committed = append(g.committed, bytes.Clone(packet))
	if n := commit(g.coalescer, packet); n != 0 {
		g.t.Fatalf("Commit dropped %d packets", n)
	}
	g.collect()
}

func (g *gather) abandon(garbage []byte) {
	g.t.Helper()
	copy(g.coalescer.Next(len(garbage)), garbage)
	g.coalescer.Abandon()
	g.collect()
}

// flush also checks that nothing is left behind.
func (g *gather) flush() {
	g.t.Helper()
	if n := g.coalescer.Flush(); n != 0 {
		g.t.Fatalf("Flush dropped %d packets", n)
	}
	g.collect()
	if len(g.committed) != 0 {
		g.t.Fatalf("%d packets have not arrived after Flush", len(g.committed))
	}
}

// collect compares the frames that have arrived, segmented as a kernel does, with what was
// committed, in order.
func (g *gather) collect() {
	g.t.Helper()
	for _, frame := range tuntest.Drain(g.t, g.kernel) {
		packets, err := tuntest.Segment(frame)
		if err != nil {
			g.t.Fatalf("the kernel refuses a frame of %d bytes: %v", len(frame), err)
		}
		if len(packets) == 1 && !bytes.Equal(frame[:tun.VnetHdrLen], make([]byte, tun.VnetHdrLen)) {
			g.t.Fatalf("a lone packet has vnet header %x", frame[:tun.VnetHdrLen])
		}
		g.frames++
		g.largest = max(g.largest, len(packets))
		for i, got := range packets {
			if len(g.committed) == 0 {
				g.t.Fatalf("a packet too many: %x", got)
			}
			want := g.committed[0]
			g.committed = g.committed[1:]
			if len(packets) > 1 && want[0]>>4 == 4 && want[6]&0x40 != 0 && i > 0 {
				got, want = withoutID(g.t, got), withoutID(g.t, want)
			}
			if !bytes.Equal(got, want) {
				g.t.Fatalf("packet %d of %d (-committed +arrived):\n%s", i, len(packets), cmp.Diff(want, got))
			}
		}
	}
}

// withoutID clears the id of an IPv4 packet and takes it out of the header checksum.
func withoutID(t testing.TB, packet []byte) []byte {
	t.Helper()
	p := bytes.Clone(packet)
	header := p[:int(p[0]&15)*4]
	if tuntest.Sum(header) != 0xffff {
		t.Fatalf("a merged packet has a wrong IPv4 checksum: %x", header)
	}
	binary.BigEndian.PutUint16(header[4:], 0)
	binary.BigEndian.PutUint16(header[10:], 0)
	return p
}

func TestCoalesceDeliversWhatWasCommitted(t *testing.T) {
	random := newRandom(t)
	merged := 0
	for range 60 {
		g := newGather(t)
		streams := []*stream{newStream(random), newStream(random)}
		odds := 1 + random.IntN(100)
		at := 0
		for range 300 {
			if random.IntN(20) == 0 {
				at = 1 - at
			}
			p := streams[at].next(odds)
			switch random.IntN(40) {
			case 0:
				g.flush()
			case 1, 2:
				g.abandon(p)
			case 3:
				g.abandon(randomBytes(random, 1+random.IntN(2000)))
			}
			g.commit(p)
		}
		g.flush()
		if want := uint64(300); g.coalescer.Stats().Packets != want {
			t.Fatalf("Stats counts %d packets, want %d", g.coalescer.Stats().Packets, want)
		}
		if got := g.coalescer.Stats().Writes; got != uint64(g.frames) {
			t.Fatalf("Stats counts %d writes, want %d", got, g.frames)
		}
		merged = max(merged, g.largest)
	}
	if merged < 10 {
		t.Errorf("no frame held more than %d packets", merged)
	}
}

func TestCoalesceFillsFrames(t *testing.T) {
	ip4 := tuntest.IP{Src: client4, Dst: server4}
	ip6 := tuntest.IP{Src: client6, Dst: server6}
	t.Run("TCP up to what IP can describe", func(t *testing.T) {
		for _, ip := range []tuntest.IP{ip4, ip6} {
			g := newGather(t)
			tcp := tuntest.TCP{Seq: 1, Flags: tuntest.ACK}
			for range 2 * 47 {
				g.commit(ip.TCP(tcp, make([]byte, 1376)))
				tcp.Seq += 1376
				ip.ID++
			}
			g.flush()
			if g.frames != 2 || g.largest != 47 {
				t.Errorf("%d frames of at most %d packets, want 2 of 47", g.frames, g.largest)
			}
		}
	})
	t.Run("a short packet still fits", func(t *testing.T) {
		g := newGather(t)
		tcp := tuntest.TCP{Seq: 1, Flags: tuntest.ACK}
		ip := ip4
		for range 2 {
			g.commit(ip.TCP(tcp, make([]byte, 30000)))
			tcp.Seq += 30000
			ip.ID++
		}
		g.commit(ip.TCP(tcp, make([]byte, 65535-40-60000)))
		if g.frames != 1 {
			t.Errorf("%d frames after the packet that fills it, want 1", g.frames)
		}
		g.flush()
	})
	t.Run("UDP up to what the kernel accepts", func(t *testing.T) {
		g := newGather(t)
		ip := ip4
		for range 65 {
			g.commit(ip.UDP(tuntest.UDP{Src: 1}, make([]byte, 10)))
			ip.ID++
		}
		g.flush()
		if g.frames != 2 || g.largest != 64 {
			t.Errorf("%d frames of at most %d packets, want 2 of 64", g.frames, g.largest)
		}
	})
	t.Run("largest packet", func(t *testing.T) {
		g := newGather(t)
		for range 3 {
			g.commit(ip4.UDP(tuntest.UDP{Src: 1}, make([]byte, 65535-28)))
		}
		g.flush()
	})
}

func TestCoalesceWritesEarly(t *testing.T) {
	ip := tuntest.IP{Src: client4, Dst: server4}
	for _, row := range []struct {
		rule   string
		packet []byte
		frames int // without a Flush
	}{
		{"what nothing can be added to is not held", ip.TCP(tuntest.TCP{Flags: tuntest.ACK}, nil), 1},
		{"PSH is not held", ip.TCP(tuntest.TCP{Flags: tuntest.ACK | tuntest.PSH}, []byte("x")), 1},
		{"no IP packet is not held", []byte{0}, 1},
		{"data may be continued", ip.TCP(tuntest.TCP{Flags: tuntest.ACK}, []byte("x")), 0},
		{"a datagram may be continued", ip.UDP(tuntest.UDP{Src: 1}, []byte("x")), 0},
	} {
		t.Run(row.rule, func(t *testing.T) {
			g := newGather(t)
			g.commit(row.packet)
			if g.frames != row.frames {
				t.Errorf("%d frames, want %d", g.frames, row.frames)
			}
			g.flush()
		})
	}
}

func TestCoalesceWithoutUSO(t *testing.T) {
	queue, kernel := tuntest.Pair(t)
	queue.SetFeatures(tun.Features{TSO: true})
	g := &gather{t: t, coalescer: tun.NewCoalescer(queue), kernel: kernel}
	for range 3 {
		g.commit(tuntest.UDP4("10.8.0.2:1", "10.8.0.1:2", []byte("x")))
	}
	g.flush()
	if g.frames != 3 {
		t.Errorf("%d frames, want 3", g.frames)
	}
}

func TestCoalesceCountsRefusedPackets(t *testing.T) {
	packet := tuntest.UDP4("10.8.0.2:1", "10.8.0.1:2", make([]byte, 1000))
	t.Run("queue full", func(t *testing.T) {
		queue, kernel := tuntest.Pair(t)
		c := tun.NewCoalescer(queue)
		dropped, packets := 0, 0
		for ; dropped == 0 && packets < 1<<20; packets++ {
			dropped += commit(c, packet)
		}
		dropped += c.Flush()
		arrived := 0
		for _, frame := range tuntest.Drain(t, kernel) {
			p, err := tuntest.Segment(frame)
			if err != nil {
				t.Fatal(err)
			}
			arrived += len(p)
		}
		if dropped == 0 || arrived == 0 || dropped+arrived != packets {
			t.Errorf("%d dropped and %d arrived of %d", dropped, arrived, packets)
		}
		if got := c.Stats(); got.Packets != uint64(arrived) || got.Bytes != uint64(arrived*len(packet)) {
			t.Errorf("Stats counts %d packets of %d bytes in all, %d of %d each arrived", got.Packets, got.Bytes, arrived, len(packet))
		}
	})
	t.Run("queue closed", func(t *testing.T) {
		queue, _ := tuntest.Pair(t)
		c := tun.NewCoalescer(queue)
		commit(c, packet)
		if err := queue.Close(); err != nil {
			t.Fatal(err)
		}
		commit(c, packet)
		if got := c.Flush(); got != 2 {
			t.Errorf("%d dropped, want 2", got)
		}
	})
	t.Run("every write refused as invalid", func(t *testing.T) {
		// An epoll descriptor answers EINVAL, first to the super-frame and then to each packet.
		fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		queue := tun.NewQueue(fd)
		defer queue.Close()
		c := tun.NewCoalescer(queue)
		for range 5 {
			commit(c, packet)
		}
		if got := c.Flush(); got != 5 {
			t.Errorf("%d dropped, want 5", got)
		}
		// From then on they are not even tried.
		for range 5 {
			commit(c, packet)
		}
		c.Flush()
		if got := c.Stats().Refused; got != 1 {
			t.Errorf("%d super-frames refused, want 1", got)
		}
	})
}

// A kernel that refuses a valid super-frame gets its packets one by one.
func TestCoalesceDeliversApart(t *testing.T) {
	random := newRandom(t)
	for range 200 {
		g := newGather(t)
		s := newStream(random)
		s.size = min(s.size, 2000)
		for range 2 + random.IntN(25) {
			p := s.next(1 << 30)
			g.committed = append(g.committed, p)
			commit(g.coalescer, p)
		}
		s.size = 1
		last := s.next(1 << 30)
		held := g.coalescer.Held()
		if n := g.coalescer.FlushApart(); n != 0 {
			t.Fatalf("%d dropped", n)
		}
		g.frames = 0
		g.collectApart(held)
		g.commit(last)
		g.flush()
	}
}

// collectApart is collect for frames that each hold one packet of a super-frame.
func (g *gather) collectApart(held int) {
	g.t.Helper()
	frames := tuntest.Drain(g.t, g.kernel)
	for i, frame := range frames {
		if !bytes.Equal(frame[:tun.VnetHdrLen], make([]byte, tun.VnetHdrLen)) && i >= len(frames)-held {
			g.t.Fatalf("vnet header %x", frame[:tun.VnetHdrLen])
		}
		packets, err := tuntest.Segment(frame)
		if err != nil {
			g.t.Fatal(err)
		}
		for _, p := range packets {
			want := g.committed[0]
			g.committed = g.committed[1:]
			if want[0]>>4 == 4 && want[6]&0x40 != 0 {
				p, want = withoutID(g.t, p), withoutID(g.t, want)
			}
			if !bytes.Equal(p, want) {
				g.t.Fatalf("(-committed +arrived):\n%s", cmp.Diff(want, p))
			}
		}
	}
}
