package compare

import "context"

// extras are what does not fit the cases: they have their own place in the report, but are chosen like cases.
func (c *comparison) extras(ctx context.Context) error {
	failed := func(what string, err error) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			c.failed++
			c.say("%s: %v", what, err)
		}
		return nil
	}
	if c.chosen(allocationsID) {
		var err error
		c.report.Allocations, err = countAllocations(ctx, c.options.Duration)
		if err := failed(allocationsID, err); err != nil {
			return err
		}
		if a := c.report.Allocations; a != nil {
			c.say("%s  heap objects allocated for %d packets: %d", c.clock.left(), a.Packets, a.Objects)
		}
	}
	if c.chosen(crossCheckID) && !c.options.Quick {
		var err error
		c.report.CrossCheck, err = c.crossCheck(ctx)
		if err := failed(crossCheckID, err); err != nil {
			return err
		}
	}
	return nil
}

func (c *comparison) chosen(id string) bool {
	return len(c.options.Binaries) == 0 && (c.options.Cases == nil || c.options.Cases.MatchString(id))
}

// extraListings are the extras as cases.
func (c *comparison) extraListings() []Listing {
	var all []Listing
	if c.chosen(allocationsID) {
		all = append(all, Listing{ID: allocationsID, Title: "heap objects per packet", Rounds: 1, Duration: c.options.Duration})
	}
	if c.chosen(crossCheckID) && !c.options.Quick {
		all = append(all, Listing{ID: crossCheckID, Title: "the harness's own traffic against iperf3's", Rounds: (3*c.options.Rounds + 4) / 5, Duration: c.options.Duration / 2})
	}
	return all
}
