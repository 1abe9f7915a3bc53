package controller

import (
	"crypto/rand"
	"fmt"
	"net/netip"

	"ovpn-go/netlinksrv/client"
)

// Pair describes two devices that are each other's peers.
type Pair struct {
	Interface string
	Cipher    string // as OpenVPN names it
	// Sides are the addresses and ports of the transport.
	Sides [2]netip.AddrPort
	// Peers is how many sessions there are between the two. With more than one, or with networks given, both devices are
	// multi-peer devices, and the peer i has the address i of the other side's network.
	Peers int
	// Networks are the networks of the two sides' addresses inside the tunnel.
	Networks [2]netip.Prefix
}

// keyLengths are in bytes.
var keyLengths = map[string]struct {
	number client.Cipher
	length int
}{
	"AES-256-GCM":       {client.AESGCM, 32},
	"AES-128-GCM":       {client.AESGCM, 16},
	"CHACHA20-POLY1305": {client.ChaCha20Poly1305, 32},
}

// Specs makes random keys and returns what the controllers of the two sides need.
func (p Pair) Specs() (specs [2]Spec, err error) {
	cipher, ok := keyLengths[p.Cipher]
	if !ok {
		return specs, fmt.Errorf("unknown cipher %q", p.Cipher)
	}
	multi := p.Networks[0].IsValid()
	for side := range specs {
		specs[side] = Spec{Interface: p.Interface, Multi: multi, Local: p.Sides[side], Cipher: cipher.number}
	}
	vpn := [2]netip.Addr{p.Networks[0].Addr(), p.Networks[1].Addr()}
	for id := range uint32(p.Peers) {
		there, back := newDirection(cipher.length), newDirection(cipher.length)
		specs[0].Peers = append(specs[0].Peers, Peer{ID: id, Remote: p.Sides[1], VPN: vpn[1], Encrypt: there, Decrypt: back})
		specs[1].Peers = append(specs[1].Peers, Peer{ID: id, Remote: p.Sides[0], VPN: vpn[0], Encrypt: back, Decrypt: there})
		if multi {
			vpn[0], vpn[1] = vpn[0].Next(), vpn[1].Next()
		}
	}
	return specs, nil
}

func newDirection(length int) Direction {
	d := Direction{Key: make([]byte, length)}
	rand.Read(d.Key) // never fails
	rand.Read(d.NonceTail[:])
	return d
}
