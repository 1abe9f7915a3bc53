package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/rpc"
	"regexp"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"ovpn-go/bench"
)

const (
	connectsOffloaded = "connects, one end on our data path and the other on the module"
	openvpnPings      = "pings are answered"
	openvpnStreams    = "streams arrive both ways, and are counted alike at both ends"
	openvpnRenewal    = "renewals of keys under traffic lose nothing"
	clientRestarts    = "the client restarts"
	serverRestarts    = "the server restarts"
	openvpnUp         = 60 * time.Second // bounds what takes two seconds on a machine of its own
	serverName        = "server"
	clientName        = "client"
	renewedEvery      = 15 // seconds; a handshake takes up to ten where the host is busy
)

// openvpnGroups connect real OpenVPN on both ends.
func openvpnGroups() []group {
	var all []group
	for _, over := range []transport{udp4, tcp4} {
		for _, who := range []pairing{weServe, moduleServes} {
			g := group{
				name:   "OpenVPN/" + over.name + "/" + who.name,
				claims: []string{connectsOffloaded, openvpnPings, openvpnStreams, openvpnRenewal, clientRestarts, serverRestarts},
				run: func(ctx context.Context, g *progress) error {
					s, err := newSession(g.program, who, over)
					if err != nil {
						return err
					}
					return errors.Join(s.check(ctx, g), s.close())
				},
			}
			all = append(all, g)
		}
	}
	return all
}

// A session is an OpenVPN server and its client, each the child of an End.
type session struct {
	pairing
	over    transport
	program string
	star    *bench.Star
	lab     *bench.Lab
	nodes   [2]*bench.Node
	tunnels [2]*bench.Tunnel
}

func newSession(program string, who pairing, over transport) (s *session, err error) {
	s = &session{pairing: who, over: over, program: program}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	found, err := bench.OpenVPNIn("")
	if err != nil {
		return s, err
	}
	if s.star, err = bench.NewStar(1); err != nil {
		return s, err
	}
	if s.lab, err = bench.NewLab(found); err != nil {
		return s, err
	}
	s.nodes = [2]*bench.Node{s.star.Server, s.star.Clients[0]}
	for _, node := range s.nodes {
		if err := prepare(node); err != nil {
			return s, err
		}
	}
	return s, nil
}

func (s *session) close() error {
	var errs []error
	if s.lab != nil {
		errs = append(errs, s.lab.Close())
	}
	if s.star != nil {
		errs = append(errs, s.star.Close())
	}
	return errors.Join(errs...)
}

// start starts OpenVPN at one end, without waiting for it.
func (s *session) start(end int) (err error) {
	args, _, err := prefix(s.lab.Launcher, s.nodes[end], s.program, s.ours[end])
	if err != nil {
		return err
	}
	at := bench.Placement{Node: s.nodes[end], Prefix: args}
	// Short lifetimes need help: see rekeyEvery in the package of the end-to-end tests.
	if end == server {
		var extra []string
		if !s.over.tcp {
			extra = append(extra, "explicit-exit-notify 1") // tells the client of a restart
		}
		s.tunnels[server], err = s.lab.StartServer(at, bench.ServerOptions{
			Options: bench.Options{Name: serverName, IPv6: s.over.outer6, TCP: s.over.tcp, Renegotiate: renewedEvery,
				Keepalive: [2]int{2, 20}, Verb: 6, Extra: extra},
			Pool6: netip.MustParsePrefix("fd00:8::/64"),
		})
		return err
	}
	remote := s.star.ServerAddr4(0)
	if s.over.outer6 {
		remote = s.star.ServerAddr6(0)
	}
	s.tunnels[client], err = s.lab.StartClient(at, bench.ClientOptions{
		Options: bench.Options{Name: clientName, IPv6: s.over.outer6, TCP: s.over.tcp, Renegotiate: renewedEvery + 2, Verb: 6,
			Extra: []string{"status " + s.lab.Inside("client.status") + " 1"}},
		Remote: netip.AddrPortFrom(remote, bench.DefaultPort),
	})
	return err
}

// startUp starts OpenVPN at one end and waits until its tunnel is up.
func (s *session) startUp(ctx context.Context, end int) error {
	if err := s.start(end); err != nil {
		return err
	}
	return s.tunnels[end].WaitUp(ctx, openvpnUp)
}

