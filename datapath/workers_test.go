package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/crypto"
	"ovpn-go/peers"
	"ovpn-go/tun"
	"ovpn-go/tun/tuntest"
)

// withWorkers makes the devices of a test have n workers.
func withWorkers(t testing.TB, n int) {
	t.Helper()
	before := WorkersUnderTest
	WorkersUnderTest = n
	t.Cleanup(func() { WorkersUnderTest = before })
}

// What holds for one worker holds for three.
func TestSeveralWorkers(t *testing.T) {
	for _, test := range []func(*testing.T){
		TestTunnelCarriesPacketsBothWays,
		TestControlPacketsStayTheClients,
		TestReceiveDrops,
		TestReplayIsDropped,
		TestFloatFollowsAuthenticatedPackets,
		TestLocalAddressIsLearned,
		TestUnusableLocalAddressIsForgotten,
		TestNoPrimaryKeyDropsAndSecondaryDecrypts,
		TestNewPeerOnP2PReplaces,
		TestCarrierFollowsThePeer,
		TestDeletePeerGivesTheSocketBackBeforeItReturns,
		TestClosedClientSocketRemovesItsPeers,
		TestBeforeBindReleasesWhatTheClientClosed,
		TestNewPeerErrorsChangeNothing,
		TestKeepaliveAndExpiry,
		TestCloseAnnouncesEveryPeerInOrder,
		TestDeletedInterfaceEndsTheDevice,
		TestPeerAddedWhileTheDeviceEnds,
		TestTCPTunnelCarriesPacketsBothWays,
		TestTCPFramesByteByByte,
		TestTCPBadFramesRemoveThePeer,
		TestTCPLongFramesInPieces,
		TestTCPEndOfStreamReachesTheClientAndThePeerStays,
		TestTCPResetInMidFrame,
		TestTCPClientCloseRemovesThePeer,
		TestTCPClientShutdown,
		TestTCPDeletedPeerLeavesAStream,
		TestTCPConnectionCanCarryAnotherPeerLater,
		TestTCPDetachedStreamLosesNothing,
		TestTCPPeerThatStopsReading,
		TestTCPFailedNewPeerPutsTheDescriptorBack,
		TestTCPClientCloseWithAStuckConnection,
		TestTCPLingeringClose,
	} {
		name := runtime.FuncForPC(reflect.ValueOf(test).Pointer()).Name()
		t.Run(name[strings.LastIndex(name, "Test"):], func(t *testing.T) {
			withWorkers(t, 3)
			test(t)
		})
	}
}

func TestWorkersFor(t *testing.T) {
	for _, tt := range []struct {
		rule  string
		asked int
		mode  peers.Mode
		procs int
		want  int // 0: an error
	}{
		{"as asked", 3, peers.MP, 1, 3},
		{"as asked for P2P", 3, peers.P2P, 1, 3},
		{"the most", MaxWorkers, peers.MP, 1, MaxWorkers},
		{"too many", MaxWorkers + 1, peers.MP, 1, 0},
		{"negative", -1, peers.MP, 1, 0},
		{"few processors", 0, peers.MP, 1, 1},
		{"up to four processors", 0, peers.MP, 4, 1},
		{"one peer only", 0, peers.P2P, 64, 1},
		{"half of the processors", 0, peers.MP, 6, 3},
		{"no more than eight", 0, peers.MP, 64, 8},
	} {
		got, err := workersFor(tt.asked, tt.mode, tt.procs)
		if got != tt.want || (err == nil) != (tt.want > 0) {
			t.Errorf("%s: %d, %v; want %d", tt.rule, got, err, tt.want)
		}
	}
}

