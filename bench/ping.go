package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// icmpHeader and the IP headers below make up what an echo request adds to its payload.
const icmpHeader = 8

// minPingPayload holds a sequence number of 32 bits and the time of sending; ICMP's own sequence
// number has only 16 bits.
const minPingPayload = 12

// Ping says what echo requests to send. Zero values: one request a second, 4 of them, 56 bytes,
// one second of patience.
type Ping struct {
	// Node is where the requests are sent from.
	Node *Node
	// To is the address to ping; From the source address, the routing table's choice if invalid.
	To, From netip.Addr
	// Count is the number of requests; with zero and a Duration it follows from the Interval.
	Count int
	// Interval is the time between two requests.
	Interval time.Duration
	// Duration limits the time of sending.
	Duration time.Duration
	// Payload is the size of the echo data in bytes, at least 12.
	Payload int
	// Wait is how long to wait for answers once all requests are out.
	Wait time.Duration
}

// PingResult is what became of the requests.
type PingResult struct {
	Sent, Received int
	// Duplicates are answers that came a second time.
	Duplicates int
	// Refused are requests that the sender's own kernel would not send, such as for lack of a route.
	Refused int
	// PacketSize is the size in bytes of one request's IP packet.
	PacketSize int
	// Median and P99 are round-trip times; zero if nothing came back.
	Median, P99 time.Duration
	// Missing holds the numbers of the unanswered requests, from 0, in order.
	Missing []int
}

// Lost is the number of requests that were not answered.
func (r PingResult) Lost() int { return r.Sent - r.Received }

func (p *Ping) setDefaults() {
	if p.Interval == 0 {
		p.Interval = time.Second
	}
	if p.Count == 0 {
		p.Count = 4
		if p.Duration > 0 {
			p.Count = int(p.Duration / p.Interval)
		}
	}
	if p.Payload == 0 {
		p.Payload = 56
	}
	if p.Wait == 0 {
		p.Wait = time.Second
	}
}

// Run sends the requests and waits for the answers. The requests keep to their schedule on average:
// one that is late does not delay those behind it. Requests sent until the context ends count.
func (p Ping) Run(ctx context.Context) (PingResult, error) {
	p.setDefaults()
	if p.Payload < minPingPayload {
		return PingResult{}, fmt.Errorf("ping %v: payload of %d bytes is below %d", p.To, p.Payload, minPingPayload)
	}
	conn, err := p.listen()
	if err != nil {
		return PingResult{}, fmt.Errorf("ping %v: %w", p.To, err)
	}
	s := &pingSession{
		ping: p,
		conn: conn,
		id:   uint16(rand.Uint32()),
		rtts: make([]time.Duration, p.Count),
		full: make(chan struct{}),
	}
	var reader sync.WaitGroup
	reader.Go(s.receive)
	err = s.send(ctx)
	if err == nil {
		select {
		case <-s.full:
		case <-time.After(p.Wait):
		case <-ctx.Done():
		}
	}
	conn.Close()
	reader.Wait()
	if err != nil {
		return PingResult{}, fmt.Errorf("ping %v: %w", p.To, err)
	}
	return s.result(), nil
}

// AwaitAnswer pings until an answer comes, for as long as patience lasts.
func AwaitAnswer(ctx context.Context, from *Node, to netip.Addr, patience time.Duration) error {
	deadline := time.Now().Add(patience)
	for {
		r, err := Ping{Node: from, To: to, Count: 1, Wait: 100 * time.Millisecond}.Run(ctx)
		switch {
		case err != nil:
			return err
		case r.Received > 0:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case time.Now().After(deadline):
			return fmt.Errorf("no ping to %v was answered within %v", to, patience)
		}
	}
}

// pingBuffer is the receive buffer in bytes. The kernel charges a small packet with a kilobyte or more,
// and a process that has to wait for its CPU may find a thousand of them.
const pingBuffer = 16 << 20

func (p Ping) listen() (conn net.PacketConn, err error) {
	network, from := "ip4:icmp", "0.0.0.0"
	if p.To.Is6() {
		network, from = "ip6:ipv6-icmp", "::"
	}
	if p.From.IsValid() {
		from = p.From.String()
	}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var inner error
		err := c.Control(func(fd uintptr) {
			inner = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, pingBuffer)
		})
		return errors.Join(err, inner)
	}}
	err = p.Node.Do(func() (err error) {
		conn, err = config.ListenPacket(context.Background(), network, from)
		return err
	})
	return conn, err
}

