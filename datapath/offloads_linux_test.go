package datapath_test

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/bench"
	"ovpn-go/crypto"
	"ovpn-go/datapath"
	tunlink "ovpn-go/tun"
	"ovpn-go/tun/tuntest"
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

// An interface without offloads carries what the stack then has to cut itself, and gets no super-frame.
func TestInterfaceWithoutOffloads(t *testing.T) {
	var tun *tunnel
	err := tuntest.WithoutOffloads(unix.TUN_F_CSUM, func() error {
		tun = newTunnel(t, crypto.AESGCM, 1416)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	tun.transfers(t)
	datagrams(t, tun.Clients[0], tun.Server, vpnServer)
	datagrams(t, tun.Server, tun.Clients[0], vpnClient)
	for name, d := range map[string]*datapath.Device{"server": tun.server, "client": tun.client} {
		none := tunlink.Features{}
		if o := d.Offloads(); o.Read != none || o.Write != none || o.RefusedFrames != 0 {
			t.Errorf("%s: %+v", name, o)
		}
		if s := d.Stats(); s.TxPackets > s.TunReads || s.RxPackets != s.TunWrites || s.RxPackets == 0 {
			t.Errorf("%s: packets did not go one by one: %+v", name, s)
		}
	}
}

// datagrams sends batches that the stack has to cut, and expects every datagram as it was.
func datagrams(t *testing.T, from, to *bench.Node, addr netip.Addr) {
	t.Helper()
	const size, count, last, batches = 1000, 40, 300, 20
	sink, err := listen(to, netip.AddrPortFrom(addr, 0))
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	source, err := listen(from, netip.AddrPort{})
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	raw, err := source.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var refused error
	err = raw.Control(func(fd uintptr) { refused = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, size) })
	if err := errors.Join(err, refused); err != nil {
		t.Fatal(err)
	}
	sink.SetReadDeadline(time.Now().Add(30 * time.Second))
	at := sink.LocalAddr().(*net.UDPAddr).AddrPort()
	buf := make([]byte, 2*size)
	for batch := range byte(batches) {
		data := make([]byte, (count-1)*size+last)
		for i := range data {
			data[i] = byte(i/size) + batch + byte(i)
		}
		if _, err := source.WriteToUDPAddrPort(data, at); err != nil {
			t.Fatal(err)
		}
		for i := range count {
			n, err := sink.Read(buf)
			if err != nil {
				t.Fatalf("batch %d, datagram %d: %v", batch, i, err)
			}
			if want := data[i*size : min((i+1)*size, len(data))]; !bytes.Equal(buf[:n], want) {
				t.Fatalf("batch %d, datagram %d has %d bytes, want others (%d)", batch, i, n, len(want))
			}
		}
	}
}
