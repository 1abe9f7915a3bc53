package datapath

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"maps"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	diff "github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ovpn-go/crypto"
	"ovpn-go/peers"
	"ovpn-go/tun/tuntest"
)

// Between two devices the test itself is the path: it loses, doubles, delays, alters and cuts datagrams, and sends copies from an address of its
// own. What arrives is what the slow model says, and only that; nobody moves; afterwards all is as before.
func TestLossyPath(t *testing.T) {
	needRoot(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	descriptorsBefore, goroutinesBefore := descriptors(t), runtime.NumGoroutine()
	t.Run("path", func(t *testing.T) {
		p := newLossyPath(t, random)
		const burst = 32
		for range 500 {
			p.ways[random.IntN(2)].pass(t, 1+random.IntN(burst))
		}
		for _, w := range p.ways {
			w.release(t, len(w.held))
			if w.late == 0 || w.tooLate == 0 || w.model.drops["authentication"] == 0 || w.model.drops["replay"] == 0 {
				t.Errorf("%d packets came late, %d too late, dropped were %v: not all that is to be tried", w.late, w.tooLate, w.model.drops)
			}
			w.faults = pathFaults{}
			passed := w.peer().passed
			w.pass(t, burst)
			if got := w.peer().passed - passed; got != burst {
				t.Errorf("%d of %d packets passed when nothing befell them any more", got, burst)
			}
		}
		// The stranger would have been believed, had it had anything to show.
		fresh := [2][]byte{p.ways[0].emit(t, 1)[0], p.ways[1].emit(t, 1)[0]}
		for i, w := range p.ways {
			w.to.noEvent(t)
			w.send(t, pathDatagram{data: fresh[i], from: p.stranger})
			if ev := w.to.event(t); ev.Kind != PeerFloated || ev.Remote != p.stranger.at {
				t.Errorf("event %+v, want the peer to float", ev)
			}
		}
	})
	eventually(t, "nothing is left", func() bool {
		return descriptors(t) <= descriptorsBefore && runtime.NumGoroutine() <= goroutinesBefore
	})
}

// pathFaults are the parts of the datagrams, from 0 to 1, that something happens to.
type pathFaults struct{ lose, double, delay, alter, cut, replay float64 }

// pathDelay is for how many datagrams one is held back at most: a packet may be that much too late for the replay window.
const pathDelay = 2 * crypto.ReplayWindowSize

// A pathSocket is one of the path's own.
type pathSocket struct {
	fd int
	at netip.AddrPort
}

type lossyPath struct {
	ways     [2]*lossyWay
	stranger pathSocket
}

// A lossyWay is one direction of the path. What from sends comes to the socket here, and leaves for to by the socket there.
type lossyWay struct {
	from, to    *end
	here, there pathSocket
	stranger    pathSocket
	source      string // addresses inside the tunnel
	destination string
	model       *slowReceiver
	random      *rand.Rand
	faults      pathFaults

	passed        int            // datagrams that entered the path
	held          []pathDatagram // by when they leave it
	past          [][]byte       // those that left it as they were
	late, tooLate int            // of those, what others had overtaken: within the replay window, and by more
}

type pathDatagram struct {
	data  []byte
	from  pathSocket
	due   int  // after so many have entered
	whole bool // and as it was
}

func newLossyPath(t *testing.T, random *rand.Rand) *lossyPath {
	t.Helper()
	stayOnOneProcessor(t)
	var sockets [3]pathSocket
	for i := range sockets {
		fd, at := loopbackUDP(t)
		sockets[i] = pathSocket{fd, at}
		patience := unix.Timeval{Sec: 10}
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience); err != nil {
			t.Fatal(err)
		}
	}
	all := newSockets(t)
	var ends [2]*end
	var keys [2]crypto.KeyConfig
	keys[0], keys[1] = keyPair(crypto.AESGCM, 0)
	for i := range ends {
		ends[i] = newEnd(t, peers.P2P, all, "127.0.0.1:0")
		ends[i].addPeer(t, PeerConfig{ID: uint32(1 + i), TxID: uint32(2 - i), Remote: sockets[i].at}, keys[i])
	}
	addrs := [2]string{"10.8.0.1", "10.8.0.2"}
	p := &lossyPath{stranger: sockets[2]}
	for i := range p.ways {
		o := 1 - i
		part := func() float64 { return 0.01 + 0.1*random.Float64() }
		p.ways[i] = &lossyWay{
			from: ends[i], to: ends[o], here: sockets[i], there: sockets[o], stranger: sockets[2],
			source: addrs[i], destination: addrs[o], random: random,
			faults: pathFaults{lose: part(), double: part(), delay: part(), alter: part(), cut: part(), replay: part()},
			model: &slowReceiver{drops: map[string]uint64{}, peers: []*slowPeer{{
				id: uint32(1 + o), from: sockets[o].at, addr4: netip.MustParseAddr(addrs[i]), keys: map[byte]*slowKey{0: newSlowKey(t, keys[o])},
			}}},
		}
	}
	return p
}

// stayOnOneProcessor makes the loopback interface keep the order of what the test sends. The test's thread ends with it.
func stayOnOneProcessor(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	var allowed, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		t.Fatal(err)
	}
	cpu := 0
	for !allowed.IsSet(cpu) {
		cpu++
	}
	one.Set(cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		t.Fatal(err)
	}
}

func (w *lossyWay) peer() *slowPeer { return w.model.peers[0] }

