package compare

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/bench"
	"ovpn-go/bench/report"
)

// Options say what to compare. Rounds, Duration and Program have to be given.
type Options struct {
	// Program is our own binary.
	Program string
	// Cases chooses among the cases by their ids, if it is not nil.
	Cases *regexp.Regexp
	// Rounds and Duration are those of what a goal depends on.
	Rounds   int
	Duration time.Duration
	// Quick measures little of everything: it shows that the comparison works.
	Quick bool
	// Binaries, if there are any, are compared with each other and with nothing else.
	Binaries []Binary
	// Profile is a directory where each of our processes leaves a CPU profile, if it is not empty.
	Profile string
	// Progress is told what happens, a line at a time.
	Progress func(line string)
}

// A Binary is a build of this program to be compared with another.
type Binary struct{ Name, Path string }

// ErrFailed says that some measurements could not be made; the report has the others.
var ErrFailed = errors.New("measurements failed")

// A comparison is one run.
type comparison struct {
	options    Options
	contenders []contender
	present    map[string]contender
	report     report.Report

	openvpn     bench.OpenVPN
	noOpenVPN   error
	wireGuardGo string
	profiles    int

	failed int
	clock  clock
	waited time.Duration // for a quiet machine
}

// newComparison looks for the contenders.
func newComparison(o Options) *comparison {
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	c := &comparison{options: o, contenders: contenders, present: map[string]contender{}}
	if len(o.Binaries) > 0 {
		c.contenders = nil
		for _, b := range o.Binaries {
			c.contenders = append(c.contenders, contender{b.Name, "the binary " + b.Path + " with keys that were not negotiated",
				func(*comparison) (string, error) { return programVersion(b.Path), nil },
				func(ctx context.Context, c *comparison, t *tunnel, s setting) error {
					return c.startControllers(ctx, t, s, b.Path)
				}})
		}
	}
	c.lookForOpenVPN()
	for _, x := range c.contenders {
		described := report.Contender{Name: x.name, What: x.what}
		version, err := x.find(c)
		if err != nil {
			described.Missing = err.Error()
		} else {
			described.Version = version
			c.present[x.name] = x
		}
		c.report.Contenders = append(c.report.Contenders, described)
	}
	return c
}

func (c *comparison) plan() []block {
	return choose(plan(c.options, len(allowedCores())), c.options.Cases,
		func(name string) bool { _, ok := c.present[name]; return ok })
}

func (c *comparison) say(format string, args ...any) {
	c.options.Progress(fmt.Sprintf(format, args...))
}

// able returns bench.ErrUnable if this user or this machine can't run a comparison.
func able() error {
	if _, err := os.Stat("/dev/net/tun"); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: there is no /dev/net/tun (load the kernel module tun, or pass the device into the container)", bench.ErrUnable)
	}
	t := bench.NewTopology()
	_, err := t.AddNode("probe")
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w: network namespaces need root (%w)", bench.ErrUnable, err)
	}
	return errors.Join(err, t.Close())
}

// Listing is a case as it would be run.
type Listing struct {
	ID, Title  string
	Contenders []string
	Rounds     int
	Duration   time.Duration
}

// List returns what Run would do, the contenders with those that are missing, and how long it would take. Errors:
// bench.ErrUnable.
func List(o Options) (cases []Listing, who []report.Contender, total time.Duration, err error) {
	if err := able(); err != nil {
		return nil, nil, 0, err
	}
	c := newComparison(o)
	blocks := c.plan()
	for _, b := range blocks {
		for _, e := range b.entries {
			cases = append(cases, Listing{e.ID, e.Title, e.contenders, e.rounds, e.duration})
		}
	}
	cases = append(cases, c.extraListings()...)
	return cases, c.report.Contenders, estimate(blocks), nil
}

