package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"ovpn-go/bench"
)

// rekeyGroups renew keys under traffic, with two modules first.
func rekeyGroups() []group {
	g := group{name: "renewing keys under traffic loses no more than between two modules"}
	for _, who := range pairings {
		g.claims = append(g.claims, who.name)
	}
	g.run = func(ctx context.Context, g *progress) error {
		reference, err := g.lostByRenewing(ctx, onlyTheModule)
		if err != nil {
			return err
		}
		for _, who := range pairings {
			g.claim(who.name, func() error {
				lost, err := g.lostByRenewing(ctx, who)
				if err != nil {
					return err
				}
				g.note("lost: %d, between two modules: %d", lost, reference)
				if lost > reference {
					return errors.New("more is lost than between two modules")
				}
				return nil
			})
		}
		return nil
	}
	return []group{g}
}

// lostByRenewing counts the pings that are lost while the keys are renewed several times.
func (g *progress) lostByRenewing(ctx context.Context, who pairing) (lost int, err error) {
	p, err := newPair(ctx, g.program, who)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	if err := p.establish(ctx, udp4, aes256); err != nil {
		return 0, err
	}
	const (
		renewals = 8
		pause    = 200 * time.Millisecond // what is under way arrives in that time, even on a busy machine
	)
	renewed := make(chan error, 1)
	go func() {
		var err error
		for i := 0; i < renewals && err == nil; i++ {
			time.Sleep(pause)
			err = p.renew(pause)
		}
		renewed <- err
	}()
	received := 0
	for len(renewed) == 0 {
		r, err := bench.Ping{
			Node: p.nodes[client], To: inner4[server].Addr(), Count: 100, Interval: 5 * time.Millisecond, Wait: 5 * time.Second,
		}.Run(ctx)
		if err != nil {
			return 0, err
		}
		received += r.Received
		lost += r.Lost()
	}
	if received == 0 {
		return 0, fmt.Errorf("%s: no ping was answered\n%s", who.name, p.logs())
	}
	return lost, <-renewed
}
