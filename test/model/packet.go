package model

import "fmt"

// transport is what arrives on the client's sockets, and what it sends on them.
func (m *Model) transport(o Op) {
	s, kind := &m.sockets[o.Socket], Sockets[o.Socket-1].Kind
	if !s.open || s.spent || kind == NotASocket || kind == UDP4 && V6(o.Remote) || kind != TCP && o.Remote == 0 {
		m.skip()
		return
	}
	if s.ended() && (o.Do != ControlOut || s.reset) {
		m.skip()
		return
	}
	device, user := m.user(o.Socket)
	from, to := Remote(o.Remote), Client(o.Socket)
	if kind == TCP {
		from = FarEnd(o.Socket)
	}
	switch o.Do {
	case ControlIn:
		m.see(to, "control packet of %d bytes", controlPacketBytes)
	case ControlOut:
		m.see(from, "control packet of %d bytes", controlPacketBytes)
	case BadRecord:
		if kind != TCP || user == nil {
			m.skip()
			return
		}
		m.remove(device, user, "transport-error")
	case Finish, Reset:
		// The peer stays until something is sent.
		if kind != TCP {
			m.skip()
			return
		}
		s.finished, s.reset = o.Do == Finish, o.Do == Reset
		m.see(to, Ended)
	case Receive:
		switch {
		case user == nil && kind == TCP:
			m.skip() // a stream like any
		case user == nil:
			m.see(to, "data packet of %d bytes", o.length()) // a socket like any
		case kind == TCP:
			m.receive(o, device, user)
		default:
			m.receive(o, device, m.Devices[device].named(o))
		}
	}
}

// named returns the peer that a datagram is for: the one with its peer id or, if it names none, the last one that got
// the transport address that it comes from.
func (d *Device) named(o Op) *Peer {
	if o.Peer != UndefinedPeer {
		return d.peers[o.Peer]
	}
	var found *Peer
	for _, p := range d.peers {
		if p.Remote == o.Remote && (found == nil || p.boundAt > found.boundAt) {
			found = p
		}
	}
	return found
}

// plaintext is how many bytes a packet contains.
func (o *Op) plaintext() int {
	switch o.Inner {
	case IPv6:
		return header6 + o.Size
	case Keepalive:
		return keepaliveLength
	case Nonsense:
		return nonsenseLength
	case Empty:
		return 0
	}
	return header4 + o.Size
}

func (o *Op) length() int {
	if o.Inner == Short {
		return ShortLength
	}
	return overhead + o.plaintext()
}

func (m *Model) receive(o Op, device int, p *Peer) {
	if p == nil {
		return
	}
	if p.Remote == 0 && o.Remote != 0 {
		m.skip() // a datagram that names a peer of TCP
		return
	}
	d := m.Devices[device]
	p.LinkRx.add(o.length())
	k := p.key(0)
	if k == nil || k.id != o.KeyID {
		k = p.key(1)
	}
	if k == nil || k.id != o.KeyID || k.key != o.Key || o.Inner == Forged || o.Inner == Short || !k.fresh(o.Packet) {
		return
	}
	if p.Remote != 0 {
		m.float(o, device, p)
	}
	if o.Inner != IPv4 && o.Inner != IPv6 {
		return
	}
	if d.MP && d.owner(o.Source) != p || !d.Up {
		return
	}
	p.VPNRx.add(o.plaintext())
	to := Nobody4
	if o.Inner == IPv6 {
		to = Nobody6
	}
	m.see(Tap(device), "%s", Packet(o.Source, to, o.plaintext()))
}

// Packet describes a packet inside the tunnel, of so many bytes.
func Packet(from, to string, length int) string {
	return fmt.Sprintf("%s > %s, %d bytes", from, to, length)
}

// Sealed describes a data packet: what it says of itself, the key that opens it and what it contains.
func Sealed(keyID, peer, packet uint32, k Key, inner string) string {
	return fmt.Sprintf("data packet %d to peer %d with key %d %v: %s", packet, peer, keyID, k, inner)
}

// float follows a peer to where an authentic packet came from, and keeps the address of ours that it was sent to.
func (m *Model) float(o Op, device int, p *Peer) {
	if o.Remote != p.Remote {
		m.see(Notices, "peer %d of device %d is now at %s", p.ID, device, Remotes[o.Remote-1])
		m.bind(p, o.Remote, ours(o.Remote))
	}
	p.Local = ours(o.Remote)
}

func (m *Model) transmit(o Op, d *Device) {
	if d == nil {
		m.skip()
		return
	}
	from, to, length := Inside4, o.VPN4, header4+o.Size
	if o.VPN6 != "" {
		from, to, length = Inside6, o.VPN6, header6+o.Size
	}
	if !d.Up || length > d.MTU {
		return // the packet is refused before the device sees it
	}
	var p *Peer
	for _, p = range d.peers { // P2P has at most one
	}
	if d.MP {
		p = d.owner(to)
	}
	if p == nil {
		// When a device gets to see that nobody has the address is its own business: somebody may have it by then.
		if !d.MP || to != Nobody4 && to != Nobody6 {
			m.skip()
		}
		return
	}
	p.VPNTx.add(length)
	if p.key(0) != nil && m.sockets[p.Socket].reset {
		m.remove(o.Device, p, "transport-error")
		return
	}
	m.send(p, length, Packet(from, to, length))
}

// send seals a packet, if there is a key.
func (m *Model) send(p *Peer, length int, inner string) {
	k := p.key(0)
	if k == nil {
		return
	}
	k.sent++
	p.LinkTx.add(overhead + length)
	to := FarEnd(p.Socket)
	if p.Remote != 0 {
		to = Remote(p.Remote)
	}
	m.see(to, "%s", Sealed(k.id, p.TxID, k.sent, k.key, inner))
}

// KeepaliveText describes what a keepalive contains.
const KeepaliveText = "keepalive"

func (m *Model) ping(o Op, d *Device) {
	p := d.Peer(o.Peer)
	if p == nil || p.key(0) == nil || m.sockets[p.Socket].reset {
		m.skip()
		return
	}
	m.reply(ack)
	m.send(p, keepaliveLength, KeepaliveText)
	p.Keepalive = [2]uint32{}
	m.reply(ack)
}

// State describes the peers of a device and their keys.
func (m *Model) State(device int) (lines []string) {
	d := m.Devices[device]
	if d == nil {
		return nil
	}
	for _, id := range d.PeerIDs() {
		p := d.peers[id]
		where := "over TCP"
		if p.Remote != 0 {
			where = fmt.Sprintf("at %s, to us at %s", Remotes[p.Remote-1], p.Local)
		}
		lines = append(lines, PeerText(p, where))
	}
	for _, id := range d.PeerIDs() {
		for n := range uint32(2) {
			lines = append(lines, d.peers[id].key(n).String())
		}
	}
	return lines
}

// PeerText describes a peer that is somewhere.
func PeerText(p *Peer, where string) string {
	return fmt.Sprintf("peer %d (sends as %d) %s, inside %s %s, keepalive %v, vpn in %v out %v, link in %v out %v",
		p.ID, p.TxID, where, p.VPN4, p.VPN6, p.Keepalive, p.VPNRx, p.VPNTx, p.LinkRx, p.LinkTx)
}
