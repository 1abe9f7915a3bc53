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

var closers = [2]string{
	server: "the server's close removes the peer at both ends",
	client: "the client's close removes the peer at both ends",
}

// closeGroups close TCP connections under a tunnel.
func closeGroups() []group {
	var all []group
	for _, who := range pairings {
		for _, over := range []transport{tcp4, tcp6} {
			all = append(all, group{
				name: over.name + "/" + who.name + "/closed", claims: closers[:],
				run: func(ctx context.Context, g *progress) error {
					p, err := newPair(ctx, g.program, who)
					if err != nil {
						return err
					}
					for end := range closers {
						if err = p.establish(ctx, over, aes256); err != nil {
							break
						}
						g.claim(closers[end], func() error { return p.closeTransport(ctx, end) })
						if err = p.release(); err != nil {
							break
						}
					}
					return errors.Join(err, p.close())
				},
			})
		}
	}
	return all
}

// closeTransport closes one end's socket. That end's peer goes at once; the other's goes when it next sends.
func (p *pair) closeTransport(ctx context.Context, end int) error {
	if err := pings(ctx, p.nodes[client], [2]netip.Addr{inner4[server].Addr(), inner6[server].Addr()}); err != nil {
		return err
	}
	if err := p.do(end, "Close", p.sockets[end]); err != nil {
		return err
	}
	if err := p.expectGone(end, ovpn.TransportDisconnect); err != nil {
		return err
	}
	other := 1 - end
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		// Nobody answers.
		_, _ = bench.Ping{Node: p.nodes[other], To: inner4[end].Addr(), Count: 1 << 10, Interval: 20 * time.Millisecond}.Run(ctx)
	}()
	return p.expectGone(other, ovpn.TransportError)
}

// expectGone waits for the notification that an end's peer is gone, for that reason.
func (p *pair) expectGone(end int, reason ovpn.DeleteReason) error {
	notices, err := p.notices(end, 0, 15*time.Second)
	if err != nil {
		return err
	}
	want := ovpn.Event{Kind: ovpn.PeerDeleted, PeerID: thePeer, Reason: reason}
	if len(notices) != 1 || notices[0] != want {
		return fmt.Errorf("%s: notifications %+v, want %+v", p.side(end), notices, want)
	}
	infos, err := call[[]ovpn.Peer](p, end, "Peers", None{})
	if err == nil && len(infos) != 0 {
		err = fmt.Errorf("%s: still has peers: %+v", p.side(end), infos)
	}
	return err
}
