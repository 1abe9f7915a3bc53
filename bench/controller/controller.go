// Package controller is the smallest client of the ovpn family: it makes one device with a number of peers and
// fixed keys, and keeps it. It says what any client would to the kernel's module, so it works with the module, and
// with ovpn-go as the command of `ovpn-go exec`.
//
// Nothing is negotiated: whoever starts a controller at either end hands both the same Keys.
package controller

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"

	"ovpn-go/netlinksrv/client"
)

// Ready is the line that Run prints when the device and all its peers exist.
const Ready = "controller: ready"

// Spec describes a device and its peers.
type Spec struct {
	// Interface is the device's name.
	Interface string `json:"interface"`
	// Multi makes a device for any number of peers, each with an address of its own; otherwise there is one.
	Multi bool `json:"multi"`
	// Local is the address and port of the transport socket.
	Local  netip.AddrPort `json:"local"`
	Cipher client.Cipher  `json:"cipher"`
	Peers  []Peer         `json:"peers"`
}

// A Peer is one of a device's peers and its primary key.
type Peer struct {
	// ID is the peer's number at both ends.
	ID     uint32         `json:"id"`
	Remote netip.AddrPort `json:"remote"`
	// VPN is the peer's address inside the tunnel; only the peers of a multi-peer device have one.
	VPN     netip.Addr `json:"vpn"`
	Encrypt Direction  `json:"encrypt"`
	Decrypt Direction  `json:"decrypt"`
}

// A Direction is the key of packets one way.
type Direction struct {
	Key       []byte  `json:"key"`
	NonceTail [8]byte `json:"nonce_tail"`
}

// Load reads a Spec as JSON.
func Load(path string) (Spec, error) {
	var s Spec
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	if err != nil {
		return Spec{}, fmt.Errorf("read specification: %w", err)
	}
	return s, nil
}

// Run makes the device in the caller's network namespace and prints Ready. It keeps the device until done is closed,
// and then deletes it.
func Run(s Spec, out io.Writer, done <-chan struct{}) (err error) {
	socket, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(s.Local))
	if err != nil {
		return err
	}
	defer socket.Close()
	conn, err := client.Dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	mode := client.P2P
	if s.Multi {
		mode = client.MP
	}
	if err := conn.NewLink(client.LinkConfig{Name: s.Interface, Mode: mode}); err != nil {
		return fmt.Errorf("create %s: %w", s.Interface, err)
	}
	defer func() { err = errors.Join(err, conn.DeleteLink(s.Interface)) }()
	link, err := conn.Link(s.Interface)
	if err != nil {
		return err
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) { inner = addPeers(conn, s, link.Index, int(fd)) })
	if err := errors.Join(err, inner); err != nil {
		return err
	}
	fmt.Fprintln(out, Ready)
	<-done
	return nil
}

func addPeers(conn *client.Conn, s Spec, ifindex, socket int) error {
	for _, p := range s.Peers {
		err := conn.NewPeer(ifindex, client.PeerConfig{ID: p.ID, Socket: socket, Remote: p.Remote, VPN4: p.VPN})
		if err == nil {
			err = conn.NewKey(ifindex, p.ID, client.KeyConfig{Slot: client.Primary, Cipher: s.Cipher,
				Encrypt: client.Direction(p.Encrypt), Decrypt: client.Direction(p.Decrypt)})
		}
		if err != nil {
			return fmt.Errorf("peer %d: %w", p.ID, err)
		}
	}
	return nil
}
