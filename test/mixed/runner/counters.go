package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"ovpn-go/bench"
	ovpn "ovpn-go/netlinksrv/client"
)

// counters are a peer's, inside the tunnel and outside.
type counters struct{ vpn, link ovpn.Traffic }

// readings are both ends' counters of their one peer, and what their interfaces dropped instead of sending it.
type readings struct {
	counters [2]counters
	dropped  [2]uint64
}

func (p *pair) read() (r readings, err error) {
	for end, node := range p.nodes {
		info, err := p.peer(end)
		if err != nil {
			return r, err
		}
		link, err := readInterface(node, p.devices[end])
		if err != nil {
			return r, err
		}
		r.counters[end], r.dropped[end] = counters{info.VPN, info.Link}, link.sendDropped
	}
	return r, nil
}

// poll is the time between two looks at something that takes moments.
const poll = 50 * time.Millisecond

// settled returns both ends' counters when they have stopped moving. What the stack sends into a new interface does not
// always have a key yet, or a source that the other end lets pass.
func (p *pair) settled() (r readings, err error) {
	deadline := time.Now().Add(5 * time.Second)
	for {
		before := r
		if r, err = p.read(); err != nil {
			return r, err
		}
		if r == before || time.Now().After(deadline) {
			return r, nil
		}
		time.Sleep(poll)
	}
}

func (c counters) minus(o counters) counters {
	return counters{difference(c.vpn, o.vpn), difference(c.link, o.link)}
}

func difference(a, b ovpn.Traffic) ovpn.Traffic {
	return ovpn.Traffic{
		RxBytes: a.RxBytes - b.RxBytes, RxPackets: a.RxPackets - b.RxPackets,
		TxBytes: a.TxBytes - b.TxBytes, TxPackets: a.TxPackets - b.TxPackets,
	}
}

// compareCounters wants what one end says it has sent since then to be what the other says it has received, as soon as
// nothing is under way any more. What the module could not write to a TCP connection that was full it counts as sent, and
// as dropped by the interface.
func (g *progress) compareCounters(p *pair, since readings) error {
	deadline := time.Now().Add(5 * time.Second)
	for {
		r, err := p.read()
		if err != nil {
			return err
		}
		s, c := r.counters[server].minus(since.counters[server]), r.counters[client].minus(since.counters[client])
		dropped := [2]uint64{r.dropped[server] - since.dropped[server], r.dropped[client] - since.dropped[client]}
		if arrived(s, c, dropped[server]) && arrived(c, s, dropped[client]) {
			g.note("to the client %d packets, %d bytes; to the server %d packets, %d bytes; dropped %v",
				s.vpn.TxPackets, s.vpn.TxBytes, c.vpn.TxPackets, c.vpn.TxBytes, dropped)
			if s.vpn.TxPackets == 0 || c.vpn.TxPackets == 0 {
				return errors.New("nothing was counted")
			}
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the server counts %+v, the client %+v; dropped %v", s, c, dropped)
		}
		time.Sleep(poll)
	}
}

// arrived reports whether one end counts as received what the other has sent, but for so many packets.
func arrived(from, to counters, dropped uint64) bool {
	if dropped == 0 {
		return from.vpn.TxPackets == to.vpn.RxPackets && from.vpn.TxBytes == to.vpn.RxBytes &&
			from.link.TxPackets == to.link.RxPackets && from.link.TxBytes == to.link.RxBytes
	}
	// One that was dropped may have been a keepalive.
	return from.link.TxPackets-to.link.RxPackets == dropped && from.vpn.TxPackets-to.vpn.RxPackets <= dropped
}

// joined sends a stream each way and compares what the stack gives to our interface, and gets from it, with the packets
// in the tunnel.
func (g *progress) joined(ctx context.Context, p *pair) error {
	us := server
	if !p.ours[server] {
		us = client
	}
	const bytes = 3 << 20
	for from := range p.nodes {
		before, err := readInterface(p.nodes[us], device)
		if err != nil {
			return err
		}
		stream := bench.Transfer{From: p.nodes[from], To: p.nodes[1-from], Addr: inner4[1-from].Addr(), Bytes: bytes}
		if err := stream.Run(ctx); err != nil {
			return err
		}
		after, err := readInterface(p.nodes[us], device)
		if err != nil {
			return err
		}
		packets, frames := uint64(bytes)/1364, after.sent-before.sent
		if from != us {
			frames = after.received - before.received
		}
		g.note("from %s: %d packets in %d frames", p.side(from), packets, frames)
		if frames*3 > packets {
			return errors.New("too many frames")
		}
	}
	return nil
}

// interfaceCounts are packets, by an interface's own count.
type interfaceCounts struct{ received, sent, sendDropped uint64 }

func readInterface(node *bench.Node, link string) (counts interfaceCounts, err error) {
	err = node.Do(func() error {
		file, err := os.Open("/proc/thread-self/net/dev")
		if err != nil {
			return err
		}
		defer file.Close()
		for lines := bufio.NewScanner(file); lines.Scan(); {
			name, rest, _ := strings.Cut(strings.TrimSpace(lines.Text()), ":")
			if name != link {
				continue
			}
			// Eight counters of receiving, and then as many of sending: bytes, packets, errors, dropped.
			f := strings.Fields(rest)
			for i, count := range map[int]*uint64{1: &counts.received, 9: &counts.sent, 11: &counts.sendDropped} {
				if i >= len(f) {
					return fmt.Errorf("interface %s: counters %q", link, rest)
				}
				if *count, err = strconv.ParseUint(f[i], 10, 64); err != nil {
					return err
				}
			}
			return nil
		}
		return fmt.Errorf("no interface %s", link)
	})
	return counts, err
}