// Run makes the comparison and removes everything it made, whether it fails or is cancelled. Errors: bench.ErrUnable,
// the context's, and ErrFailed with a report of what was measured.
func Run(ctx context.Context, o Options) (report.Report, error) {
	if err := able(); err != nil {
		return report.Report{}, err
	}
	c := newComparison(o)
	r := &c.report
	r.Started, r.Rounds, r.Duration, r.Quick = time.Now().UTC().Truncate(time.Second), o.Rounds, o.Duration.Seconds(), o.Quick
	r.Machine = describeMachine()
	for _, x := range r.Contenders {
		if x.Missing != "" {
			c.say("%s is left out: %s", x.Name, x.Missing)
		} else {
			c.say("%s: %s", x.Name, x.Version)
		}
	}
	blocks := c.plan()
	if len(blocks)+len(c.extraListings()) == 0 {
		return *r, errors.New("no case of that name")
	}
	c.clock.begin(estimate(blocks))
	for _, b := range blocks {
		if err := c.runBlock(ctx, b); err != nil {
			return *r, err
		}
	}
	if err := c.extras(ctx); err != nil {
		return *r, err
	}
	r.Seconds = time.Since(c.clock.began).Round(time.Second).Seconds()
	r.Judge()
	if c.failed > 0 {
		return *r, fmt.Errorf("%w: %d", ErrFailed, c.failed)
	}
	return *r, nil
}

// A place is a contender in a setting: what one tunnel is for.
type place struct {
	contender string
	setting   setting
}

func (c *comparison) runBlock(ctx context.Context, b block) (err error) {
	if b.cores > 0 {
		undo, err := confine(allowedCores()[:b.cores])
		if err != nil {
			return err
		}
		defer undo()
	}
	tunnels := map[place]*tunnel{}
	defer func() {
		for _, t := range tunnels {
			err = errors.Join(err, t.close())
		}
	}()
	for _, e := range b.entries {
		for _, name := range e.contenders {
			at := place{name, e.setting}
			if _, ok := tunnels[at]; ok {
				continue
			}
			t, err := c.start(ctx, name, e.setting)
			if ctx.Err() != nil {
				return errors.Join(context.Cause(ctx), closeIf(t))
			}
			if err != nil {
				c.failed++
				c.say("%s, %s: %v", name, e.Title, err)
				t = &tunnel{failed: err}
			}
			tunnels[at] = t
			c.clock.done(startEstimate)
		}
	}
	rounds := 0
	cases := make([]report.Case, len(b.entries))
	for i, e := range b.entries {
		rounds = max(rounds, e.rounds)
		cases[i] = e.Case
		for _, name := range e.contenders {
			result := report.Result{Contender: name}
			if failed := tunnels[place{name, e.setting}].failed; failed != nil {
				result.Errors = []string{failed.Error()}
			}
			cases[i].Results = append(cases[i].Results, result)
		}
	}
	for round := range rounds {
		for i, e := range b.entries {
			if round >= e.rounds {
				continue
			}
			// Whoever comes first meets the machine as the case before has left it, so that changes too.
			for k := range e.contenders {
				k = (k + round) % len(e.contenders)
				t := tunnels[place{e.contenders[k], e.setting}]
				if t.failed != nil {
					continue
				}
				if err := c.measure(ctx, e, round, t, &cases[i].Results[k]); err != nil {
					return err
				}
			}
		}
	}
	c.report.Cases = append(c.report.Cases, cases...)
	return nil
}

func closeIf(t *tunnel) error {
	if t == nil {
		return nil
	}
	return t.close()
}

// measure takes one sample. Its error is the context's only.
func (c *comparison) measure(ctx context.Context, e entry, round int, t *tunnel, result *report.Result) error {
	load, err := c.awaitQuiet(ctx)
	if err != nil {
		return err
	}
	m := &meter{pids: t.pids()}
	before, _ := bench.ReadCPU()
	begin := time.Now()
	sample, err := e.traffic.run(ctx, t, e.duration, m)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	c.clock.done(measureEstimate(e.duration))
	if err = errors.Join(err, m.err); err != nil {
		c.failed++
		result.Errors = append(result.Errors, fmt.Sprintf("round %d: %v", round+1, err))
		c.say("%s, %s: %v", e.ID, result.Contender, err)
		return nil
	}
	after, _ := bench.ReadCPU()
	sample.Round, sample.Load = round+1, load
	sample.Stolen = after.Sub(before).Stolen.Seconds() / time.Since(begin).Seconds() / float64(len(allowedCores()))
	result.Samples = append(result.Samples, sample)
	c.say("%s  round %d of %d  %-28s %-18s %s", c.clock.left(), round+1, e.rounds, e.ID, result.Contender, e.Metric.Format(sample.Value))
	return nil
}