// Each worker receives the peers whose ids fall to it, whatever address they send from.
func TestPacketsReachTheWorkerOfTheirPeer(t *testing.T) {
	withWorkers(t, 3)
	_, b := newTunnel(t)
	ka, _ := keyPair(crypto.AESGCM, 0)
	const packets = 50
	for i := range uint32(packets) {
		from, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		_, err = from.WriteToUDPAddrPort(sealed(t, ka, 2, i+1, udp4("10.8.0.1", "10.8.0.2", "x")), b.addr())
		from.Close()
		if err != nil {
			t.Fatal(err)
		}
		b.receive(t)
	}
	// A packet is delivered before it is counted.
	eventually(t, "packets to be counted", func() bool { return b.Stats().RxPackets == packets })
	for _, w := range b.workers {
		got := w.counters.rxPackets.Load()
		if want := map[bool]uint64{true: packets}[w == b.owner(2)]; got != want {
			t.Errorf("worker %d received %d packets, want %d", w.index, got, want)
		}
	}
}

// flowPacket is packet number seq of a flow.
func flowPacket(flow, seq int) []byte {
	p := udp4("10.8.0.1", "10.8.0.2", "01234567")
	binary.BigEndian.PutUint16(p[20:], uint16(1000+flow))
	binary.BigEndian.PutUint32(p[28:], uint32(flow))
	binary.BigEndian.PutUint32(p[32:], uint32(seq))
	return p
}

// Several workers send for one peer at once. No packet is lost, neither to the replay window, as long as fewer
// are on their way than it holds, nor otherwise, and each flow's come in order.
func TestFlowsKeepTheirOrder(t *testing.T) {
	for _, transport := range []string{"udp", "tcp"} {
		t.Run(transport, func(t *testing.T) {
			withWorkers(t, 3)
			var a, b *end
			if transport == "udp" {
				a, b = newTunnel(t)
			} else {
				sockets := newSockets(t)
				a, b = newEnd(t, peers.P2P, sockets, "127.0.0.1:0"), newEnd(t, peers.P2P, sockets, "127.0.0.1:0")
				left, right := connected(t)
				ka, kb := keyPair(crypto.AESGCM, 0)
				a.addTCP(t, PeerConfig{ID: 1, TxID: 2}, ka, left)
				b.addTCP(t, PeerConfig{ID: 2, TxID: 1}, kb, right)
			}
			const flows, perFlow, ahead = 20, 200, 10
			arrived := make([]int, flows)
			for round := range perFlow / ahead {
				var senders sync.WaitGroup
				for q := range a.link.stacks {
					senders.Go(func() {
						for i := range ahead * flows {
							p := flowPacket(i%flows, round*ahead+i/flows)
							if a.link.stackOf(p) == a.link.stacks[q] {
								a.send(t, p)
							}
						}
					})
				}
				for range ahead * flows {
					// The receiving device joins packets of a flow that are in order.
					frame := b.receive(t)
					for payload := frame[28:]; len(payload) > 0; payload = payload[8:] {
						flow, seq := binary.BigEndian.Uint32(payload), int(binary.BigEndian.Uint32(payload[4:]))
						if seq != arrived[flow] {
							t.Fatalf("flow %d: packet %d came where %d should have", flow, seq, arrived[flow])
						}
						arrived[flow]++
					}
					if total(arrived) == (round+1)*ahead*flows {
						break
					}
				}
				senders.Wait()
			}
			for _, w := range a.workers {
				if w.counters.tunReads.Load() == 0 {
					t.Errorf("worker %d read nothing", w.index)
				}
			}
			if s := b.Stats(); len(s.Drops) != 0 {
				t.Errorf("drops: %v", s.Drops)
			}
		})
	}
}

func total(counts []int) (sum int) {
	for _, n := range counts {
		sum += n
	}
	return sum
}

// flood keeps all queues of e full until it is stopped.
func (e *end) flood(t *testing.T) (stop func()) {
	t.Helper()
	var stopped atomic.Bool
	var running sync.WaitGroup
	for _, stack := range e.link.stacks {
		running.Go(func() {
			frame := append(make([]byte, tun.VnetHdrLen), udp4("10.8.0.1", "10.8.0.2", string(make([]byte, 200)))...)
			for !stopped.Load() {
				stack.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
				if _, err := stack.Write(frame); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
					return
				}
			}
		})
	}
	return func() { stopped.Store(true); running.Wait() }
}

