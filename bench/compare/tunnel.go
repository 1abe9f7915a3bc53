package compare

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"ovpn-go/bench"
)

// A setting is what a tunnel is to be like.
type setting struct {
	pathMTU int    // of the link between the two namespaces
	cipher  string // as OpenVPN names it
	cores   int    // that everything may use; 0 for all
	// peers is 0 for the one peer of a usual tunnel.
	peers int
	// overTCP lets the tunnel's packets cross the link in a TCP connection.
	overTCP bool
}

const (
	standardMTU    = 1500
	jumboMTU       = 9000
	standardCipher = "AES-256-GCM"
)

// tunnelMTU leaves room for the headers of every contender that takes an MTU: 80 bytes, as WireGuard does.
func (s setting) tunnelMTU() int { return s.pathMTU - 80 }

// A tunnel is a contender at work between two namespaces of its own.
type tunnel struct {
	client, server         *bench.Node
	clientAddr, serverAddr netip.Addr // inside the tunnel
	// spread is set where there are several peers.
	spread *bench.Spread
	// processes carry the packets; there are none where the kernel does.
	processes []*bench.Process
	launcher  *bench.Launcher // nil if nothing runs

	// failed says why there is no tunnel.
	failed error

	closers []func() error // in the order of opening
}

// tunnelUp bounds the time until a tunnel carries packets.
const tunnelUp = 60 * time.Second

func (t *tunnel) onClose(fn func() error) { t.closers = append(t.closers, fn) }

func (t *tunnel) close() error {
	var errs []error
	for _, fn := range slices.Backward(t.closers) {
		errs = append(errs, fn())
	}
	t.closers = nil
	return errors.Join(errs...)
}

// newTunnel makes the two namespaces and the link between them.
func newTunnel(s setting) (*tunnel, error) {
	star, err := bench.NewStar(1)
	if err != nil {
		return nil, err
	}
	t := &tunnel{client: star.Clients[0], server: star.Server}
	t.onClose(star.Close)
	for _, node := range []*bench.Node{t.client, t.server} {
		// The stack's own chatter has no place in a measurement.
		err = errors.Join(err, node.DisableIPv6(), node.SetMTU("eth0", s.pathMTU))
	}
	if err != nil {
		return nil, errors.Join(err, t.close())
	}
	t.clientAddr, t.serverAddr = outerAddrs()
	return t, nil
}

// start starts a contender's tunnel.
func (c *comparison) start(ctx context.Context, name string, s setting) (*tunnel, error) {
	t, err := newTunnel(s)
	if err != nil {
		return nil, err
	}
	if err := c.present[name].start(ctx, c, t, s); err != nil {
		return nil, errors.Join(err, t.close())
	}
	return t, nil
}

// outerAddrs are the addresses on the link.
func outerAddrs() (client, server netip.Addr) {
	var star bench.Star
	return star.ClientAddr4(0), star.ServerAddr4(0)
}

// startVeth is no tunnel at all.
func startVeth(context.Context, *comparison, *tunnel, setting) error { return nil }

func (t *tunnel) pids() []int {
	var pids []int
	for _, p := range t.processes {
		pids = append(pids, p.PID())
	}
	return pids
}

// settle gives the ends their addresses inside the tunnel, where the contender has not, and waits for the first
// packet to come back.
func (t *tunnel) settle(ctx context.Context, iface string, mtu int) error {
	t.clientAddr, t.serverAddr = netip.AddrFrom4([4]byte{10, 8, 0, 2}), netip.AddrFrom4([4]byte{10, 8, 0, 1})
	for node, addr := range map[*bench.Node]netip.Addr{t.client: t.clientAddr, t.server: t.serverAddr} {
		err := node.SetMTU(iface, mtu)
		if err == nil {
			err = node.AddAddr(iface, netip.PrefixFrom(addr, 24))
		}
		if err == nil {
			err = node.SetUp(iface)
		}
		if err != nil {
			return err
		}
	}
	return bench.AwaitAnswer(ctx, t.client, t.serverAddr, tunnelUp)
}
