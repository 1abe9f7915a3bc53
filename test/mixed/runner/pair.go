package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"net/rpc"
	"os"
	"path/filepath"
	"time"

	"ovpn-go/bench"
	ovpn "ovpn-go/netlinksrv/client"
)

// A pairing says who is at which end of a tunnel.
type pairing struct {
	name string
	// ours tells for the server and for the client whether it is the program; else it is the module.
	ours [2]bool
	// p2p makes the server's device point to point, as the client's always is.
	p2p bool
}

var (
	weServe       = pairing{name: "we serve", ours: [2]bool{true, false}}
	moduleServes  = pairing{name: "the module serves", ours: [2]bool{false, true}}
	pointToPoint  = pairing{name: "point to point", ours: [2]bool{true, false}, p2p: true}
	onlyTheModule = pairing{name: "only the module", ours: [2]bool{false, false}}
	pairings      = []pairing{weServe, moduleServes, pointToPoint}
)

// The ends of a pair, by which its arrays are indexed.
const (
	server = 0
	client = 1
)

// device is the name of both ends' devices.
const device = "ovpn0"

// Addresses inside the tunnel.
var (
	inner4 = [2]netip.Prefix{netip.MustParsePrefix("10.8.0.1/24"), netip.MustParsePrefix("10.8.0.2/24")}
	inner6 = [2]netip.Prefix{netip.MustParsePrefix("fd00:8::1/64"), netip.MustParsePrefix("fd00:8::2/64")}
)

// transport is how the ends reach each other.
type transport struct {
	name        string
	tcp, outer6 bool
	dual        bool // UDP over IPv4 from sockets of both families
}

// A pair is two namespaces joined by a veth pair, with an End in each.
type pair struct {
	pairing
	star     *bench.Star
	launcher *bench.Launcher
	nodes    [2]*bench.Node
	ends     [2]*rpc.Client
	devices  [2]string
	process  [2]*bench.Process
	sockets  [2]int
	cipher   cipher
	keyID    uint8
}