func (s *session) check(ctx context.Context, g *progress) error {
	var addrs [2][2]netip.Addr
	up := g.claim(connectsOffloaded, func() (err error) {
		for end := range s.nodes {
			if err := s.startUp(ctx, end); err != nil {
				return err
			}
			v4, v6, err := s.tunnels[end].VPNAddrs()
			if err != nil {
				return err
			}
			addrs[end] = [2]netip.Addr{v4, v6}
		}
		for end := range s.nodes {
			if err := s.expectKind(end); err != nil {
				return err
			}
		}
		return s.ping(ctx, addrs)
	})
	if !up {
		return errors.New(s.logs())
	}
	p, err := s.pair(ctx)
	if err != nil {
		return err
	}
	defer p.hangUp()
	g.claim(openvpnPings, func() error { return pings(ctx, s.nodes[client], addrs[server]) })
	g.claim(openvpnStreams, func() error {
		before, err := p.settled()
		if err != nil {
			return err
		}
		if err := streams(ctx, s.nodes, addrs, 1<<20); err != nil {
			return err
		}
		return g.compareCounters(p, before)
	})
	g.claim(openvpnRenewal, func() error { return s.renewals(ctx, g, addrs[server][0]) })
	g.claim(clientRestarts, func() error {
		if err := s.tunnels[client].Stop(); err != nil {
			return err
		}
		if err := s.startUp(ctx, client); err != nil {
			return err
		}
		return s.ping(ctx, addrs)
	})
	g.claim(serverRestarts, func() error {
		if err := s.tunnels[server].Stop(); err != nil {
			return err
		}
		mark := s.tunnels[client].Log.Mark()
		if err := s.startUp(ctx, server); err != nil {
			return err
		}
		if err := s.tunnels[client].WaitUpAgain(ctx, mark, openvpnUp); err != nil {
			return err
		}
		return s.ping(ctx, addrs)
	})
	for _, end := range []int{client, server} {
		if err := s.tunnels[end].Stop(); err != nil {
			return err
		}
	}
	return nil
}

// logs are the last words of both OpenVPN processes.
func (s *session) logs() string {
	var all []string
	for _, tunnel := range s.tunnels {
		if tunnel != nil {
			all = append(all, tunnel.Name+":", tunnel.Log.Tail(40))
		}
	}
	return strings.Join(all, "\n")
}

// ping waits until pings pass, which they do once the other end, too, is ready.
func (s *session) ping(ctx context.Context, addrs [2][2]netip.Addr) error {
	ctx, stop := context.WithTimeout(ctx, 30*time.Second)
	defer stop()
	for {
		r, err := bench.Ping{Node: s.nodes[client], To: addrs[server][0], Count: 3, Interval: 10 * time.Millisecond}.Run(ctx)
		if err == nil && r.Lost() == 0 {
			return nil
		}
		if ctx.Err() != nil {
			return errors.Join(fmt.Errorf("of %d pings %d were lost", r.Sent, r.Lost()), err)
		}
	}
}

// expectKind wants OpenVPN to have offloaded its data channel, and the interface to be, to the kernel itself, a TUN
// interface where we answered and the module's where that did.
func (s *session) expectKind(end int) error {
	name, dco, err := s.tunnels[end].Device()
	if err != nil {
		return err
	}
	if !dco {
		return fmt.Errorf("%s does not offload its data channel", s.tunnels[end].Name)
	}
	want := "ovpn"
	if s.ours[end] {
		want = "tuntap"
	}
	return s.nodes[end].Do(func() error {
		link, err := netlink.LinkByName(name)
		if err == nil && link.Type() != want {
			err = fmt.Errorf("the interface of %s is of the kind %s, want %s", s.tunnels[end].Name, link.Type(), want)
		}
		return err
	})
}

// pair connects to the Ends beside both OpenVPN processes, to ask the side that each is on.
func (s *session) pair(ctx context.Context) (_ *pair, err error) {
	p := &pair{pairing: s.pairing, nodes: s.nodes}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.hangUp())
		}
	}()
	for end := range s.nodes {
		if p.ends[end], err = s.dial(ctx, end); err != nil {
			return nil, err
		}
		if p.devices[end], _, err = s.tunnels[end].Device(); err != nil {
			return nil, err
		}
		if err = p.do(end, "UseLink", p.devices[end]); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (s *session) dial(ctx context.Context, end int) (*rpc.Client, error) {
	_, socket, err := prefix(s.lab.Launcher, s.nodes[end], s.program, s.ours[end])
	if err != nil {
		return nil, err
	}
	return dialEnd(ctx, socket, s.tunnels[end].Process)
}

// keySwapped matches what OpenVPN says, at verb 6, when it swaps keys.
var keySwapped = regexp.MustCompile(`dco_swap_keys`)

// renewals sends pings until both ends have changed their keys twice.
func (s *session) renewals(ctx context.Context, g *progress, to netip.Addr) error {
	const enough = 2
	sent := 0
	begin := [2]int{}
	for end, tunnel := range s.tunnels {
		begin[end] = tunnel.Log.Mark()
	}
	for {
		r, err := bench.Ping{Node: s.nodes[client], To: to, Count: 500, Interval: 10 * time.Millisecond, Wait: 10 * time.Second}.Run(ctx)
		if err != nil {
			return err
		}
		sent += r.Sent
		swaps := [2]int{}
		for end, tunnel := range s.tunnels {
			swaps[end] = len(tunnel.Log.Match(begin[end], keySwapped))
		}
		if r.Lost() != 0 || r.Duplicates != 0 {
			return fmt.Errorf("after %d pings and %v swaps, %d were lost and %d answered twice: %v",
				sent, swaps, r.Lost(), r.Duplicates, r.Missing)
		}
		if swaps[server] >= enough && swaps[client] >= enough {
			g.note("%d pings during %v swaps", sent, swaps)
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%v swaps: %w", swaps, ctx.Err())
		}
	}
}
