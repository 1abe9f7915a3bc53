package datapath

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ovpn-go/crypto"
	"ovpn-go/peers"
	"ovpn-go/tun"
	"ovpn-go/tun/tuntest"
)

// What is received of good and bad datagrams, in GRO buffers of any composition, is what the slow model makes of
// them one at a time: the same packets, byte for byte, in the same order, and the same counters.
func TestReceiveEqualsModel(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	r := newReceiving(t)
	for range 100 {
		script := make([]byte, 400)
		odds := 1 + random.IntN(20)
		for i := range script {
			if random.IntN(odds) == 0 {
				script[i] = byte(random.Uint32())
			}
		}
		r.run(t, random.Uint64(), script)
	}
	if r.largest < 10 {
		t.Errorf("no frame held more than %d packets", r.largest)
	}
	for reason := DropRunt; reason <= DropClient; reason++ {
		if r.dev.Stats().Drops[reason.String()] == 0 {
			t.Errorf("no packet was dropped for %v", reason)
		}
	}
}

func FuzzReceive(f *testing.F) {
	f.Add(uint64(1), make([]byte, 50))
	for fault := range byte(faults) {
		f.Add(uint64(fault), []byte{0, 0, fault, 0, 0, 64 + fault, 0, 128 + fault, 0, 0, 192 + fault, fault, 0})
	}
	r := newReceiving(f)
	f.Fuzz(func(t *testing.T, seed uint64, script []byte) { r.run(t, seed, script[:min(len(script), 500)]) })
}

// receiving is a stage of an MP device that delivers to the test. For every script it starts anew.
type receiving struct {
	*stage
	via     *transport
	stack   *os.File
	largest int // packets in one frame
}

func newReceiving(t testing.TB) *receiving {
	r := &receiving{stage: newStage(t)}
	r.worker.queue, r.stack = tuntest.Pair(t)
	r.via = transportOf(r.dev.table.Sole())
	routes := &Routes{}
	routes.current.Store(newRouteSet([2][]rule{}))
	r.dev.routes.Store(routes)
	r.dev.mode, r.dev.link = peers.MP, &memoryLink{}
	return r
}

// reset gives the device two peers that nothing was heard of, and returns their other ends and the model of it.
func (r *receiving) reset(t testing.TB, random *rand.Rand) ([]*sender, *slowReceiver) {
	r.dev.table = peers.NewTable(peers.MP)
	r.rx.coalesce, r.rx.written = tun.NewCoalescer(r.worker.queue), tun.CoalescerStats{}
	var senders []*sender
	model := &slowReceiver{drops: map[string]uint64{}}
	for i, ciphers := range [][]crypto.Cipher{{crypto.AESGCM, crypto.ChaCha20Poly1305}, {crypto.ChaCha20Poly1305}} {
		s := &sender{traffic: traffic{random: random, host: uint8(1 + 2*i)}, peer: uint32(1 + i), nextID: make([]uint32, 2)}
		slow := &slowPeer{id: s.peer, from: netip.AddrPortFrom(r.from.Addr(), r.from.Port()+uint16(i)), addr4: s.ip4().Src, addr6: s.ip6().Src,
			keys: map[byte]*slowKey{}}
		s.from = slow.from
		p := peers.New(peers.Config{ID: s.peer, TxID: s.peer, VPN4: slow.addr4, VPN6: slow.addr6})
		p.SetTransport(r.via)
		if _, err := r.dev.table.Add(p); err != nil {
			t.Fatal(err)
		}
		r.dev.table.Rebind(p, &peers.Binding{Remote: s.from})
		for slot, cipher := range ciphers {
			own, other := keyPair(cipher, uint8(3*slot))
			key, err := crypto.NewKey(own)
			if err != nil {
				t.Fatal(err)
			}
			p.Keys.Install(crypto.Slot(slot), key)
			slow.keys[own.ID] = newSlowKey(t, own)
			if key, err = crypto.NewKey(other); err != nil {
				t.Fatal(err)
			}
			s.keys = append(s.keys, key)
		}
		senders, model.peers = append(senders, s), append(model.peers, slow)
	}
	return senders, model
}