// emit has the device send packets, and takes them.
func (w *lossyWay) emit(t *testing.T, n int) (datagrams [][]byte) {
	t.Helper()
	for range n {
		payload := make([]byte, w.random.IntN(1300))
		for i := range payload {
			payload[i] = byte(w.random.Uint32())
		}
		w.from.send(t, tuntest.UDP4(w.source+":1000", w.destination+":2000", payload))
	}
	buf := make([]byte, 2000)
	for range n {
		size, err := unix.Read(w.here.fd, buf)
		for err == unix.EINTR { // the scheduler's signal: a read with a time limit is not restarted
			size, err = unix.Read(w.here.fd, buf)
		}
		if err != nil {
			t.Fatalf("the device sent %d of %d packets: %v", len(datagrams), n, err)
		}
		datagrams = append(datagrams, bytes.Clone(buf[:size]))
	}
	return datagrams
}

// pass has packets enter the path, and all that are due leave it.
func (w *lossyWay) pass(t *testing.T, n int) {
	t.Helper()
	happens := func(part float64) bool { return w.random.Float64() < part }
	anyone := func() pathSocket { return []pathSocket{w.there, w.stranger}[w.random.IntN(2)] }
	delay := func() int {
		if happens(w.faults.delay) {
			return w.random.IntN([]int{20, pathDelay}[w.random.IntN(2)])
		}
		return 0
	}
	for _, data := range w.emit(t, n) {
		w.passed++
		if happens(w.faults.alter) {
			altered := bytes.Clone(data)
			altered[w.random.IntN(len(data))] ^= 1 << w.random.IntN(8)
			w.held = append(w.held, pathDatagram{data: altered, from: anyone(), due: w.passed})
		}
		if happens(w.faults.cut) {
			w.held = append(w.held, pathDatagram{data: data[:1+w.random.IntN(len(data)-1)], from: anyone(), due: w.passed})
		}
		if happens(w.faults.replay) && len(w.past) > 0 {
			w.held = append(w.held, pathDatagram{data: w.past[w.random.IntN(len(w.past))], from: anyone(), due: w.passed})
		}
		if happens(w.faults.double) {
			w.held = append(w.held, pathDatagram{data, w.there, w.passed + delay(), true})
		}
		if !happens(w.faults.lose) {
			w.held = append(w.held, pathDatagram{data, w.there, w.passed + delay(), true})
		}
	}
	slices.SortStableFunc(w.held, func(a, b pathDatagram) int { return cmp.Compare(a.due, b.due) })
	due := slices.IndexFunc(w.held, func(d pathDatagram) bool { return d.due > w.passed })
	if due < 0 {
		due = len(w.held)
	}
	w.release(t, due)
}

// release has the first that are held leave the path, no more at a time than a socket has room for.
func (w *lossyWay) release(t *testing.T, n int) {
	t.Helper()
	for chunk := range slices.Chunk(w.held[:n], 32) {
		w.send(t, chunk...)
	}
	w.held = slices.Delete(w.held, 0, n)
}

// send sends datagrams on, and waits until all that the model says of them is so.
func (w *lossyWay) send(t *testing.T, datagrams ...pathDatagram) {
	t.Helper()
	var control [][]byte
	for _, d := range datagrams {
		if d.whole {
			w.note(d.data)
		}
		before := w.model.drops[DropClient.String()]
		w.model.datagram(d.data, d.from.at)
		if w.model.drops[DropClient.String()] != before {
			control = append(control, d.data)
			delete(w.model.drops, DropClient.String()) // there is a client
		}
		if err := unix.Sendto(d.from.fd, d.data, 0, sockaddr(unix.AF_INET, w.to.addr())); err != nil {
			t.Fatal(err)
		}
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(100 * time.Microsecond) {
		s := w.to.Stats()
		if s.RxPackets == uint64(w.peer().passed) && maps.Equal(s.Drops, w.model.drops) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d packets are delivered, want %d; drops (-model +device):\n%s", s.RxPackets, w.peer().passed, diff.Diff(w.model.drops, s.Drops))
		}
	}
	for len(w.model.delivered) > 0 {
		w.model.took(t, tuntest.Read(t, w.to.link.stacks[0]))
	}
	for _, want := range control {
		got := make([]byte, 2000)
		w.to.client.SetReadDeadline(time.Now().Add(10 * time.Second))
		n, err := w.to.client.Read(got)
		if err != nil || !bytes.Equal(got[:n], want) {
			t.Fatalf("the client got %x, want %x: %v", got[:n], want, err)
		}
	}
	info, err := w.to.Peer(w.peer().id)
	if err != nil {
		t.Fatal(err)
	}
	if info.Stats.LinkRxPackets != uint64(w.peer().received) || info.Stats.VPNRxPackets != uint64(w.peer().passed) {
		t.Fatalf("the peer has %d packets received and %d delivered, want %d and %d",
			info.Stats.LinkRxPackets, info.Stats.VPNRxPackets, w.peer().received, w.peer().passed)
	}
}

// note remembers a datagram that leaves the path as it was, and counts it if others have overtaken it.
func (w *lossyWay) note(data []byte) {
	w.past = append(w.past, data)
	key, id := w.peer().keys[0], binary.BigEndian.Uint32(data[4:])
	switch {
	case id > key.highest || key.seen[id]:
	case key.highest-id >= crypto.ReplayWindowSize:
		w.tooLate++
	default:
		w.late++
	}
}
