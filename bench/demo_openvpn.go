package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
)

// plainPort and plainPool are of the server that keeps its data channel to itself; it runs beside
// the other one in the same namespace.
const plainPort = DefaultPort + 1

var plainPool = netip.MustParsePrefix("10.88.0.0/24")

// openvpn runs an unmodified OpenVPN server and two clients under our program, and one more pair
// without it.
func (d Demo) openvpn(ctx context.Context, star *Star, openvpn OpenVPN) (result DemoResult, err error) {
	d.say("found %s", openvpn.Version)
	lab, err := NewLab(openvpn)
	if err != nil {
		return result, err
	}
	defer lab.Close()
	// Stopped in the orderly way, which takes the interfaces away; the lab kills what is left.
	var tunnels []*Tunnel
	defer func() {
		for i := len(tunnels) - 1; i >= 0; i-- {
			err = errors.Join(err, tunnels[i].Stop())
		}
	}()
	start := func(t *Tunnel, err error) (*Tunnel, error) {
		if err == nil {
			tunnels = append(tunnels, t)
		}
		return t, err
	}

	ours := func(node *Node) Placement {
		return Placement{Node: node, Prefix: []string{d.Program, "exec", "--datapath", "userspace", "--log-level", "warn", "--workers", strconv.Itoa(d.Workers), "--"}}
	}
	d.say("starting: ovpn-go exec -- openvpn --config server.conf")
	server, err := start(lab.StartServer(ours(star.Server), ServerOptions{Options: Options{Name: "server", Keepalive: [2]int{2, 10}}}))
	if err != nil {
		return result, err
	}
	if err := server.WaitUp(ctx, demoUp); err != nil {
		return result, err
	}
	var clients []*Tunnel
	for i, node := range star.Clients {
		name := fmt.Sprintf("client%d", i+1)
		d.say("starting: ovpn-go exec -- openvpn --config %s.conf", name)
		client, err := start(lab.StartClient(ours(node), ClientOptions{
			Options: Options{Name: name}, Remote: netip.AddrPortFrom(star.ServerAddr4(i), DefaultPort)}))
		if err != nil {
			return result, err
		}
		clients = append(clients, client)
	}
	d.say("starting: openvpn --disable-dco, a pair for comparison")
	plainServer, err := start(lab.StartServer(Placement{Node: star.Server}, ServerOptions{
		Options: Options{Name: "plain-server", DisableDCO: true, Keepalive: [2]int{2, 10}}, Port: plainPort, Pool4: plainPool}))
	if err != nil {
		return result, err
	}
	if err := plainServer.WaitUp(ctx, demoUp); err != nil {
		return result, err
	}
	plainClient, err := start(lab.StartClient(Placement{Node: star.Clients[0]}, ClientOptions{
		Options: Options{Name: "plain-client", DisableDCO: true}, Remote: netip.AddrPortFrom(star.ServerAddr4(0), plainPort)}))
	if err != nil {
		return result, err
	}

	result.OpenVPN = openvpn.Version
	for _, client := range append(clients, plainClient) {
		if err := client.WaitUp(ctx, demoUp); err != nil {
			return result, err
		}
		peer, channel := server, "ovpn-go"
		if client == plainClient {
			peer, channel = plainServer, "OpenVPN itself"
		}
		iface, dco, err := client.Device()
		if err != nil {
			return result, err
		}
		if dco == (client == plainClient) {
			return result, fmt.Errorf("%s: data channel offloaded: %v; the log's last lines:\n%s", client.Name, dco, client.Log.Tail(40))
		}
		addr, _, err := peer.VPNAddrs()
		if err != nil {
			return result, err
		}
		t, err := d.measure(ctx, client.Name, channel, iface, client.Node, star.Server, addr)
		if err != nil {
			return result, err
		}
		result.Tunnels = append(result.Tunnels, t)
	}
	result.Ratio = result.Tunnels[0].GbitPerSecond / result.Tunnels[len(clients)].GbitPerSecond
	return result, nil
}