func newPair(ctx context.Context, program string, who pairing) (*pair, error) {
	p := &pair{pairing: who}
	if err := p.open(ctx, program); err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

func (p *pair) open(ctx context.Context, program string) (err error) {
	if p.star, err = bench.NewStar(1); err != nil {
		return err
	}
	p.nodes = [2]*bench.Node{p.star.Server, p.star.Clients[0]}
	for _, node := range p.nodes {
		if err := prepare(node); err != nil {
			return err
		}
	}
	if p.launcher, err = bench.NewLauncher(""); err != nil {
		return err
	}
	for i, node := range p.nodes {
		p.process[i], p.ends[i], err = startEnd(ctx, p.launcher, node, program, p.ours[i])
		if err != nil {
			return fmt.Errorf("start an end: %w", err)
		}
	}
	return nil
}

// prepare sets what applies to interfaces and connections that a node gets later. They should not send anything of
// their own accord: no link-local addresses, no router solicitations, no reports of multicast groups but at once. And TCP,
// which makes its frames as large as a millisecond's worth, should make large ones on an emulated machine, too.
func prepare(node *bench.Node) error {
	for name, value := range map[string]string{
		"ipv6.conf.default.addr_gen_mode":                     "1",
		"ipv6.conf.default.router_solicitations":              "0",
		"ipv6.conf.default.mldv1_unsolicited_report_interval": "1",
		"ipv6.conf.default.mldv2_unsolicited_report_interval": "1",
		"ipv4.tcp_min_tso_segs":                               "40",
	} {
		if err := node.SetSysctl("net."+name, value); err != nil {
			return err
		}
	}
	return nil
}

// prefix is the command line that makes an End run a command, if there is one.
func prefix(launcher *bench.Launcher, node *bench.Node, program string, ours bool) (args []string, socket string, err error) {
	socket = filepath.Join(launcher.Dir(), node.Name+".sock")
	if ours {
		args = []string{program, "exec", "--datapath", "userspace", "--"}
	}
	self, err := os.Executable()
	return append(args, self, "end", socket), socket, err
}

func startEnd(ctx context.Context, launcher *bench.Launcher, node *bench.Node, program string, ours bool) (*bench.Process, *rpc.Client, error) {
	args, socket, err := prefix(launcher, node, program, ours)
	if err != nil {
		return nil, nil, err
	}
	process, err := launcher.Start(bench.Command{Node: node, Args: args})
	if err != nil {
		return nil, nil, err
	}
	end, err := dialEnd(ctx, socket, process)
	return process, end, err
}

// dialEnd waits until an End answers at the socket.
func dialEnd(ctx context.Context, socket string, process *bench.Process) (*rpc.Client, error) {
	for {
		end, err := rpc.Dial("unix", socket)
		if err == nil {
			return end, nil
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-process.Done():
			return nil, fmt.Errorf("%w\n%s", err, process.Log.Tail(20))
		case <-ctx.Done():
			return nil, errors.Join(err, ctx.Err())
		}
	}
}

func (p *pair) close() error {
	errs := []error{p.hangUp()}
	if p.launcher != nil {
		errs = append(errs, p.launcher.Close())
	}
	if p.star != nil {
		errs = append(errs, p.star.Close())
	}
	return errors.Join(errs...)
}

// hangUp ends the connections to both Ends.
func (p *pair) hangUp() error {
	var errs []error
	for _, end := range p.ends {
		if end != nil {
			errs = append(errs, end.Close())
		}
	}
	return errors.Join(errs...)
}

// logs are the last words of both ends.
func (p *pair) logs() string {
	return p.process[server].Log.Tail(10) + "\n" + p.process[client].Log.Tail(10)
}

// call calls a method of an End.
func call[Reply any](p *pair, end int, method string, args any) (Reply, error) {
	var reply Reply
	err := p.ends[end].Call("End."+method, args, &reply)
	if err != nil {
		err = fmt.Errorf("%s (%s): %w", method, p.side(end), err)
	}
	return reply, err
}

// do is call for a method without a result.
func (p *pair) do(end int, method string, args any) error {
	_, err := call[None](p, end, method, args)
	return err
}

func (p *pair) side(end int) string {
	who := "the module"
	if p.ours[end] {
		who = "we"
	}
	return who + " as " + []string{"server", "client"}[end]
}

// thePeer is the id of the one peer that each end has.
const thePeer = 7

// establish makes both devices and joins them over the transport, with a key of the cipher and no keepalives.
func (p *pair) establish(ctx context.Context, over transport, with cipher) error {
	p.cipher = with
	if err := p.makeDevices(); err != nil {
		return err
	}
	remote, err := p.connect(over)
	if err != nil {
		return err
	}
	return p.join(ctx, remote)
}

func (p *pair) mode(end int) ovpn.Mode {
	if end == server && !p.p2p {
		return ovpn.MP
	}
	return ovpn.P2P
}

func (p *pair) makeDevices() error {
	p.devices = [2]string{device, device}
	for i, node := range p.nodes {
		if err := p.do(i, "NewLink", ovpn.LinkConfig{Name: device, Mode: p.mode(i)}); err != nil {
			return err
		}
		for _, addr := range []netip.Prefix{inner4[i], inner6[i]} {
			if err := node.AddAddr(device, addr); err != nil {
				return err
			}
		}
		if err := node.SetUp(device); err != nil {
			return err
		}
	}
	return nil
}

// join makes each end the other's peer, at the remote addresses given for each, and waits until both devices run.
func (p *pair) join(ctx context.Context, remote [2]netip.AddrPort) error {
	p.keyID = 0
	for i := range p.nodes {
		peer := ovpn.PeerConfig{ID: thePeer, Remote: remote[i], Socket: p.sockets[i]}
		if p.mode(i) == ovpn.MP {
			peer.VPN4, peer.VPN6 = inner4[client].Addr(), inner6[client].Addr()
		}
		if err := p.do(i, "NewPeer", peer); err != nil {
			return err
		}
	}
	if err := p.installKeys(ovpn.Primary, 0); err != nil {
		return err
	}
	for _, node := range p.nodes {
		if err := node.WaitRunning(ctx, device); err != nil {
			return err
		}
	}
	return nil
}

// port is the server's, and the client's over UDP.
const port = 1194

// connect opens the transport's sockets and returns the remote address for each end's peer.
func (p *pair) connect(over transport) (remote [2]netip.AddrPort, err error) {
	addrs := [2]netip.Addr{p.star.ServerAddr4(0), p.star.ClientAddr4(0)}
	any := netip.IPv4Unspecified()
	switch {
	case over.outer6:
		addrs = [2]netip.Addr{p.star.ServerAddr6(0), p.star.ClientAddr6(0)}
		any = netip.IPv6Unspecified()
	case over.dual:
		for i, a := range addrs {
			addrs[i] = netip.AddrFrom16(a.As16())
		}
		any = netip.IPv6Unspecified()
	}
	at := Endpoint{Address: netip.AddrPortFrom(any, port), Only6: over.outer6}
	if !over.tcp {
		for i := range p.nodes {
			if p.sockets[i], err = call[int](p, i, "Bind", at); err != nil {
				return remote, err
			}
			remote[i] = netip.AddrPortFrom(addrs[1-i], port)
		}
		return remote, nil
	}
	listener, err := call[int](p, server, "Listen", at)
	if err != nil {
		return remote, err
	}
	p.sockets[client], err = call[int](p, client, "Dial", Endpoint{Address: netip.AddrPortFrom(addrs[server], port)})
	if err != nil {
		return remote, err
	}
	p.sockets[server], err = call[int](p, server, "Accept", listener)
	return remote, err
}

// installKeys gives both ends the same new key of the pair's cipher.
func (p *pair) installKeys(slot ovpn.Slot, id uint8) error {
	var up, down ovpn.Direction
	for _, d := range []*ovpn.Direction{&up, &down} {
		d.Key = make([]byte, p.cipher.keySize)
		rand.Read(d.Key)
		rand.Read(d.NonceTail[:])
	}
	key := ovpn.KeyConfig{Slot: slot, ID: id, Cipher: p.cipher.number, Encrypt: down, Decrypt: up}
	if err := p.do(server, "NewKey", key); err != nil {
		return err
	}
	key.Encrypt, key.Decrypt = up, down
	return p.do(client, "NewKey", key)
}

// renew installs a new key, changes to it and, after the pause, deletes the old one.
func (p *pair) renew(pause time.Duration) error {
	p.keyID = (p.keyID + 1) % 8
	if err := p.installKeys(ovpn.Secondary, p.keyID); err != nil {
		return err
	}
	for i := range p.nodes {
		if err := p.do(i, "SwapKeys", None{}); err != nil {
			return err
		}
	}
	time.Sleep(pause)
	for i := range p.nodes {
		if err := p.do(i, "DelKey", ovpn.Secondary); err != nil {
			return err
		}
	}
	return nil
}

// release deletes both devices and closes the sockets.
func (p *pair) release() error {
	return errors.Join(p.do(server, "DelLink", device), p.do(client, "DelLink", device))
}

// peer returns what an end says of its one peer.
func (p *pair) peer(end int) (ovpn.Peer, error) {
	infos, err := call[[]ovpn.Peer](p, end, "Peers", None{})
	if err == nil && len(infos) != 1 {
		err = fmt.Errorf("%s: %d peers in the dump", p.side(end), len(infos))
	}
	if err != nil {
		return ovpn.Peer{}, err
	}
	return infos[0], nil
}

// notices returns an end's notices once there are more than have been seen, or what there are when the time is up.
func (p *pair) notices(end, seen int, wait time.Duration) ([]ovpn.Event, error) {
	var all []ovpn.Event
	running := p.ends[end].Go("End.Notices", seen, &all, make(chan *rpc.Call, 1))
	select {
	case <-running.Done:
		return all, running.Error
	case <-time.After(wait):
		return nil, fmt.Errorf("%s: no notification within %v", p.side(end), wait)
	}
}
