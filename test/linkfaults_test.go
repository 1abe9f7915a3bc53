package test

import (
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/bench"
)

// TestTunnelInOtherHands: somebody sets the interfaces of a tunnel down and up, renames them, moves them to another network namespace and
// back, and deletes them, while data flows. OpenVPN, the peers and what flows must bear that as they do with the kernel's module, and the
// programs hold no more afterwards than they did before.
func TestTunnelInOtherHands(t *testing.T) {
	for _, tt := range []struct {
		name        string
		daemon, tcp bool
	}{
		{"UDP", false, false},
		{"TCP of a daemon", true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			testTunnelInOtherHands(t, tt.daemon, tt.tcp)
		})
	}
}

func testTunnelInOtherHands(t *testing.T, daemon, tcp bool) {
	h := &otherHands{tcp: tcp}
	if daemon {
		h.daemon = startDaemon(t, raceBinary)
		h.scenario = h.daemon.scenario(1)
	} else {
		h.scenario = newScenario(t, 1)
	}
	h.quiet()
	elsewhere, err := h.AddNode("elsewhere")
	if err != nil {
		t.Fatal(err)
	}
	options := bench.Options{TCP: tcp, Keepalive: [2]int{1, 60}, Management: true}
	h.server = &otherSide{node: h.Server, start: func(at bench.Placement) *bench.Tunnel {
		return h.startServer(at, bench.ServerOptions{Options: options})
	}}
	h.client = &otherSide{node: h.Clients[0], other: h.server, start: func(at bench.Placement) *bench.Tunnel {
		return h.startClient(at, 0, bench.ClientOptions{Options: options})
	}}
	h.server.other = h.client
	h.begin(h.server)
	h.begin(h.client)
	h.look()
	h.flow()
	h.requireFlow("at first")
	before := h.holdings()

	for _, side := range []*otherSide{h.client, h.server} {
		h.setDown(side)
		h.rename(side)
		h.move(side, elsewhere)
	}
	h.requireHoldings(before)
	for _, side := range []*otherSide{h.client, h.server} {
		if gone := h.removed(side); len(gone) != 0 {
			t.Errorf("%s: a peer was removed: %v", side.Name, gone)
		}
	}
	for _, side := range []*otherSide{h.client, h.server} {
		h.delete(side)
	}
	h.requireHoldings(before)
}

// otherHands is a server with one client, and what flows between them.
type otherHands struct {
	*scenario
	daemon         *daemonProcess // nil if there is none
	tcp            bool
	server, client *otherSide

	flowing sync.WaitGroup
	passed  atomic.Int64
}

// An otherSide is one side of the tunnel.
type otherSide struct {
	*bench.Tunnel
	node       *bench.Node
	other      *otherSide
	start      func(bench.Placement) *bench.Tunnel
	management *bench.Management
	name       string     // of the interface
	addr       netip.Addr // its own
	pprof      string     // where its program serves its profiles, if it has one of its own
}

// begin starts a side's OpenVPN.
func (h *otherHands) begin(side *otherSide) {
	h.Helper()
	at := h.exec(side.node)
	if h.daemon == nil {
		side.pprof = filepath.Join(h.Dir(), side.node.Name+".pprof")
		at.Prefix = slices.Insert(slices.Clone(at.Prefix), 2, "--pprof", side.pprof)
	}
	side.Tunnel = side.start(at)
	management, err := side.Management(h.Context())
	h.must(err)
	h.Cleanup(func() { management.Close() })
	side.management = management
}

// look reads what the sides' interfaces are called and their addresses, which a restart may change.
func (h *otherHands) look() {
	h.Helper()
	for _, side := range []*otherSide{h.server, h.client} {
		var err error
		if side.name, _, err = side.Device(); err != nil {
			h.Fatal(err)
		}
		side.addr, _ = h.addrs(side.Tunnel)
	}
}

// flow has short streams flow both ways, one after the other, until the test ends. That some can't is what the test is about.
func (h *otherHands) flow() {
	ctx, cancel := context.WithCancel(h.Context())
	h.Cleanup(func() { cancel(); h.flowing.Wait() })
	for _, from := range []*otherSide{h.server, h.client} {
		transfer := bench.Transfer{From: from.node, To: from.other.node, Addr: from.other.addr, Bytes: 256 << 10}
		h.flowing.Go(func() {
			for ctx.Err() == nil {
				bounded, cancel := context.WithTimeout(ctx, time.Second)
				err := transfer.Run(bounded)
				cancel()
				if errors.Is(err, bench.ErrCorrupt) {
					h.Error(err)
				}
				if err == nil {
					h.passed.Add(1)
				}
				select {
				case <-ctx.Done():
				case <-time.After(20 * time.Millisecond):
				}
			}
		})
	}
}

