package tun_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
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

// stream makes the packets of a flow that sometimes does what a flow may not.
type stream struct {
	random *rand.Rand
	ip     tuntest.IP
	tcp    tuntest.TCP
	udp    tuntest.UDP
	isTCP  bool
	size   int
}

func newStream(random *rand.Rand) *stream {
	s := &stream{
		random: random,
		ip:     tuntest.IP{Src: client4, Dst: server4, ID: uint16(random.Uint32())},
		tcp: tuntest.TCP{
			Src: uint16(random.IntN(3)), Dst: 443, Seq: random.Uint32(), Ack: 1, Flags: tuntest.ACK, Window: 512,
		},
		udp:   tuntest.UDP{Src: uint16(random.IntN(3)), Dst: 443},
		isTCP: random.IntN(2) == 0,
		size:  1 + random.IntN([]int{4, 600, 1400, 30000}[random.IntN(4)]),
	}
	if random.IntN(2) == 0 {
		s.ip.Src, s.ip.Dst = client6, server6
	} else if random.IntN(2) == 0 {
		s.ip.Fragment = tuntest.DontFragment
	}
	if random.IntN(2) == 0 {
		s.tcp.Options = randomBytes(random, 4*random.IntN(11))
	}
	return s
}

// next returns the next packet. One in odds differs from what continues the flow.
func (s *stream) next(odds int) []byte {
	ip, tcp, udp, size := s.ip, s.tcp, s.udp, s.size
	damage := false
	if s.random.IntN(odds) == 0 {
		switch s.random.IntN(22) {
		case 0:
			size = 1 + s.random.IntN(s.size)
		case 1:
			size = s.size + 1 + s.random.IntN(100)
		case 2:
			size = 0
		case 3:
			tcp.Flags |= tuntest.PSH
		case 4:
			tcp.Flags = uint8(s.random.Uint32())
		case 5:
			tcp.Flags |= tuntest.ECE
		case 6:
			tcp.Flags |= tuntest.CWR
		case 7:
			tcp.Ack++
		case 8:
			tcp.Window++
		case 9:
			tcp.Urgent++
		case 10:
			tcp.Seq += uint32(s.random.IntN(3)) - 1
		case 11:
			tcp.Options = randomBytes(s.random, 4*s.random.IntN(11))
		case 12:
			ip.TOS++
		case 13:
			ip.TTL = 1
		case 14:
			ip.ID += 5
		case 15:
			ip.Flow = 77
		case 16:
			ip.Fragment ^= []uint16{0x8000, tuntest.DontFragment, 0x2000, 0x0001}[s.random.IntN(4)]
		case 17:
			ip.Options = []byte{1, 1, 1, 0}
		case 18:
			ip.ExtensionType, ip.Extensions = 60, make([]byte, 8)
		case 19:
			udp.NoChecksum = true
		case 20:
			damage = true
		case 21:
			return randomBytes(s.random, 1+s.random.IntN(100))
		}
	}
	var p []byte
	if s.isTCP {
		p = ip.TCP(tcp, randomBytes(s.random, size))
		s.tcp.Seq += uint32(size)
	} else {
		p = ip.UDP(udp, randomBytes(s.random, size))
	}
	s.ip.ID++
	if damage {
		p[s.random.IntN(len(p))] ^= 1 << s.random.IntN(8)
	}
	return p
}

