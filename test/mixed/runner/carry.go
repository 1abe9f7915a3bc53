package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	ovpn "ovpn-go/netlinksrv/client"
)

// cipher is a cipher as KEY_NEW is told it.
type cipher struct {
	name    string
	number  ovpn.Cipher
	keySize int
}

var (
	aes128  = cipher{"AES-128-GCM", ovpn.AESGCM, 16}
	aes192  = cipher{"AES-192-GCM", ovpn.AESGCM, 24}
	aes256  = cipher{"AES-256-GCM", ovpn.AESGCM, 32}
	chacha  = cipher{"ChaCha20-Poly1305", ovpn.ChaCha20Poly1305, 32}
	ciphers = []cipher{aes128, aes192, aes256, chacha}
)

var (
	udp4       = transport{name: "UDP over IPv4"}
	udp6       = transport{name: "UDP over IPv6", outer6: true}
	udpDual    = transport{name: "UDP over IPv4 from sockets of both families", dual: true}
	tcp4       = transport{name: "TCP over IPv4", tcp: true}
	tcp6       = transport{name: "TCP over IPv6", tcp: true, outer6: true}
	transports = []transport{udp4, udp6, udpDual, tcp4, tcp6}
)

// carryGroups hold the two ends to carrying what the stack gives them: every cipher over UDP, and every transport.
func carryGroups() []group {
	var all []group
	for _, who := range pairings {
		for _, over := range transports {
			with := []cipher{aes256}
			if over == udp4 {
				with = ciphers
			}
			g := group{name: over.name + "/" + who.name, run: func(ctx context.Context, g *progress) error {
				p, err := newPair(ctx, g.program, who)
				if err != nil {
					return err
				}
				for _, c := range with {
					if err = g.carry(ctx, p, over, c); err != nil {
						err = fmt.Errorf("%s: %w\n%s", c.name, err, p.logs())
						break
					}
				}
				return errors.Join(err, p.close())
			}}
			for _, c := range with {
				for _, claim := range carried(over, c) {
					g.claims = append(g.claims, c.name+"/"+claim)
				}
			}
			all = append(all, g)
		}
	}
	return all
}

const (
	pingsAreAnswered = "pings of IPv4 and IPv6 are answered"
	datagramsReturn  = "datagrams of all sizes arrive"
	streamsArrive    = "streams arrive both ways"
	streamsAreJoined = "a stream passes our interface in frames of many packets"
	countersAgree    = "the counters of both ends agree"
)

// carried are the claims about a transport with a cipher.
func carried(over transport, with cipher) []string {
	claims := []string{pingsAreAnswered, datagramsReturn, streamsArrive}
	if thorough(over, with) {
		claims = append(claims, streamsAreJoined)
	}
	return append(claims, countersAgree)
}

// thorough reports whether more of everything is sent, which takes its time on an emulated machine.
func thorough(over transport, with cipher) bool { return over == udp4 && with == aes256 }

func (g *progress) carry(ctx context.Context, p *pair, over transport, with cipher) error {
	if err := p.establish(ctx, over, with); err != nil {
		return err
	}
	before, err := p.settled()
	if err != nil {
		return err
	}
	to := [2][2]netip.Addr{}
	for i := range to {
		to[i] = [2]netip.Addr{inner4[i].Addr(), inner6[i].Addr()}
	}
	g.claim(with.name+"/"+pingsAreAnswered, func() error { return pings(ctx, p.nodes[client], to[server]) })
	g.claim(with.name+"/"+datagramsReturn, func() error {
		for end := range p.nodes {
			for _, addr := range to[end] {
				every := 29
				if thorough(over, with) && addr == inner4[server].Addr() {
					every = 1
				}
				if err := datagrams(ctx, p.nodes[1-end], p.nodes[end], addr, datagramSizes(every)); err != nil {
					return err
				}
			}
		}
		return nil
	})
	bytes := int64(256 << 10)
	if with == aes256 {
		bytes = 1 << 20
	}
	g.claim(with.name+"/"+streamsArrive, func() error { return streams(ctx, p.nodes, to, bytes) })
	if thorough(over, with) {
		g.claim(with.name+"/"+streamsAreJoined, func() error { return g.joined(ctx, p) })
	}
	g.claim(with.name+"/"+countersAgree, func() error { return g.compareCounters(p, before) })
	return p.release()
}

// datagramSizes are those of UDP payloads: from none to what fits in a packet in steps, and a few that don't.
func datagramSizes(step int) []int {
	const largest = 1416 - 28 // in a packet of IPv4 on the device
	var sizes []int
	for size := 0; size < largest; size += step {
		sizes = append(sizes, size)
	}
	return append(sizes, largest, largest+1, 3000, 8000)
}
