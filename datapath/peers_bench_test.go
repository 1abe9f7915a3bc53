package datapath

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"ovpn-go/crypto"
	"ovpn-go/peers"
	"ovpn-go/tun"
)

// manyPeers is a stage of an MP device with n peers, which all live at the stage's sink. Peer i has the id i+1.
func manyPeers(b testing.TB, n int) *stage {
	b.Helper()
	s := newStage(b)
	d := s.dev
	transport := transportOf(d.table.Sole())
	d.mode, d.table, d.link = peers.MP, peers.NewTable(peers.MP), &memoryLink{}
	routes := &Routes{}
	routes.current.Store(newRouteSet([2][]rule{}))
	d.routes.Store(routes)
	own, _ := keyPair(crypto.AESGCM, 0)
	for i := range uint32(n) {
		p := peers.New(peers.Config{ID: i + 1, TxID: i + 1, VPN4: vpnOf(i)})
		p.SetTransport(transport)
		if _, err := d.table.Add(p); err != nil {
			b.Fatal(err)
		}
		d.table.Rebind(p, &peers.Binding{Remote: s.from})
		key, err := crypto.NewKey(own)
		if err != nil {
			b.Fatal(err)
		}
		p.Keys.Install(crypto.Primary, key)
	}
	return s
}

func vpnOf(i uint32) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
}

// burstFrame is a super-frame of some packets of 1,400 bytes between peer i and another address.
func burstFrame(i uint32, packets int, fromPeer bool) []byte {
	const header, size = 40, 1360
	frame := make([]byte, tun.VnetHdrLen+header+packets*size)
	vnet := tun.VnetHdr{
		Flags: unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, GSOType: unix.VIRTIO_NET_HDR_GSO_TCPV4,
		HdrLen: header, GSOSize: size, CsumStart: 20, CsumOffset: 16,
	}
	vnet.Encode(frame)
	p := frame[tun.VnetHdrLen:]
	p[0], p[8], p[9], p[32], p[33] = 0x45, 64, unix.IPPROTO_TCP, 5<<4, 0x10
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	peer, other := vpnOf(i).As4(), [4]byte{192, 0, 2, 1}
	if fromPeer {
		copy(p[12:], peer[:])
		copy(p[16:], other[:])
	} else {
		copy(p[12:], other[:])
		copy(p[16:], peer[:])
	}
	return frame
}

// The cost of a packet should not depend on how many peers there are, as long as they come in bursts. With one packet
// of a random peer after the other, what is left is the memory's latency.
var peerLoads = []struct {
	name  string
	burst int
}{{"bursts", 16}, {"random", 1}}

// BenchmarkTransmitPeers goes from the splitter to the UDP send over loopback.
func BenchmarkTransmitPeers(b *testing.B) {
	for _, load := range peerLoads {
		for _, n := range []int{1, 100, 1000, 10000} {
			b.Run(fmt.Sprintf("%s/peers=%d", load.name, n), func(b *testing.B) {
				s := manyPeers(b, n)
				random := rand.New(rand.NewPCG(1, 2))
				frame := burstFrame(0, load.burst, false)
				work := make([]byte, len(frame))
				b.ReportAllocs()
				for b.Loop() {
					copy(work, frame)
					to := vpnOf(random.Uint32N(uint32(n))).As4()
					copy(work[tun.VnetHdrLen+16:], to[:])
					s.tx.transmit(work)
					s.tx.flush()
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*load.burst), "ns/packet")
			})
		}
	}
}

// BenchmarkReceivePeers goes from a GRO buffer to the TUN write, which fails at once. The sealing is done in
// rounds with the clock stopped.
func BenchmarkReceivePeers(b *testing.B) {
	const round = 256
	_, other := keyPair(crypto.AESGCM, 0)
	for _, load := range peerLoads {
		for _, n := range []int{1, 100, 1000, 10000} {
			b.Run(fmt.Sprintf("%s/peers=%d", load.name, n), func(b *testing.B) {
				s := manyPeers(b, n)
				random := rand.New(rand.NewPCG(1, 2))
				key, err := crypto.NewKey(other)
				if err != nil {
					b.Fatal(err)
				}
				var buffers [round][]byte
				for i := range buffers {
					buffers[i] = make([]byte, 0, receiveBufferLen)
				}
				next := make([]uint32, n)
				stride := 0
				left := 0
				for b.Loop() {
					if left == 0 {
						b.StopTimer()
						for i := range buffers {
							id := random.Uint32N(uint32(n))
							var split tun.Splitter
							if err := split.Reset(burstFrame(id, load.burst, true)); err != nil {
								b.Fatal(err)
							}
							data := buffers[i][:0]
							for {
								packet, ok := split.Next()
								if !ok {
									break
								}
								next[id]++
								stride = crypto.Overhead + len(packet)
								at := len(data)
								data = data[:at+stride]
								key.Seal(data[at:], packet, crypto.Op(0, id+1), next[id])
							}
							buffers[i] = data
						}
						left = round
						b.StartTimer()
					}
					// In the order of their packet ids, or they would be replays.
					data := buffers[round-left]
					left--
					s.rx.buffer(nil, received{data: data, stride: stride, remote: s.from})
					s.rx.flush()
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*load.burst), "ns/packet")
				if drops := s.counters.drops[DropReplay].Load() + s.counters.drops[DropReversePath].Load() + s.counters.drops[DropAuthentication].Load(); drops > uint64(b.N*load.burst/100) {
					b.Fatalf("%d packets dropped before their end", drops)
				}
			})
		}
	}
}