func TestCoalesceDeliversWhatWasCommitted(t *testing.T) {
	random := newRandom(t)
	merged := 0
	for range 150 {
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

func TestCoalesceMergeRules(t *testing.T) {
	type edit struct {
		ip  tuntest.IP
		tcp tuntest.TCP
		udp tuntest.UDP
		n   int // payload bytes
	}
	const size = 500
	first4 := edit{
		ip:  tuntest.IP{Src: client4, Dst: server4, ID: 0xffff},
		tcp: tuntest.TCP{Src: 1, Dst: 2, Seq: 0xffffffff - 100, Ack: 9, Flags: tuntest.ACK, Window: 7, Options: []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}},
		udp: tuntest.UDP{Src: 1, Dst: 2}, n: size,
	}
	first6 := first4
	first6.ip.Src, first6.ip.Dst = client6, server6
	for _, row := range []struct {
		rule         string
		tcp, udp     bool // whether the second packet joins the first
		only4, only6 bool
		first        func(*edit)
		second       func(*edit)
		damage       int // offset from the second packet's end of a byte to change
	}{
		{rule: "continues", tcp: true, udp: true},
		{rule: "shorter", tcp: true, udp: true, second: func(e *edit) { e.n-- }},
		{rule: "longer", second: func(e *edit) { e.n++ }},
		{rule: "empty", second: func(e *edit) { e.n = 0 }},
		{rule: "first is empty", first: func(e *edit) { e.n = 0 }},
		{rule: "PSH ends the frame with the packet in it", tcp: true, udp: true, second: func(e *edit) { e.tcp.Flags |= tuntest.PSH }},
		{rule: "nothing follows PSH", udp: true, first: func(e *edit) { e.tcp.Flags |= tuntest.PSH }},
		{rule: "FIN", udp: true, second: func(e *edit) { e.tcp.Flags |= tuntest.FIN }},
		{rule: "SYN", udp: true, second: func(e *edit) { e.tcp.Flags |= tuntest.SYN }},
		{rule: "SYN first", udp: true, first: func(e *edit) { e.tcp.Flags |= tuntest.SYN }, second: func(e *edit) { e.tcp.Flags |= tuntest.SYN }},
		{rule: "RST", udp: true, second: func(e *edit) { e.tcp.Flags |= tuntest.RST }},
		{rule: "URG", udp: true, second: func(e *edit) { e.tcp.Flags |= tuntest.URG }},
		{rule: "URG on both", udp: true, first: func(e *edit) { e.tcp.Flags |= tuntest.URG }, second: func(e *edit) { e.tcp.Flags |= tuntest.URG }},
		{rule: "CWR on the second", udp: true, second: func(e *edit) { e.tcp.Flags |= tuntest.CWR }},
		{rule: "CWR on the first", udp: true, first: func(e *edit) { e.tcp.Flags |= tuntest.CWR }},
		{rule: "ECE on both", tcp: true, udp: true, first: func(e *edit) { e.tcp.Flags |= tuntest.ECE }, second: func(e *edit) { e.tcp.Flags |= tuntest.ECE }},
		{rule: "ECE on one", udp: true, second: func(e *edit) { e.tcp.Flags |= tuntest.ECE }},
		{rule: "no ACK", udp: true, second: func(e *edit) { e.tcp.Flags = 0 }},
		{rule: "other acknowledgement", udp: true, second: func(e *edit) { e.tcp.Ack++ }},
		{rule: "other window", udp: true, second: func(e *edit) { e.tcp.Window++ }},
		{rule: "other urgent pointer", udp: true, second: func(e *edit) { e.tcp.Urgent++ }},
		{rule: "gap in sequence", udp: true, second: func(e *edit) { e.tcp.Seq++ }},
		{rule: "repetition", udp: true, second: func(e *edit) { e.tcp.Seq -= size }},
		{rule: "other timestamp", udp: true, second: func(e *edit) { e.tcp.Options = []byte{1, 1, 8, 10, 0, 0, 0, 3, 0, 0, 0, 2} }},
		{rule: "fewer options", udp: true, second: func(e *edit) { e.tcp.Options = nil }},
		{rule: "other source port", second: func(e *edit) { e.tcp.Src++; e.udp.Src++ }},
		{rule: "other destination port", second: func(e *edit) { e.tcp.Dst++; e.udp.Dst++ }},
		{rule: "other source", second: func(e *edit) { e.ip.Src = e.ip.Src.Next() }},
		{rule: "other destination", second: func(e *edit) { e.ip.Dst = e.ip.Dst.Next() }},
		{rule: "other TOS, its ECN bits too", second: func(e *edit) { e.ip.TOS = 1 }},
		{rule: "other TTL", second: func(e *edit) { e.ip.TTL = 63 }},
		{rule: "other flow label", only6: true, second: func(e *edit) { e.ip.Flow = 1 }},
		{rule: "extension header", only6: true, second: func(e *edit) { e.ip.ExtensionType, e.ip.Extensions = 60, make([]byte, 8) }},
		{rule: "extension header on both", only6: true,
			first:  func(e *edit) { e.ip.ExtensionType, e.ip.Extensions = 60, make([]byte, 8) },
			second: func(e *edit) { e.ip.ExtensionType, e.ip.Extensions = 60, make([]byte, 8) }},
		{rule: "id does not count up", only4: true, second: func(e *edit) { e.ip.ID++ }},
		{rule: "id with DF means nothing", only4: true, tcp: true, udp: true,
			first:  func(e *edit) { e.ip.Fragment = tuntest.DontFragment },
			second: func(e *edit) { e.ip.Fragment, e.ip.ID = tuntest.DontFragment, 4711 }},
		{rule: "DF on one", only4: true, second: func(e *edit) { e.ip.Fragment = tuntest.DontFragment }},
		{rule: "reserved bit on one", only4: true, second: func(e *edit) { e.ip.Fragment = 0x8000 }},
		{rule: "fragment", only4: true, second: func(e *edit) { e.ip.Fragment = 0x2000 }},
		{rule: "fragments", only4: true, first: func(e *edit) { e.ip.Fragment = 0x2000 }, second: func(e *edit) { e.ip.Fragment = 0x2000 }},
		{rule: "IP options", only4: true, first: func(e *edit) { e.ip.Options = make([]byte, 4) }, second: func(e *edit) { e.ip.Options = make([]byte, 4) }},
		{rule: "no UDP checksum", only4: true, tcp: true,
			first:  func(e *edit) { e.udp.NoChecksum = true },
			second: func(e *edit) { e.udp.NoChecksum = true }},
		{rule: "no UDP checksum on the second", only4: true, tcp: true, second: func(e *edit) { e.udp.NoChecksum = true }},
		{rule: "damaged payload", damage: 1},
		{rule: "damaged IPv4 checksum", only4: true, damage: -11},
	} {
		for _, protocol := range []string{"TCP4", "TCP6", "UDP4", "UDP6"} {
			four, isTCP := protocol[3] == '4', protocol[:3] == "TCP"
			if row.only4 && !four || row.only6 && four {
				continue
			}
			t.Run(row.rule+" "+protocol, func(t *testing.T) {
				a := first4
				if !four {
					a = first6
				}
				b := a
				if row.first != nil {
					row.first(&a)
				}
				b.ip.ID++
				b.tcp.Seq += uint32(a.n)
				if row.second != nil {
					row.second(&b)
				}
				build := func(e edit) []byte {
					if isTCP {
						return e.ip.TCP(e.tcp, make([]byte, e.n))
					}
					return e.ip.UDP(e.udp, make([]byte, e.n))
				}
				p, q := build(a), build(b)
				if row.damage > 0 {
					q[len(q)-row.damage] ^= 1
				} else if row.damage < 0 {
					q[-row.damage] ^= 1
				}
				g := newGather(t)
				g.commit(p)
				g.commit(q)
				g.flush()
				want := 2
				if isTCP && row.tcp || !isTCP && row.udp {
					want = 1
				}
				if g.frames != want {
					t.Errorf("%d frames, want %d", g.frames, want)
				}
			})
		}
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
		if got := c.Stats().Packets; got != uint64(arrived) {
			t.Errorf("Stats counts %d packets, %d arrived", got, arrived)
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

// discard is a queue that takes everything.
func discard(t testing.TB) *tun.Queue {
	t.Helper()
	fd, err := unix.Open("/dev/null", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	queue := tun.NewQueue(fd)
	t.Cleanup(func() { queue.Close() })
	return queue
}

// benchPackets are the segments of a benchFrame, which merge into one, or the same ones so that none
// do.
func benchPackets(t testing.TB, name string) [][]byte {
	t.Helper()
	if name == "ACK" {
		p := tuntest.TCP4("10.8.0.2:1", "10.8.0.1:2", 1, nil)
		return slices45(p)
	}
	if name == "alternating" {
		a := tuntest.TCP4("10.8.0.2:1", "10.8.0.1:2", 1, make([]byte, 1364))
		b := tuntest.TCP4("10.8.0.2:3", "10.8.0.1:4", 1, make([]byte, 1364))
		packets := slices45(a)
		for i := range packets {
			if i%2 == 1 {
				packets[i] = b
			}
		}
		return packets
	}
	packets, err := tuntest.Segment(benchFrame(name))
	if err != nil {
		t.Fatal(err)
	}
	return packets
}

func slices45(p []byte) [][]byte {
	packets := make([][]byte, 45)
	for i := range packets {
		packets[i] = p
	}
	return packets
}

func BenchmarkCoalesce(b *testing.B) {
	for _, name := range []string{"TCP4", "TCP6", "UDP4", "ACK", "alternating"} {
		b.Run(name, func(b *testing.B) {
			c := tun.NewCoalescer(discard(b))
			packets := benchPackets(b, name)
			bytes := 0
			for _, p := range packets {
				bytes += len(p)
			}
			b.SetBytes(int64(bytes))
			b.ReportAllocs()
			for b.Loop() {
				for _, p := range packets {
					commit(c, p)
				}
				c.Flush()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(packets)), "ns/packet")
		})
	}
}

func TestCoalesceDoesNotAllocate(t *testing.T) {
	closed := discard(t)
	closed.Close()
	for name, queue := range map[string]*tun.Queue{"taken": discard(t), "refused": closed} {
		for _, flow := range []string{"TCP4", "TCP6", "UDP4", "ACK", "alternating"} {
			c := tun.NewCoalescer(queue)
			packets := benchPackets(t, flow)
			n := testing.AllocsPerRun(100, func() {
				for _, p := range packets {
					copy(c.Next(len(p)), p)
					c.Abandon()
					commit(c, p)
				}
				c.Flush()
			})
			if n != 0 {
				t.Errorf("%s, %s: %v allocations per frame", flow, name, n)
			}
		}
	}
}
