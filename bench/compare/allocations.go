package compare

import (
	"context"
	"errors"
	"runtime"
	"time"

	"ovpn-go/bench"
	"ovpn-go/bench/report"
)

// allocationsID is what the count of heap objects goes by among the cases.
const allocationsID = "allocations"

// countAllocations floods two devices in this very process, so that the runtime's own count of heap objects is theirs,
// and the little that the sender and the receiver take.
func countAllocations(ctx context.Context, d time.Duration) (a *report.Allocations, err error) {
	star, err := bench.NewStar(1)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, star.Close()) }()
	for _, node := range []*bench.Node{star.Server, star.Clients[0]} {
		if err := node.DisableIPv6(); err != nil {
			return nil, err
		}
	}
	devices, err := bench.NewStaticDevices(star, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, devices.Close()) }()
	if err := bench.AwaitAnswer(ctx, star.Clients[0], bench.StaticServerAddr, tunnelUp); err != nil {
		return nil, err
	}
	var before, after runtime.MemStats
	r, err := bench.Flood{From: star.Clients[0], To: star.Server, Addr: bench.StaticServerAddr, Duration: d,
		Before: func() { runtime.ReadMemStats(&before) }, After: func() { runtime.ReadMemStats(&after) }}.Run(ctx)
	if err != nil {
		return nil, err
	}
	objects := after.Mallocs - before.Mallocs
	return &report.Allocations{Objects: objects, Packets: r.Packets, PerPacket: float64(objects) / float64(r.Packets)}, nil
}