// A pingSession is one Run: its sender and its receiver share the table of round-trip times.
type pingSession struct {
	ping Ping
	conn net.PacketConn
	id   uint16
	full chan struct{} // closed when every request is answered

	mu         sync.Mutex
	rtts       []time.Duration // guarded by mu: by request, 0 while unanswered
	received   int             // guarded by mu
	duplicates int             // guarded by mu

	sent    int // of the sender
	refused int // of the sender
}

func (s *pingSession) send(ctx context.Context) error {
	to := &net.IPAddr{IP: s.ping.To.AsSlice(), Zone: s.ping.To.Zone()}
	start := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for s.sent < s.ping.Count {
		if wait := time.Until(start.Add(time.Duration(s.sent) * s.ping.Interval)); wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
				return nil
			}
		}
		if ctx.Err() != nil || s.ping.Duration > 0 && time.Since(start) > s.ping.Duration {
			return nil
		}
		packet, err := s.request(uint32(s.sent))
		if err != nil {
			return err
		}
		s.sent++
		if _, err := s.conn.WriteTo(packet, to); err != nil {
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			s.refused++
		}
	}
	return nil
}

func (s *pingSession) request(n uint32) ([]byte, error) {
	data := make([]byte, s.ping.Payload)
	binary.BigEndian.PutUint32(data, n)
	binary.BigEndian.PutUint64(data[4:], uint64(time.Now().UnixNano()))
	m := icmp.Message{
		Type: ipv4.ICMPTypeEcho,
		Body: &icmp.Echo{ID: int(s.id), Seq: int(n & 0xffff), Data: data},
	}
	if s.ping.To.Is6() {
		m.Type = ipv6.ICMPTypeEchoRequest // the kernel fills in the checksum
	}
	return m.Marshal(nil)
}

func (s *pingSession) receive() {
	buf := make([]byte, 64<<10)
	proto := ipv4.ICMPTypeEcho.Protocol()
	if s.ping.To.Is6() {
		proto = ipv6.ICMPTypeEchoRequest.Protocol()
	}
	for {
		n, _, err := s.conn.ReadFrom(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
				return
			}
			continue // an ICMP error about one of the requests
		}
		m, err := icmp.ParseMessage(proto, buf[:n])
		if err != nil {
			continue
		}
		echo, ok := m.Body.(*icmp.Echo)
		if !ok || echo.ID != int(s.id) || len(echo.Data) != s.ping.Payload {
			continue
		}
		if m.Type != ipv4.ICMPTypeEchoReply && m.Type != ipv6.ICMPTypeEchoReply {
			continue
		}
		at := int64(binary.BigEndian.Uint64(echo.Data[4:]))
		s.answered(binary.BigEndian.Uint32(echo.Data), time.Duration(time.Now().UnixNano()-at))
	}
}

func (s *pingSession) answered(n uint32, rtt time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case int(n) >= len(s.rtts):
	case s.rtts[n] != 0:
		s.duplicates++
	default:
		s.rtts[n] = max(rtt, 1)
		s.received++
		if s.received == len(s.rtts) {
			close(s.full)
		}
	}
}

func (s *pingSession) result() PingResult {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := PingResult{
		Sent:       s.sent,
		Received:   s.received,
		Duplicates: s.duplicates,
		Refused:    s.refused,
		PacketSize: ipv4.HeaderLen + icmpHeader + s.ping.Payload,
	}
	if s.ping.To.Is6() {
		r.PacketSize = ipv6.HeaderLen + icmpHeader + s.ping.Payload
	}
	var rtts []time.Duration
	for n, rtt := range s.rtts[:s.sent] {
		if rtt == 0 {
			r.Missing = append(r.Missing, n)
			continue
		}
		rtts = append(rtts, rtt)
	}
	if len(rtts) > 0 {
		slices.Sort(rtts)
		r.Median = rtts[len(rtts)/2]
		r.P99 = rtts[len(rtts)*99/100]
	}
	return r
}