// requireFlow checks that pings are answered, and waits until streams pass that began after now.
func (h *otherHands) requireFlow(when string) {
	h.Helper()
	for _, side := range []*otherSide{h.server, h.client} {
		h.requirePing(side.node, side.other.addr)
	}
	passed := h.passed.Load()
	eventually(h.T, time.Minute, "streams to flow "+when, func() bool { return h.passed.Load() >= passed+2 })
}

// must is for a step of whoever else has a hand in it.
func (h *otherHands) must(err error) {
	h.Helper()
	if err != nil {
		h.Fatal(err)
	}
}

// received returns how many bytes OpenVPN says a side has received.
func (h *otherHands) received(side *otherSide) uint64 {
	h.Helper()
	if side == h.client {
		status, err := side.management.ClientStatus()
		h.must(err)
		return status.LinkRx
	}
	clients, _, err := side.management.ServerStatus()
	h.must(err)
	if len(clients) != 1 {
		h.Fatalf("the server has clients %+v, want one", clients)
	}
	return clients[0].LinkRx
}

// setDown: peers stay and are kept alive, and what is received is dropped.
func (h *otherHands) setDown(side *otherSide) {
	h.Helper()
	h.must(side.node.SetDown(side.name))
	if r := h.ping(bench.Ping{Node: side.other.node, To: side.addr, Count: 3, Interval: 10 * time.Millisecond, Wait: 100 * time.Millisecond}); r.Received != 0 {
		h.Errorf("%d pings were answered by an interface that is down", r.Received)
	}
	for _, receiver := range []*otherSide{side.other, side} {
		before := h.received(receiver)
		eventually(h.T, 30*time.Second, receiver.Name+" to receive keepalives while "+side.Name+"'s interface is down", func() bool {
			return h.received(receiver) > before
		})
	}
	h.must(side.node.SetUp(side.name))
	h.requireFlow("after " + side.Name + "'s interface was down")
}

// rename: OpenVPN goes by the index, so nothing changes for it.
func (h *otherHands) rename(side *otherSide) {
	h.Helper()
	h.must(side.node.RenameLink(side.name, "renamed0"))
	h.requireFlow("after " + side.Name + "'s interface was renamed")
	h.received(side)
	if h.daemon != nil {
		h.daemon.mustRun(side.node, "renamed0: ", "show")
		h.daemon.mustRun(side.node, "1 peer", "show", "renamed0")
	}
	h.must(side.node.RenameLink("renamed0", side.name))
}

// move: there the interface does what it did here, but has no address until somebody gives it one. OpenVPN does not find it any more, and
// must not be asked anything.
func (h *otherHands) move(side *otherSide, elsewhere *bench.Node) {
	h.Helper()
	there := netip.PrefixFrom(side.addr, 24)
	h.must(side.node.MoveLink(side.name, elsewhere))
	if h.daemon != nil {
		h.daemon.mustRun(elsewhere, "1 peer", "show", side.name)
		if out, err := h.daemon.run(side.node, "show", side.name); err == nil {
			h.Errorf("the interface is still shown where it was:\n%s", out)
		}
	}
	h.must(errors.Join(elsewhere.AddAddr(side.name, there), elsewhere.SetUp(side.name)))
	h.requirePing(elsewhere, side.other.addr)
	h.requirePing(side.other.node, side.addr)
	h.must(elsewhere.MoveLink(side.name, side.node))
	h.must(errors.Join(side.node.AddAddr(side.name, there), side.node.SetUp(side.name)))
	h.requireFlow("after " + side.Name + "'s interface was moved")
	h.received(side)
}

// delete: OpenVPN hears of the peers, which are torn down. Over UDP the server forgets its client, the client idles, and each works again
// when it is told to start over. Over TCP the connection has ended as well. A side that sees that before it hears of its peer, and a server
// that is to make a new one, finds the interface gone: that is fatal to OpenVPN.
func (h *otherHands) delete(side *otherSide) {
	h.Helper()
	before := len(h.removed(side))
	sideMark, clientMark := side.Log.Mark(), h.client.Log.Mark()
	h.must(side.node.DelLink(side.name))
	eventually(h.T, 20*time.Second, "the peer to be removed", func() bool { return len(h.removed(side)) > before })
	if last := h.removed(side)[before]; last["reason"] != "teardown" || last["iface"] != side.name {
		h.Errorf("%s: the peer was removed: %v", side.Name, last)
	}
	switch {
	case !h.tcp && side == h.server:
		eventually(h.T, 20*time.Second, "the server to forget its client", func() bool {
			clients, _, err := side.management.ServerStatus()
			return err == nil && len(clients) == 0
		})
		h.startOver(h.server)
		h.startOver(h.client)
	case !h.tcp:
		h.startOver(h.client)
	case h.endsBefore(side, sideMark, bench.Initialized):
		if code, err := side.Wait(); code != 1 || err != nil {
			h.Errorf("%s has ended with %d, %v", side.Name, code, err)
		}
		h.begin(side)
	}
	if h.tcp && side == h.server {
		h.waitUp(h.client.Tunnel, clientMark)
	}
	h.look()
	h.requireFlow("after " + side.Name + "'s interface was deleted")
	h.received(h.client)
	h.received(h.server) // it has one client
}

