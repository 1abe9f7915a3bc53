package datapath

import (
	"net/netip"
	"runtime"
	"testing"

	"ovpn-go/crypto"
	"ovpn-go/peers"
)

// A server may have ten thousand clients of which most say nothing: what each of them takes, with all there is for it in
// tables, schedules and keys.
func TestMemoryOfIdlePeers(t *testing.T) {
	const n = 10_000
	d := newEnd(t, peers.MP, newSockets(t), "127.0.0.1:0")
	go func() { // the end of all peers is announced
		for {
			select {
			case <-d.events:
			case <-d.Done():
				return
			}
		}
	}()
	heap := func() uint64 {
		runtime.GC()
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return stats.HeapAlloc
	}
	socket := d.socket(t)
	own, _ := keyPair(crypto.AESGCM, 0)
	before := heap()
	for id := range uint32(n) {
		vpn6 := netip.MustParseAddr("fd08::").As16()
		vpn6[14], vpn6[15] = byte(id>>8), byte(id)
		err := d.NewPeer(PeerConfig{
			ID: id, TxID: id, Remote: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(1024+id)), Socket: socket,
			VPN4: vpnOf(id), VPN6: netip.AddrFrom16(vpn6), Keepalive: &peers.Keepalive{Interval: 3600, Timeout: 36000},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, row := range []struct {
		keys  string
		slot  crypto.Slot
		limit uint64
	}{{"one", crypto.Primary, 6 << 10}, {"two", crypto.Secondary, 10 << 10}} {
		for id := range uint32(n) {
			if err := d.InstallKey(id, row.slot, own); err != nil {
				t.Fatal(err)
			}
		}
		each := (heap() - before) / n
		t.Logf("with %s: %d bytes", row.keys, each)
		if each > row.limit {
			t.Errorf("with %s: a peer takes %d bytes, at most %d expected", row.keys, each, row.limit)
		}
	}
}
