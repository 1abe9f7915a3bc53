package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// throughputBuffer is the size of one read and one write, iperf3's default for TCP.
const throughputBuffer = 128 << 10

// Throughput says how to measure a TCP bulk transfer between two namespaces. Both ends live in the
// calling process. Zero values: one stream, 2 s measured after 0.3 s of warming up.
type Throughput struct {
	From, To *Node
	// Addr is the receiver's address.
	Addr netip.Addr
	// Streams is the number of parallel connections.
	Streams int
	// Warmup is the time between the start and the measurement.
	Warmup time.Duration
	// Duration is the length of the measurement.
	Duration time.Duration
	// Before and After, if not nil, are called when the measured time begins and ends.
	Before, After func()
}

// Run transfers zeros and returns the rate at which payload arrived in bits per second.
func (t Throughput) Run(ctx context.Context) (bitsPerSecond float64, err error) {
	if t.Streams == 0 {
		t.Streams = 1
	}
	if t.Warmup == 0 {
		t.Warmup = 300 * time.Millisecond
	}
	if t.Duration == 0 {
		t.Duration = 2 * time.Second
	}
	rate, err := t.measure(ctx)
	if err != nil {
		return 0, fmt.Errorf("throughput to %v: %w", t.Addr, err)
	}
	return rate, nil
}

func (t Throughput) measure(ctx context.Context) (float64, error) {
	listener, err := listenTCP(ctx, t.To, t.Addr)
	if err != nil {
		return 0, err
	}
	var (
		conns   closers
		workers sync.WaitGroup
		arrived atomic.Uint64
	)
	conns.add(listener)
	defer workers.Wait()
	defer conns.close()
	for range t.Streams {
		sender, receiver, err := t.connect(ctx, listener)
		if err != nil {
			return 0, err
		}
		conns.add(sender)
		conns.add(receiver)
		workers.Go(func() {
			buf := make([]byte, throughputBuffer)
			for {
				if _, err := sender.Write(buf); err != nil {
					return
				}
			}
		})
		workers.Go(func() {
			buf := make([]byte, throughputBuffer)
			for {
				n, err := receiver.Read(buf)
				arrived.Add(uint64(n))
				if err != nil {
					return
				}
			}
		})
	}
	if err := sleep(ctx, t.Warmup); err != nil {
		return 0, err
	}
	if t.Before != nil {
		t.Before()
	}
	start, before := time.Now(), arrived.Load()
	if err := sleep(ctx, t.Duration); err != nil {
		return 0, err
	}
	bits, seconds := float64(arrived.Load()-before)*8, time.Since(start).Seconds()
	if t.After != nil {
		t.After()
	}
	if bits == 0 {
		return 0, errors.New("nothing arrived")
	}
	return bits / seconds, nil
}

func (t Throughput) connect(ctx context.Context, listener net.Listener) (sender, receiver net.Conn, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	sender, err = dialTCP(ctx, t.From, listener.Addr())
	if err != nil {
		return nil, nil, err
	}
	receiver, err = listener.Accept()
	if err != nil {
		sender.Close()
		return nil, nil, err
	}
	return sender, receiver, nil
}

// sleep waits, or returns why the context ended first.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

type closers []interface{ Close() error }

func (c *closers) add(x interface{ Close() error }) { *c = append(*c, x) }

func (c *closers) close() {
	for _, x := range *c {
		x.Close()
	}
}
