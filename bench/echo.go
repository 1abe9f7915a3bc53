package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Echo says how to measure round trips of one small UDP datagram at a time between two programs. Zero values:
// 64-byte IP packets for one second.
type Echo struct {
	From, To *Node
	// Addr is the answering side's address, IPv4.
	Addr netip.Addr
	// Size is the length in bytes of an IP packet, 28 of which are headers.
	Size     int
	Duration time.Duration
}

// echoPatience is how long the first round trip is waited for beyond the duration.
const echoPatience = 3 * time.Second

// EchoResult is what the round trips took.
type EchoResult struct {
	Median, P99 time.Duration
	Answered    int
	// Lost is the number of datagrams without an answer within 200 ms.
	Lost int
}

// Run measures. At least one round trip has to succeed.
func (e Echo) Run(ctx context.Context) (EchoResult, error) {
	if e.Size == 0 {
		e.Size = 64
	}
	if e.Duration == 0 {
		e.Duration = time.Second
	}
	result, err := e.run(ctx)
	if err != nil {
		return EchoResult{}, fmt.Errorf("echo from %v: %w", e.Addr, err)
	}
	return result, nil
}

func (e Echo) run(ctx context.Context) (EchoResult, error) {
	far, to, err := openUDP4(e.To, e.Addr)
	if err != nil {
		return EchoResult{}, err
	}
	defer unix.Close(far)
	near, _, err := openUDP4(e.From, netip.IPv4Unspecified())
	if err != nil {
		return EchoResult{}, err
	}
	defer unix.Close(near)
	if err := connectUDP4(near, to); err != nil {
		return EchoResult{}, err
	}
	var (
		stop    atomic.Bool
		answers sync.WaitGroup
		failed  error
	)
	answers.Go(func() { failed = answerEchoes(far, e.Size, &stop) })
	result, err := e.ask(ctx, near)
	stop.Store(true)
	answers.Wait()
	return result, errors.Join(err, failed)
}

func (e Echo) ask(ctx context.Context, fd int) (EchoResult, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var r EchoResult
	request, answer := make([]byte, e.Size-ipUDPHeaders), make([]byte, e.Size)
	times := make([]time.Duration, 0, 1<<16)
	// Those of the first tenth find caches and routes cold.
	start := time.Now()
	for time.Since(start) < e.Duration || len(times) == 0 && time.Since(start) < e.Duration+echoPatience {
		if err := ctx.Err(); err != nil {
			return r, context.Cause(ctx)
		}
		request[0]++
		at := time.Now()
		if _, err := unix.Write(fd, request); err != nil {
			return r, fmt.Errorf("send: %w", err)
		}
		for {
			_, err := unix.Read(fd, answer)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if errors.Is(err, unix.EAGAIN) {
				r.Lost++
				break
			}
			if err != nil {
				return r, fmt.Errorf("receive: %w", err)
			}
			if answer[0] != request[0] {
				continue // of one that was given up
			}
			if at.Sub(start) > e.Duration/10 {
				times = append(times, time.Since(at))
			}
			break
		}
	}
	if len(times) == 0 {
		return r, errors.New("nothing came back")
	}
	slices.Sort(times)
	r.Answered = len(times)
	r.Median, r.P99 = times[len(times)/2], times[len(times)*99/100]
	return r, nil
}

// answerEchoes sends everything back to whoever sent the first datagram.
func answerEchoes(fd, size int, stop *atomic.Bool) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	buf := make([]byte, size)
	connected := false
	for !stop.Load() {
		var n int
		var from unix.Sockaddr
		var err error
		if connected {
			n, err = unix.Read(fd, buf)
		} else {
			n, from, err = unix.Recvfrom(fd, buf, 0)
		}
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && !connected {
			err = unix.Connect(fd, from)
			connected = true
		}
		if err == nil {
			_, err = unix.Write(fd, buf[:n])
		}
		if err != nil {
			return fmt.Errorf("answer: %w", err)
		}
	}
	return nil
}
