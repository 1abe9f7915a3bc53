package compare

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"

	"ovpn-go/bench"
	"ovpn-go/bench/controller"
)

const (
	staticInterface = "ovpn0"
	staticPort      = bench.DefaultPort
)

// spreadNetworks are where the addresses of many peers lie: the client's side, then the server's.
var spreadNetworks = [2]netip.Prefix{netip.MustParsePrefix("10.64.0.0/16"), netip.MustParsePrefix("10.128.0.0/16")}

func startStatic(ctx context.Context, c *comparison, t *tunnel, s setting) error {
	return c.startControllers(ctx, t, s, c.options.Program)
}

func startKernelStatic(ctx context.Context, c *comparison, t *tunnel, s setting) error {
	return c.startControllers(ctx, t, s, "")
}

// startControllers joins two devices by keys that nobody negotiated. The devices are of the given binary of
// ours, or the kernel's without one.
func (c *comparison) startControllers(ctx context.Context, t *tunnel, s setting, binary string) error {
	launcher, err := bench.NewLauncher("")
	if err != nil {
		return err
	}
	t.onClose(launcher.Close)
	t.launcher = launcher
	pair := controller.Pair{Interface: staticInterface, Cipher: s.cipher, Peers: max(s.peers, 1), Sides: [2]netip.AddrPort{
		netip.AddrPortFrom(t.clientAddr, staticPort), netip.AddrPortFrom(t.serverAddr, staticPort)}}
	if s.spread() {
		pair.Networks = spreadNetworks
	}
	specs, err := pair.Specs()
	if err != nil {
		return err
	}
	for i, node := range []*bench.Node{t.client, t.server} {
		name := [2]string{"client", "server"}[i]
		spec, err := json.Marshal(specs[i])
		if err != nil {
			return err
		}
		path, err := launcher.WriteFile(name+".json", spec, 0o600)
		if err != nil {
			return err
		}
		command := bench.Command{Node: node, Args: []string{c.options.Program, "bench-controller", path}}
		if binary != "" {
			command.Prefix = c.execPrefix(binary, name)
		}
		process, err := launcher.Start(command)
		if err != nil {
			return err
		}
		t.onClose(process.Stop)
		t.processes = append(t.processes, process)
	}
	ctx, cancel := context.WithTimeout(ctx, tunnelUp)
	defer cancel()
	for _, process := range t.processes {
		if _, _, err := process.Log.WaitFor(ctx, 0, controller.Ready); err != nil {
			return fmt.Errorf("start a device with static keys: %w", err)
		}
	}
	if s.spread() {
		return t.settleSpread(s)
	}
	return t.settle(ctx, staticInterface, s.tunnelMTU())
}

// spread tells whether the tunnel's two sides have a network of addresses each, one for every peer.
func (s setting) spread() bool { return s.peers != 0 }

// settleSpread gives either side all addresses of its network.
func (t *tunnel) settleSpread(s setting) error {
	for i, node := range []*bench.Node{t.client, t.server} {
		err := node.SetMTU(staticInterface, s.tunnelMTU())
		if err == nil {
			err = node.SetUp(staticInterface)
		}
		if err == nil {
			err = node.AddLocal(spreadNetworks[i])
		}
		if err == nil {
			err = node.AddRoute(spreadNetworks[1-i], netip.Addr{}, staticInterface)
		}
		if err != nil {
			return err
		}
	}
	t.spread = &bench.Spread{Sources: spreadNetworks[0], Targets: spreadNetworks[1], Peers: s.peers}
	return nil
}
