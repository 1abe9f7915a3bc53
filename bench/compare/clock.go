package compare

import (
	"fmt"
	"time"
)

const (
	// startEstimate is what it takes to start a tunnel, one with another.
	startEstimate = time.Second
	// overhead is what a measurement takes beside the measured time.
	overhead = 800 * time.Millisecond
)

func measureEstimate(d time.Duration) time.Duration { return d + overhead }

// estimate is how long the blocks will take.
func estimate(blocks []block) time.Duration {
	var sum time.Duration
	for _, b := range blocks {
		places := map[place]bool{}
		for _, e := range b.entries {
			for _, name := range e.contenders {
				places[place{name, e.setting}] = true
			}
			sum += time.Duration(len(e.contenders)*e.rounds) * measureEstimate(e.duration)
		}
		sum += time.Duration(len(places)) * startEstimate
	}
	return sum
}

// A clock tells how much time is left, by how the estimates have been so far.
type clock struct {
	began          time.Time
	total, counted time.Duration
}

func (c *clock) begin(total time.Duration) { c.began, c.total, c.counted = time.Now(), total, 0 }

func (c *clock) done(estimated time.Duration) { c.counted += estimated }

func (c *clock) left() string {
	elapsed := time.Since(c.began)
	left := time.Duration(float64(c.total-c.counted) * float64(elapsed) / float64(max(c.counted, 1)))
	return fmt.Sprintf("%s, %s left", minutes(elapsed), minutes(max(left, 0)))
}

func minutes(d time.Duration) string {
	seconds := int(d.Round(time.Second).Seconds())
	return fmt.Sprintf("%2d:%02d", seconds/60, seconds%60)
}