// Once DeletePeer has returned, no worker uses the peer's sockets, however busy all of them are: the port can be bound
// by others, and what takes the descriptors' numbers is not sent to.
func TestDeletePeerUnderFullTraffic(t *testing.T) {
	withWorkers(t, 3)
	a := newEnd(t, peers.P2P, newSockets(t), "127.0.0.1:0")
	sink, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	to := sink.LocalAddr().(*net.UDPAddr).AddrPort()
	own := a.addr()
	strangers := make(chan netip.AddrPort, 1)
	go func() {
		buf := make([]byte, 2000)
		for {
			_, from, err := sink.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			if from.Port() != own.Port() {
				select {
				case strangers <- from:
				default:
				}
			}
		}
	}()
	stop := a.flood(t)
	defer stop()
	noise := make(chan struct{})
	var senders sync.WaitGroup
	for range 2 {
		// Packets for every worker's socket, which do not open.
		senders.Go(func() {
			conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(own))
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			for id := uint32(0); ; id++ {
				select {
				case <-noise:
					return
				default:
					_, _ = conn.Write(append(binary.BigEndian.AppendUint32(nil, crypto.Op(0, id%6)), make([]byte, 60)...))
				}
			}
		})
	}
	key, _ := keyPair(crypto.AESGCM, 0)
	for i := range uint32(60) {
		id := i % 5
		a.addPeer(t, PeerConfig{ID: id, TxID: id, Remote: to}, key)
		sent := a.Stats().TxPackets
		for deadline := time.Now().Add(5 * time.Second); a.Stats().TxPackets < sent+50; {
			if time.Now().After(deadline) {
				t.Fatalf("round %d: nothing is sent: %+v", i, a.Stats())
			}
			runtime.Gosched()
		}
		if err := a.DeletePeer(id); err != nil {
			t.Fatal(err)
		}
		// As the client does: close the socket and bind the port anew, with no option that would share it. The
		// first descriptors that are free are those that the device gave up.
		a.client.Close()
		var others []*net.UDPConn
		if a.client, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(own.Port())}); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		for range 6 {
			c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
			if err != nil {
				t.Fatal(err)
			}
			others = append(others, c)
		}
		runtime.Gosched()
		for _, c := range others {
			c.Close()
		}
		a.event(t)
		<-a.link.carrier
		<-a.link.carrier
	}
	close(noise)
	senders.Wait()
	select {
	case from := <-strangers:
		t.Errorf("a packet was sent by a socket that is not the peer's: from %v", from)
	default:
	}
}

// Frames that several workers send over a connection that can't keep up stay whole, and none of the client's records is
// lost.
func TestTCPSeveralWorkersOnOneConnection(t *testing.T) {
	withWorkers(t, 3)
	e, client, raw, _ := tcpPeer(t)
	stop := e.flood(t)
	defer stop()
	const records = 400
	go func() {
		for i := range records {
			record := frame(binary.BigEndian.AppendUint32([]byte{4 << 3}, uint32(i)))
			if _, err := client.Write(record); err != nil {
				return
			}
		}
	}()
	next := 0
	for frames := 0; next < records; frames++ {
		if frames%500 == 499 {
			time.Sleep(5 * time.Millisecond) // for the connection to fill up
		}
		packet := readFrame(t, raw)[framePrefix:]
		switch opcode := crypto.Opcode(packet[0]); {
		case opcode == crypto.OpcodeDataV2 && len(packet) == crypto.Overhead+228:
		case opcode == 4 && len(packet) == 5 && int(binary.BigEndian.Uint32(packet[1:])) == next:
			next++
		default:
			t.Fatalf("after %d frames and %d records: %x", frames, next, packet)
		}
	}
	if e.Stats().Drops["send"] == 0 {
		t.Error("the connection was never full")
	}
}

