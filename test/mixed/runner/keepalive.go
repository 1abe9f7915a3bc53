package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	ovpn "ovpn-go/netlinksrv/client"
)

const (
	idleStaysAlive = "keepalives keep an idle tunnel alive"
	silenceExpires = "silence removes the peer at both ends"
)

// keepaliveGroups leave tunnels idle, and then cut the wire.
func keepaliveGroups() []group {
	var all []group
	for _, who := range pairings {
		all = append(all, group{
			name: "keepalives/" + who.name, claims: []string{idleStaysAlive, silenceExpires},
			run: func(ctx context.Context, g *progress) error {
				p, err := newPair(ctx, g.program, who)
				if err != nil {
					return err
				}
				return errors.Join(g.keepalives(ctx, p), p.close())
			},
		})
	}
	return all
}

func (g *progress) keepalives(ctx context.Context, p *pair) error {
	const interval, timeout = 1, 4 // seconds
	if err := p.establish(ctx, udp4, aes256); err != nil {
		return err
	}
	keepalive := ovpn.Keepalive{Interval: interval * time.Second, Timeout: timeout * time.Second}
	// Not with PEER_NEW: there the module at times never starts sending them.
	for end := range p.nodes {
		if err := p.do(end, "SetKeepalive", keepalive); err != nil {
			return err
		}
	}
	before, err := p.settled()
	if err != nil {
		return err
	}
	idle := g.claim(idleStaysAlive, func() error {
		const enough = 2*timeout + 1
		time.Sleep(enough * time.Second)
		after, err := p.read()
		if err != nil {
			return err
		}
		for end := range after.counters {
			c := after.counters[end].minus(before.counters[end])
			g.note("%s: %+v", p.side(end), c)
			if c.vpn.TxPackets != 0 || c.vpn.RxPackets != 0 {
				return fmt.Errorf("%s: the tunnel was not idle: %+v", p.side(end), c)
			}
			// One in every interval, or in every other second where the clock's ticks fall badly.
			const few = enough / (interval + 1)
			if c.link.TxPackets < few || c.link.RxPackets < few {
				return fmt.Errorf("%s: too few keepalives: %+v", p.side(end), c)
			}
		}
		return nil
	})
	if !idle {
		return nil
	}
	g.claim(silenceExpires, func() error {
		if err := p.nodes[server].DelLink("eth0"); err != nil {
			return err
		}
		cut := time.Now()
		for end := range p.nodes {
			notices, err := p.notices(end, 0, (timeout+6)*time.Second)
			if err != nil {
				return err
			}
			want := ovpn.Event{Kind: ovpn.PeerDeleted, PeerID: thePeer, Reason: ovpn.Expired}
			if len(notices) != 1 || notices[0] != want {
				return fmt.Errorf("%s: notifications %+v", p.side(end), notices)
			}
			g.note("%s: after %.1fs", p.side(end), time.Since(cut).Seconds())
			if infos, err := call[[]ovpn.Peer](p, end, "Peers", None{}); err != nil || len(infos) != 0 {
				return fmt.Errorf("%s: peers %+v, %v", p.side(end), infos, err)
			}
		}
		return nil
	})
	return nil
}
