package datapath_test

import (
	"testing"

	"ovpn-go/bench"
	"ovpn-go/crypto"
	"ovpn-go/datapath"
)

// transfers sends through the tunnel both ways and checks that nothing was lost in it.
func (tun *tunnel) transfers(t *testing.T) {
	t.Helper()
	for _, way := range []bench.Transfer{
		{From: tun.Clients[0], To: tun.Server, Addr: vpnServer, Bytes: 8 << 20},
		{From: tun.Server, To: tun.Clients[0], Addr: vpnClient, Bytes: 8 << 20},
	} {
		if err := way.Run(t.Context()); err != nil {
			t.Error(err)
		}
	}
	for name, d := range map[string]*datapath.Device{"server": tun.server, "client": tun.client} {
		if drops := mishaps(d.Stats()); len(drops) != 0 {
			t.Errorf("%s: drops %v", name, drops)
		}
	}
}

func TestWithoutGSO(t *testing.T) {
	tun := newTunnelWith(t, crypto.AESGCM, datapath.Config{MTU: 1500, GSO: datapath.GSOOff})
	tun.transfers(t)
	o := tun.client.Offloads()
	if o.GSO != "off" || o.Sockets[0].OneByOne != 0 {
		t.Errorf("%+v", o)
	}
	// Many datagrams leave in one call nevertheless.
	if s := tun.client.Stats(); s.TxPackets < 4*s.Sends {
		t.Errorf("%d packets in %d calls", s.TxPackets, s.Sends)
	}
	// Nor do those of a path that has become too narrow for batches get lost.
	for _, node := range []*bench.Node{tun.Clients[0], tun.Server} {
		name := "eth0"
		if err := node.SetMTU(name, 1400); err != nil {
			t.Fatal(err)
		}
	}
	tun.transfers(t)
}