// Two workers that see a peer at another address at the same time announce one move.
func TestFloatIsAnnouncedOnce(t *testing.T) {
	withWorkers(t, 3)
	_, b := newTunnel(t)
	p := b.table.ByID(2)
	const moves = 2000
	var arrived atomic.Int64
	var workers sync.WaitGroup
	for range 2 {
		workers.Go(func() {
			for i := range int64(moves) {
				to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(20000+i))
				// At the same time, as nearly as can be.
				for arrived.Add(1); arrived.Load() < 2*(i+1); {
					runtime.Gosched()
				}
				b.learnEndpoint(p, &received{remote: to}, bootSeconds())
			}
		})
	}
	for i := range moves {
		if ev := b.event(t); ev.Kind != PeerFloated || int(ev.Remote.Port()) != 20000+i {
			t.Errorf("event %d = %+v, want the next move", i, ev)
			go func() {
				for range b.events { // or nobody gets any further
				}
			}()
			break
		}
	}
	workers.Wait()
	b.Device.events.drain()
	if n := len(b.events); n != 0 && !t.Failed() {
		t.Errorf("%d more events", n)
	}
}

// A peer whose keepalive was set anew between the verdict and the removal stays.
func TestKeepaliveSetMeanwhileSavesThePeer(t *testing.T) {
	a, _ := newTunnel(t)
	p := a.table.ByID(1)
	setting := &peers.Keepalive{Interval: 10, Timeout: 60}
	for _, tt := range []struct {
		rule      string
		keepalive peers.Keepalive
		stays     bool
	}{
		{"set again", *setting, true},
		{"switched off", peers.Keepalive{}, true},
		{"left alone", *setting, false},
	} {
		if err := a.SetPeer(1, PeerUpdate{Keepalive: &tt.keepalive}); err != nil {
			t.Fatal(err)
		}
		if err := a.do(func() {
			if !tt.stays {
				a.owner(1).lifetimes.Forget(p) // as the schedule does
			}
			a.expire(p)
		}); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Peer(1); (err == nil) != tt.stays {
			t.Errorf("%s: %v", tt.rule, err)
		}
	}
}

// newWorkers makes a device of a stage have n workers, which have no goroutines either.
func (s *stage) newWorkers(t testing.TB, n int) []*worker {
	t.Helper()
	udp := transportOf(s.dev.table.Sole()).udp
	for i := 1; i < n; i++ {
		queue, kernel := tuntest.Pair(t)
		kernel.Close()
		w, err := newWorker(s.dev, i, queue)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(w.closeDescriptors)
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		s.dev.workers = append(s.dev.workers, w)
		udp.lanes = append(udp.lanes, source{fd: fd})
	}
	return s.dev.workers
}

// BenchmarkTransmitTogether is what sharing costs: workers that send for one peer, who share its packet ids, counters and
// times, against workers that have nothing in common. The time is one worker's for one frame: a super-frame, or a
// lone packet.
func BenchmarkTransmitTogether(b *testing.B) {
	lone := append(make([]byte, tun.VnetHdrLen), udp4("10.8.0.1", "10.8.0.2", "lone")...)
	for name, frame := range map[string][]byte{"super-frames": superFrame(), "lone": lone} {
		for _, n := range []int{1, 2, 4} {
			for _, peer := range []string{"one peer", "a peer each"} {
				if n > runtime.NumCPU() {
					continue
				}
				b.Run(fmt.Sprintf("%s/workers=%d/%s", name, n, peer), func(b *testing.B) {
					var workers []*worker
					if peer == "one peer" {
						workers = newStage(b).newWorkers(b, n)
					} else {
						for range n {
							workers = append(workers, newStage(b).worker)
						}
					}
					b.ReportAllocs()
					b.ResetTimer()
					var running sync.WaitGroup
					for _, w := range workers {
						running.Go(func() {
							work := make([]byte, len(frame))
							for range b.N {
								copy(work, frame)
								w.tx.transmit(work)
								w.tx.flush()
							}
						})
					}
					running.Wait()
				})
			}
		}
	}
}

// BenchmarkTurn is what a turn costs that has nothing to do, its lock included.
func BenchmarkTurn(b *testing.B) {
	s := newStage(b)
	s.tunReady = false
	b.ReportAllocs()
	for b.Loop() {
		s.dev.turns.RLock()
		s.turn(nil)
		s.dev.turns.RUnlock()
	}
}