// run has two peers send what a script says: each byte is a datagram, its low bits what is wrong with it, its high ones
// what happens before it.
func (r *receiving) run(t testing.TB, seed uint64, script []byte) {
	random := rand.New(rand.NewPCG(seed, 0))
	senders, model := r.reset(t, random)
	before := r.dev.Stats().Drops
	from := senders[0]
	var data []byte // the GRO buffer in hand
	stride := 0
	deliver := func() {
		if stride == 0 {
			return
		}
		model.buffer(data, stride, from.from)
		// The cipher needs room behind the last packet.
		data = append(data, make([]byte, crypto.TagSize)...)[:len(data)]
		r.rx.buffer(r.via.udp, received{data: data, stride: stride, remote: from.from})
		r.compare(t, model)
		data, stride = nil, 0
	}
	for _, step := range script {
		switch step >> 6 {
		case 1: // a system call ends
			deliver()
			r.rx.flush()
			r.compare(t, model)
		case 2: // the other peer's turn
			deliver()
			from = senders[2-from.peer]
		case 3: // a buffer that the kernel would not make
			stride = 1 + random.IntN(2000)
			deliver()
		}
		datagram := from.datagram(int(step & 63))
		if len(datagram) > stride || len(data)+len(datagram) > receiveBufferLen-crypto.TagSize {
			deliver()
			stride = max(1, len(datagram))
		}
		data = append(data, datagram...)
		if len(datagram) < stride {
			deliver()
		}
	}
	deliver()
	r.rx.flush()
	r.compare(t, model)
	if len(model.delivered) > 0 {
		t.Fatalf("%d packets were not delivered, the first is %x", len(model.delivered), model.delivered[0])
	}
	drops := r.dev.Stats().Drops
	for reason, n := range before {
		if drops[reason] -= n; drops[reason] == 0 {
			delete(drops, reason)
		}
	}
	if diff := cmp.Diff(model.drops, drops); diff != "" {
		t.Errorf("drops (-model +device):\n%s", diff)
	}
	for _, slow := range model.peers {
		stats := r.dev.table.ByID(slow.id).Counters.Stats()
		if stats.LinkRxPackets != uint64(slow.received) || stats.VPNRxPackets != uint64(slow.passed) {
			t.Errorf("peer %d: %d packets received and %d delivered, want %d and %d",
				slow.id, stats.LinkRxPackets, stats.VPNRxPackets, slow.received, slow.passed)
		}
	}
}

// compare takes what the stack has got from what the model has delivered.
func (r *receiving) compare(t testing.TB, model *slowReceiver) {
	t.Helper()
	for _, frame := range tuntest.Drain(t, r.stack) {
		r.largest = max(r.largest, model.took(t, frame))
	}
}

// sender is the other end of a peer.
type sender struct {
	traffic
	peer   uint32
	from   netip.AddrPort
	keys   []*crypto.Key
	nextID []uint32
	inner  [][]byte // what is left of the last super-frame
	sent   [][]byte
}

// faults is the number of things that can be wrong with a datagram, the first of which is nothing.
const faults = 17

// datagram returns the next one, which has a fault or, for a number beyond, none.
func (s *sender) datagram(fault int) []byte {
	for len(s.inner) == 0 {
		s.inner, _ = tuntest.Segment(s.frame())
	}
	inner, r := s.inner[0], s.random
	s.inner = s.inner[1:]
	slot, peer := 0, s.peer
	switch fault {
	case 1:
		slot = len(s.keys) - 1
	case 2:
		peer = crypto.PeerIDUndefined
	case 3:
		peer = 3 - peer
	case 4:
		peer = r.Uint32N(1 << 24)
	case 5:
		inner = crypto.Keepalive[:]
	case 6:
		inner = nil
	case 7:
		inner = s.bytes(1 + r.IntN(100))
	case 8: // cut off
		inner = inner[:r.IntN(len(inner))]
	case 9: // another's address
		inner = bytes.Clone(inner)
		at := []int{15, 15, 23}[inner[0]>>4&2]
		if at = min(at, len(inner)-1); at >= 0 {
			inner[at] ^= byte(1 + r.IntN(3))
		}
	case 10: // ids are lost
		s.nextID[slot] += r.Uint32N(5000)
	case 11: // an old id
		s.nextID[slot] -= min(s.nextID[slot], r.Uint32N(4000))
	}
	s.nextID[slot]++
	packet := make([]byte, crypto.Overhead+len(inner), crypto.Overhead+len(inner)+crypto.TagSize)
	s.keys[slot].Seal(packet, inner, crypto.Op(s.keys[slot].ID(), peer), s.nextID[slot])
	switch fault {
	case 12: // sent before
		if len(s.sent) > 0 {
			return s.sent[r.IntN(len(s.sent))]
		}
	case 13:
		packet[r.IntN(len(packet))] ^= 1 << r.IntN(8)
	case 14:
		return packet[:r.IntN(min(len(packet), 40))]
	case 15: // another opcode or key id
		packet[0] = []byte{byte(r.Uint32()), crypto.OpcodeDataV1 << 3, packet[0] ^ byte(1+r.IntN(7))}[r.IntN(3)]
	case 16:
		return s.bytes(r.IntN(1500))
	}
	s.sent = append(s.sent, packet)
	return packet
}
