package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"ovpn-go/test/mixed/record"
)

// A group is claims about one tunnel, or a few like it, checked in order.
type group struct {
	name   string
	claims []string
	// run says of each claim, by its name, whether it holds. An error that it returns is why it could not go on.
	run func(ctx context.Context, g *progress) error
}

// patience bounds a group, in the time of the machine.
const patience = 10 * time.Minute

// progress is a group that is being checked.
type progress struct {
	group
	program string
	results map[string]*record.Claim
	current *record.Claim
}

var errNotReached = errors.New("not reached")

// check returns a result for each of the group's claims.
func (g group) check(ctx context.Context, program string) []record.Claim {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	p := &progress{group: g, program: program, results: map[string]*record.Claim{}}
	begin := time.Now()
	err := g.run(ctx, p)
	var claims []record.Claim
	for _, name := range g.claims {
		claim := p.results[name]
		if claim == nil {
			claim = &record.Claim{Error: errors.Join(errNotReached, err).Error()}
		}
		claim.Name = g.name + "/" + name
		claims = append(claims, *claim)
	}
	fmt.Printf("%6.1fs %s\n", time.Since(begin).Seconds(), g.name)
	for _, c := range claims {
		switch reached := g.name + "/"; {
		case p.results[c.Name[len(reached):]] == nil:
		case c.Error != "":
			fmt.Printf("        %5.1fs FAILED %s: %s %q\n", c.Seconds, c.Name, c.Error, c.Notes)
		default:
			fmt.Printf("        %5.1fs %s %q\n", c.Seconds, c.Name, c.Notes)
		}
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", g.name, err)
	}
	return claims
}

// claim finds out whether a claim holds, and reports whether it does.
func (p *progress) claim(name string, holds func() error) bool {
	begin := time.Now()
	c := &record.Claim{}
	p.current = c
	if err := holds(); err != nil {
		c.Error = err.Error()
	}
	c.Seconds = time.Since(begin).Seconds()
	p.results[name] = c
	return c.Error == ""
}

// note adds something measured to the claim that is being checked.
func (p *progress) note(format string, args ...any) {
	p.current.Notes = append(p.current.Notes, fmt.Sprintf(format, args...))
}
