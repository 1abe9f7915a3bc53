package compare

import (
	"context"
	"errors"
	"fmt"
	"time"

	"ovpn-go/bench"
	"ovpn-go/bench/report"
)

// A traffic is what is sent through a tunnel, and what of it is measured.
type traffic struct {
	id, title string
	metric    report.Metric
	run       func(ctx context.Context, t *tunnel, d time.Duration, m *meter) (report.Sample, error)
}

// tcp is one way: up is from the client to the server.
func tcp(streams int, up bool) traffic {
	way, title := "up", "client to server"
	if !up {
		way, title = "down", "server to client"
	}
	plural := "s"
	if streams == 1 {
		plural = ""
	}
	return traffic{
		id: fmt.Sprintf("tcp-%d-%s", streams, way), title: fmt.Sprintf("TCP, %d stream%s, %s", streams, plural, title),
		metric: report.Throughput,
		run: func(ctx context.Context, t *tunnel, d time.Duration, m *meter) (report.Sample, error) {
			load := bench.Throughput{From: t.client, To: t.server, Addr: t.serverAddr, Streams: streams, Duration: d,
				Before: m.start, After: m.stop}
			if !up {
				load.From, load.To, load.Addr = t.server, t.client, t.clientAddr
			}
			bits, err := load.Run(ctx)
			if err != nil {
				return report.Sample{}, err
			}
			gigabytes := bits / 8 * m.elapsed.Seconds() / 1e9
			return report.Sample{Value: bits / 1e9,
				CPU: m.busy.Seconds() / gigabytes, TunnelCPU: m.tunnel.Seconds() / gigabytes}, nil
		},
	}
}

// udp floods with IP packets of a size in bytes.
func udp(size int) traffic {
	return traffic{
		id: fmt.Sprintf("udp-%d", size), title: fmt.Sprintf("UDP flood, packets of %d bytes", size), metric: report.Packets,
		run: func(ctx context.Context, t *tunnel, d time.Duration, m *meter) (report.Sample, error) {
			r, err := bench.Flood{From: t.client, To: t.server, Addr: t.serverAddr, Size: size, Duration: d,
				Before: m.start, After: m.stop}.Run(ctx)
			if err != nil {
				return report.Sample{}, err
			}
			return floodSample(r, m), nil
		},
	}
}

func floodSample(r bench.FloodResult, m *meter) report.Sample {
	return report.Sample{Value: r.Delivered, Offered: r.Offered, Delivered: r.Delivered, Loss: r.Loss,
		CPU: float64(m.busy) / float64(r.Packets), TunnelCPU: float64(m.tunnel) / float64(r.Packets)}
}

// toPeers floods many peers with packets of 1,300 bytes, burst after burst, or at random with bursts of 0.
func toPeers(burst int) traffic {
	id, title := "burst", fmt.Sprintf("UDP flood in bursts of %d per peer", burst)
	if burst == 0 {
		id, title = "random", "UDP flood, every packet to a peer at random"
	}
	return traffic{
		id: id, title: title, metric: report.PacketCost,
		run: func(ctx context.Context, t *tunnel, d time.Duration, m *meter) (report.Sample, error) {
			spread := *t.spread
			spread.Burst = burst
			r, err := bench.Flood{From: t.client, To: t.server, Spread: &spread, Duration: d,
				Before: m.start, After: m.stop}.Run(ctx)
			if err != nil {
				return report.Sample{}, err
			}
			s := floodSample(r, m)
			s.Value = s.TunnelCPU
			return s, nil
		},
	}
}

func idle() traffic {
	return traffic{
		id: "rtt-idle", title: "round trip of a 64-byte UDP packet, idle", metric: report.RoundTrip,
		run: func(ctx context.Context, t *tunnel, d time.Duration, _ *meter) (report.Sample, error) {
			return roundTrips(ctx, t, d)
		},
	}
}

func loaded() traffic {
	return traffic{
		id: "rtt-loaded", title: "round trip of a 64-byte UDP packet beside one TCP stream", metric: report.RoundTrip,
		run: func(ctx context.Context, t *tunnel, d time.Duration, _ *meter) (report.Sample, error) {
			loadCtx, cancel := context.WithCancel(ctx)
			running, ended := make(chan struct{}), make(chan error, 1)
			go func() {
				_, err := bench.Throughput{From: t.client, To: t.server, Addr: t.serverAddr, Duration: time.Hour,
					Before: func() { close(running) }}.Run(loadCtx)
				ended <- err
			}()
			defer cancel()
			select {
			case <-running:
			case err := <-ended:
				return report.Sample{}, err
			}
			sample, err := roundTrips(ctx, t, d)
			cancel()
			if loadErr := <-ended; !errors.Is(loadErr, context.Canceled) {
				err = errors.Join(err, loadErr)
			}
			return sample, err
		},
	}
}

func roundTrips(ctx context.Context, t *tunnel, d time.Duration) (report.Sample, error) {
	r, err := bench.Echo{From: t.client, To: t.server, Addr: t.serverAddr, Duration: d}.Run(ctx)
	if err != nil {
		return report.Sample{}, err
	}
	microseconds := func(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
	return report.Sample{Value: microseconds(r.Median), P99: microseconds(r.P99),
		Loss: float64(r.Lost) / float64(r.Lost+r.Answered)}, nil
}

// A meter reads the processors' clocks around the measured time.
type meter struct {
	pids []int

	began                 time.Time
	system                bench.CPUTime
	processes             time.Duration
	elapsed, busy, tunnel time.Duration
	stolen                time.Duration
	err                   error
}

func (m *meter) start() {
	var err1, err2 error
	m.began = time.Now()
	m.system, err1 = bench.ReadCPU()
	m.processes, err2 = bench.ProcessTreeCPU(m.pids...)
	m.err = errors.Join(err1, err2)
}

func (m *meter) stop() {
	m.elapsed = time.Since(m.began)
	system, err1 := bench.ReadCPU()
	processes, err2 := bench.ProcessTreeCPU(m.pids...)
	m.err = errors.Join(m.err, err1, err2)
	used := system.Sub(m.system)
	m.busy, m.stolen, m.tunnel = used.Busy, used.Stolen, processes-m.processes
}
