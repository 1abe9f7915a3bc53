package compare

import (
	"context"
	"fmt"
	"net/netip"

	"ovpn-go/bench"
)

// startStock runs an OpenVPN server and a client, with the options that a user's configuration would have, under
// our program.
func startStock(ctx context.Context, c *comparison, t *tunnel, s setting) error {
	return c.startOpenVPN(ctx, t, s, func(side string) []string { return c.execPrefix(c.options.Program, side) }, true)
}

func startOpenVPN(ctx context.Context, c *comparison, t *tunnel, s setting) error {
	return c.startOpenVPN(ctx, t, s, nil, false)
}

func startKernelOvpn(ctx context.Context, c *comparison, t *tunnel, s setting) error {
	return c.startOpenVPN(ctx, t, s, nil, true)
}

// startOpenVPN runs both ends with a prefix that depends on the side, and expects that they offload their data
// channel or don't.
func (c *comparison) startOpenVPN(ctx context.Context, t *tunnel, s setting, prefix func(side string) []string, offload bool) error {
	lab, err := bench.NewLab(c.openvpn)
	if err != nil {
		return err
	}
	t.onClose(lab.Close)
	t.launcher = lab.Launcher
	options := func(name string) bench.Options {
		o := bench.Options{Name: name, Cipher: s.cipher, DisableDCO: !offload, TCP: s.overTCP}
		if s.pathMTU != standardMTU {
			o.Extra = []string{fmt.Sprintf("tun-mtu %d", s.tunnelMTU())}
		}
		return o
	}
	at := func(node *bench.Node, side string) bench.Placement {
		p := bench.Placement{Node: node}
		if prefix != nil {
			p.Prefix = prefix(side)
		}
		return p
	}
	_, outer := outerAddrs()
	server, err := lab.StartServer(at(t.server, "server"), bench.ServerOptions{Options: options("server")})
	if err != nil {
		return err
	}
	t.onClose(server.Stop)
	if err := server.WaitUp(ctx, tunnelUp); err != nil {
		return err
	}
	client, err := lab.StartClient(at(t.client, "client"), bench.ClientOptions{
		Options: options("client"), Remote: netip.AddrPortFrom(outer, bench.DefaultPort)})
	if err != nil {
		return err
	}
	t.onClose(client.Stop)
	if err := client.WaitUp(ctx, tunnelUp); err != nil {
		return err
	}
	for _, end := range []*bench.Tunnel{server, client} {
		_, dco, err := end.Device()
		if err != nil {
			return err
		}
		if dco != offload {
			return fmt.Errorf("%s: data channel offloaded: %v; the log's last lines:\n%s", end.Name, dco, end.Log.Tail(40))
		}
		t.processes = append(t.processes, end.Process)
	}
	if t.serverAddr, _, err = server.VPNAddrs(); err != nil {
		return err
	}
	if t.clientAddr, _, err = client.VPNAddrs(); err != nil {
		return err
	}
	return bench.AwaitAnswer(ctx, t.client, t.serverAddr, tunnelUp)
}
