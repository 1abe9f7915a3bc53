package model

import "fmt"

// Apply carries out an operation and returns what follows from it.
func (m *Model) Apply(o Op) Outcome {
	m.out = Outcome{Seen: map[string][]string{}}
	d := m.Devices[o.Device]
	switch o.Do {
	case LinkNew, LinkDel, LinkUp, LinkDown, LinkRename, LinkMove, LinkMTU:
		m.link(o, d)
	case SocketOpen, SocketClose:
		m.openOrClose(o)
	case PeerNew, PeerSet, PeerGet, PeerDel, KeyNew, KeyGet, KeySwap, KeyDel, Expire:
		m.request(o, d)
	case Receive, ControlIn, ControlOut, BadRecord, Finish, Reset:
		m.transport(o)
	case Transmit:
		m.transmit(o, d)
	case Ping:
		m.ping(o, d)
	default:
		panic("no such action: " + string(o.Do))
	}
	return m.out
}

func (m *Model) skip() { m.out.Skipped = true }

func (m *Model) link(o Op, d *Device) {
	if o.Do == LinkNew {
		switch {
		case d == nil:
			m.Devices[o.Device] = &Device{MP: o.MP, MTU: firstMTU, peers: map[uint32]*Peer{}}
			m.reply(ack)
		case d.Elsewhere || d.Renamed:
			m.skip() // the name is free
		default:
			m.reply("EEXIST")
		}
		return
	}
	if d == nil {
		m.skip()
		return
	}
	switch o.Do {
	case LinkDel:
		for _, id := range d.PeerIDs() {
			m.remove(o.Device, d.peers[id], "teardown")
		}
		m.Devices[o.Device] = nil
		m.reply(ack)
	case LinkUp, LinkDown:
		d.Up = o.Do == LinkUp
	case LinkRename:
		d.Renamed = !d.Renamed
		m.reply(ack)
	case LinkMove:
		d.Elsewhere, d.Up = !d.Elsewhere, false
		m.reply(ack)
	case LinkMTU:
		if o.Size < smallestMTU || o.Size > largestMTU {
			m.reply("EINVAL")
			return
		}
		d.MTU = o.Size
		m.reply(ack)
	}
}

func (m *Model) openOrClose(o Op) {
	s := &m.sockets[o.Socket]
	kind := Sockets[o.Socket-1].Kind
	switch {
	case o.Do == SocketOpen && !s.open && (kind != TCP || !s.used):
		*s = socket{open: true, used: true}
	case o.Do == SocketClose && s.open:
		s.open = false
		if device, _ := m.user(o.Socket); device >= 0 {
			d := m.Devices[device]
			for _, id := range d.PeerIDs() {
				if p := d.peers[id]; p.Socket == o.Socket {
					m.remove(device, p, "transport-disconnect")
				}
			}
		}
		if kind == TCP && !s.reset {
			m.see(FarEnd(o.Socket), Ended)
		}
	default:
		m.skip()
	}
}

func (m *Model) request(o Op, d *Device) {
	if o.Do == PeerNew && o.Socket != 0 {
		s := m.sockets[o.Socket]
		// The module lets a socket of IPv4 have an IPv6 remote, and crashes.
		if !s.open || s.spent || Sockets[o.Socket-1].Kind == UDP4 && V6(o.Remote) {
			m.skip()
			return
		}
	}
	p := d.Peer(o.Peer)
	switch {
	case (o.Do == PeerSet || o.Do == Expire) && p != nil && p.Remote != 0 && V6(o.Remote) && Sockets[p.Socket-1].Kind == UDP4:
		m.skip() // likewise
	case d == nil:
		m.reply("ENODEV")
	case o.Do == PeerNew:
		m.peerNew(o, d)
	case o.Do == PeerSet && o.wrong(d):
		m.reply("EINVAL")
	case o.Do == KeyNew && o.Key.Cipher == 0:
		m.reply("EINVAL")
	case p == nil:
		m.reply("ENOENT")
	case o.Do == PeerSet:
		m.peerSet(o, d, p)
	case o.Do == PeerGet:
		m.reply(fmt.Sprintf("peer %d", p.ID))
		m.reply(ack)
	case o.Do == PeerDel:
		m.remove(o.Device, p, "userspace")
		m.reply(ack)
	case o.Do == Expire:
		m.reply(ack)
		m.remove(o.Device, p, "expired")
	default:
		m.key(o, p)
	}
}

