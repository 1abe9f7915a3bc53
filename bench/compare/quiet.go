package compare

import (
	"context"
	"time"

	"ovpn-go/bench"
)

const (
	// quietWindow is how long the machine is watched before a measurement; the clocks tick 100 times a second.
	quietWindow = 200 * time.Millisecond
	// quietLoad is how busy others may be in cores: two ticks of the window, and a tenth of a core beyond.
	quietLoad = 0.15
	// quietPatience is how long a quiet moment is waited for, and quietShare bounds the sum of it all by a share of the
	// time that the comparison takes.
	quietPatience = 10 * time.Second
	quietShare    = 0.2
)

// awaitQuiet waits until nobody else uses the processors, but not for ever, and returns how many cores were busy in
// the end.
func (c *comparison) awaitQuiet(ctx context.Context) (load float64, err error) {
	patience := min(quietPatience, time.Duration(quietShare*float64(c.clock.total))-c.waited)
	if c.options.Quick {
		patience = 0
	}
	start := time.Now()
	defer func() { c.waited += max(time.Since(start)-quietWindow, 0) }()
	for {
		before, err := bench.ReadCPU()
		if err != nil {
			return 0, err
		}
		select {
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case <-time.After(quietWindow):
		}
		after, err := bench.ReadCPU()
		if err != nil {
			return 0, err
		}
		load = after.Sub(before).Busy.Seconds() / quietWindow.Seconds()
		if load <= quietLoad || time.Since(start) >= patience {
			return load, nil
		}
	}
}