// startOver has a side's OpenVPN make everything anew.
func (h *otherHands) startOver(side *otherSide) {
	h.Helper()
	mark := side.Log.Mark()
	h.must(unix.Kill(h.openvpnPID(side.Tunnel), unix.SIGUSR1))
	h.waitUp(side.Tunnel, mark)
}

// endsBefore waits until a side's OpenVPN has ended or, after the mark, said something.
func (h *otherHands) endsBefore(side *otherSide, mark int, text string) bool {
	h.Helper()
	_, err := side.WaitLog(h.Context(), mark, text, upTimeout)
	if err != nil && !errors.Is(err, bench.ErrExited) {
		h.Fatal(err)
	}
	return err != nil
}

// removed returns what a side's program says of the peers that it has removed.
func (h *otherHands) removed(side *otherSide) (all []record) {
	if h.daemon == nil {
		return records(side.Tunnel, 0, "peer removed")
	}
	for _, line := range recordLine("peer removed").FindAll(h.daemon.text(), -1) {
		all = append(all, parseRecord(string(line)))
	}
	return all
}

// holdings asks the programs what they hold.
func (h *otherHands) holdings() (all []holding) {
	h.Helper()
	h.eachProgram(func(pid int, pprof string) { all = append(all, held(h.T, pid, pprof)) })
	return all
}

func (h *otherHands) requireHoldings(want []holding) {
	h.Helper()
	i := 0
	h.eachProgram(func(pid int, pprof string) { requireHeld(h.T, pid, pprof, want[i]); i++ })
}

func (h *otherHands) eachProgram(do func(pid int, pprof string)) {
	if h.daemon != nil {
		do(h.daemon.cmd.Process.Pid, h.daemon.pprof)
		return
	}
	for _, side := range []*otherSide{h.server, h.client} {
		do(side.PID(), side.pprof)
	}
}

// TestNamespaceIsDeleted: everybody who names a client's network namespace or holds it lets go of it while OpenVPN runs in it. The tunnel goes
// on, and when OpenVPN ends the namespace goes with it: nothing of ours, a daemon's above all, holds it.
func TestNamespaceIsDeleted(t *testing.T) {
	for _, tt := range []struct {
		name        string
		daemon, tcp bool
	}{
		{"UDP", false, false},
		{"TCP of a daemon", true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var s *scenario
			if tt.daemon {
				s = startDaemon(t, raceBinary).scenario(0)
			} else {
				s = newScenario(t, 0)
			}
			const outside = "left0"
			ends := [2]netip.Addr{netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("10.9.0.2")}
			left := bench.NewTopology()
			node, err := left.AddNode("left")
			if err == nil {
				err = left.Connect(
					bench.End{Node: s.Server, Name: outside, Addrs: []netip.Prefix{netip.PrefixFrom(ends[0], 24)}},
					bench.End{Node: node, Name: "eth0", Addrs: []netip.Prefix{netip.PrefixFrom(ends[1], 24)}})
			}
			if err != nil {
				t.Fatal(err)
			}
			options := bench.Options{TCP: tt.tcp}
			remote := netip.AddrPortFrom(ends[0], bench.DefaultPort)
			// First, as the lab's own thread stays where it started something last.
			client := s.launchClient(s.exec(node), 0, bench.ClientOptions{Options: options, Remote: remote})
			s.startServer(s.exec(s.Server), bench.ServerOptions{Options: options})
			s.waitUp(client, 0)
			there, _ := s.addrs(client)
			s.requirePing(s.Server, there)
			if err := left.Close(); err != nil {
				t.Fatal(err)
			}
			s.requirePing(s.Server, there)
			if err := client.Stop(); err != nil {
				t.Fatal(err)
			}
			if code, err := client.Wait(); code != 0 || err != nil {
				t.Errorf("the client ends with %d, %v", code, err)
			}
			eventually(t, 20*time.Second, "the namespace to go", func() bool {
				has, err := s.Server.HasLink(outside)
				return err == nil && !has
			})
		})
	}
}
