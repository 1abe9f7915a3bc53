package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"ovpn-go/bench"
	ovpn "ovpn-go/netlinksrv/client"
)

const (
	followsAddress = "the server follows the client to another address and says so once"
	followsPort    = "the server follows the client to another address and port and says so once"
)

// floatGroups let a client move while it sends: to an address of its own, and behind a relay, which changes the port
// as well.
func floatGroups() []group {
	var all []group
	for _, who := range pairings {
		for _, over := range []transport{udp4, udp6} {
			all = append(all, group{
				name: over.name + "/" + who.name + "/float", claims: []string{followsAddress, followsPort},
				run: func(ctx context.Context, g *progress) error {
					p, err := newPair(ctx, g.program, who)
					if err != nil {
						return err
					}
					p.cipher = aes256
					if err = g.floatDirectly(ctx, p, over); err == nil {
						err = g.floatBehindRelay(ctx, p, over)
					}
					return errors.Join(err, p.close())
				},
			})
		}
	}
	return all
}

func (g *progress) floatDirectly(ctx context.Context, p *pair, over transport) error {
	if err := p.establish(ctx, over, aes256); err != nil {
		return err
	}
	node := p.nodes[client]
	before, after := netip.PrefixFrom(p.star.ClientAddr4(0), 24), netip.MustParsePrefix("10.9.0.3/24")
	if over.outer6 {
		before, after = netip.PrefixFrom(p.star.ClientAddr6(0), 64), netip.MustParsePrefix("fd09::3/64")
	}
	// Else deleting an interface's first address takes its later ones along.
	if err := node.SetSysctl("net.ipv4.conf.all.promote_secondaries", "1"); err != nil {
		return err
	}
	g.claim(followsAddress, func() error {
		return p.expectFloat(ctx, netip.AddrPortFrom(after.Addr(), port), func() error {
			return errors.Join(node.AddAddr("eth0", after), node.DelAddr("eth0", before))
		})
	})
	return p.release()
}

func (g *progress) floatBehindRelay(ctx context.Context, p *pair, over transport) error {
	r, err := p.addRelay(over)
	if err != nil {
		return err
	}
	defer r.close()
	if err := p.makeDevices(); err != nil {
		return err
	}
	if _, err := p.connect(over); err != nil {
		return err
	}
	if err := p.join(ctx, [2]netip.AddrPort{server: r.outside[0], client: r.inside}); err != nil {
		return err
	}
	g.claim(followsPort, func() error {
		return p.expectFloat(ctx, r.outside[1], r.move)
	})
	return p.release()
}

// expectFloat moves the client under traffic and wants the server's end to follow it to the address, with one
// notification.
func (p *pair) expectFloat(ctx context.Context, to netip.AddrPort, move func() error) error {
	inside := [2]netip.Addr{inner4[server].Addr(), inner6[server].Addr()}
	if err := pings(ctx, p.nodes[client], inside); err != nil {
		return err
	}
	traffic, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan error, 1)
	go func() {
		r, err := bench.Ping{Node: p.nodes[client], To: inside[0], Count: 1 << 16, Interval: 20 * time.Millisecond}.Run(traffic)
		if err == nil && r.Received == 0 {
			err = errors.New("no ping of the traffic was answered")
		}
		done <- err
	}()
	if err := move(); err != nil {
		return err
	}
	notices, err := p.notices(server, 0, 15*time.Second)
	if err != nil {
		return fmt.Errorf("%w\n%s", err, p.logs())
	}
	if err := pings(ctx, p.nodes[client], inside); err != nil {
		return err
	}
	stop()
	if err := <-done; err != nil {
		return err
	}
	// What else was to come has come by now.
	if notices, err = p.notices(server, len(notices)-1, time.Second); err != nil {
		return err
	}
	want := ovpn.Event{Kind: ovpn.PeerFloated, PeerID: thePeer, Remote: to}
	if len(notices) != 1 || notices[0] != want {
		return fmt.Errorf("%s: notifications %+v, want %+v", p.side(server), notices, want)
	}
	info, err := p.peer(server)
	if err == nil && info.Remote != to {
		err = fmt.Errorf("%s: the peer is at %v, want %v", p.side(server), info.Remote, to)
	}
	return err
}