func (m *Model) peerNew(o Op, d *Device) {
	if o.wrong(d) || o.Socket == 0 {
		m.reply("EINVAL")
		return
	}
	if d.MP {
		if errno := badVPN(o.VPN4, o.VPN6); errno != "" {
			m.reply(errno)
			return
		}
	}
	kind := Sockets[o.Socket-1].Kind
	device, user := m.user(o.Socket)
	switch {
	case kind == NotASocket:
		m.reply("ENOTSOCK")
	case (kind == TCP) != (o.Remote == 0):
		m.reply("EINVAL")
	case user != nil && (kind == TCP || device != o.Device), m.sockets[o.Socket].ended():
		m.reply("ENOTSOCK")
	case d.MP && d.peers[o.Peer] != nil:
		m.reply("EEXIST")
	case d.MP && (d.owner(o.VPN4) != nil || d.owner(o.VPN6) != nil):
		m.reply("EADDRINUSE")
	default:
		if !d.MP {
			for _, old := range d.peers {
				m.remove(o.Device, old, "teardown")
			}
		}
		p := &Peer{ID: o.Peer, TxID: o.Peer, Socket: o.Socket, VPN4: specified(o.VPN4), VPN6: specified(o.VPN6)}
		d.peers[p.ID] = p
		if o.TxID != 0 {
			p.TxID = o.TxID
		}
		m.set(o, p)
		m.reply(ack)
	}
}

// set is what PEER_NEW and PEER_SET do in the same way.
func (m *Model) set(o Op, p *Peer) {
	if len(o.Keepalive) == 2 {
		p.Keepalive = [2]uint32(o.Keepalive)
	}
	if o.Remote == 0 {
		return
	}
	local := unspecified(o.Remote)
	if o.Local {
		local = ours(o.Remote)
	}
	m.bind(p, o.Remote, local)
}

func (m *Model) peerSet(o Op, d *Device, p *Peer) {
	if p.Remote == 0 && o.Remote != 0 {
		m.reply("EINVAL")
		return
	}
	for _, address := range []string{o.VPN4, o.VPN6} {
		if other := d.owner(address); other != nil && other != p {
			m.reply("EADDRINUSE")
			return
		}
	}
	v4, v6 := p.VPN4, p.VPN6
	if o.VPN4 != "" {
		v4 = o.VPN4
	}
	if o.VPN6 != "" {
		v6 = o.VPN6
	}
	if d.MP {
		if errno := badVPN(v4, v6); errno != "" {
			m.reply(errno)
			return
		}
	}
	p.VPN4, p.VPN6 = specified(v4), specified(v6)
	if o.TxID != 0 {
		p.TxID = o.TxID
	}
	m.set(o, p)
	m.reply(ack)
}

// lengths are those that a cipher's keys may have, in bytes.
var lengths = map[uint32]map[int]bool{1: {16: true, 24: true, 32: true}, 2: {32: true}}

func (m *Model) key(o Op, p *Peer) {
	at := (p.primary + int(o.Slot)) % 2
	switch o.Do {
	case KeyNew:
		if !lengths[o.Key.Cipher][o.Key.Length] {
			m.reply("EINVAL")
			return
		}
		p.slots[at] = &slot{id: o.KeyID, key: o.Key, seen: map[uint32]bool{}}
	case KeyGet:
		k := p.slots[at]
		if k == nil {
			m.reply("ENOENT")
			return
		}
		m.reply(k.String())
	case KeySwap:
		p.primary = 1 - p.primary
	case KeyDel:
		p.slots[at] = nil
	}
	m.reply(ack)
}

// String is what KEY_GET tells.
func (s *slot) String() string {
	if s == nil {
		return "ENOENT"
	}
	return fmt.Sprintf("key id %d, cipher %d", s.id, s.key.Cipher)
}
