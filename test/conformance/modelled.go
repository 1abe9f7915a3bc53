package conformance

import (
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"ovpn-go/test/conformance/script"
	"ovpn-go/test/model"
)

// Modelled is a sequence of operations of which package model says what follows.
type Modelled struct {
	Name     string
	Ops      []model.Op
	Sequence script.Sequence
	// spans are the steps of each operation; nil if it is skipped.
	spans []*span
}

// span is the steps from begin up to end, of which those from state on only look, and what is to be seen.
type span struct {
	begin, state, end int
	seen              map[string][]string
	states            [2][]string
}

// modelPrefix begins the names of modelled sequences.
const modelPrefix = "model: "

// Names in modelled sequences, beside those of the receivers.
const awayNS = "elsewhere" // the namespace that links are moved to, and what is in it

// NewModelled writes the steps that carry out operations.
func NewModelled(name string, ops []model.Op) *Modelled {
	p := &player{tunnel: &tunnel{writer: newSequence(modelPrefix+name, plain)}, m: model.New()}
	p.prologue()
	result := &Modelled{Name: name, Ops: ops}
	for _, o := range ops {
		before := p.place(o.Device)
		out := p.m.Apply(o)
		if out.Skipped {
			result.spans = append(result.spans, nil)
			continue
		}
		s := &span{begin: len(p.Steps), seen: out.Seen}
		p.play(o, out, before)
		s.state = len(p.Steps)
		for device := range s.states {
			s.states[device] = p.m.State(device)
			p.look(device)
		}
		s.end = len(p.Steps)
		result.spans = append(result.spans, s)
	}
	p.Predicted = true
	result.Sequence = p.Sequence
	return result
}

// player writes steps as the model goes.
type player struct {
	*tunnel
	m *model.Model
}

// prologue makes namespaces, addresses and the remotes' sockets.
func (p *player) prologue() {
	p.silence()
	p.listen()
	for _, ip := range []string{model.Ours6, "fd00::2", "fd00::3"} {
		p.address("lo", ip, 128)
	}
	for i, address := range model.Remotes {
		p.open(script.UDP, model.Remote(i+1), address)
	}
	p.namespace(awayNS)
	p.silence()
	p.netlink(control+" "+awayNS, unix.NETLINK_GENERIC)
	p.netlink(route+" "+awayNS, unix.NETLINK_ROUTE)
	p.namespace("home")
}

// place is what an interface is called, and where: the sockets that requests about it are sent on.
type place struct{ name, control, route string }

// place is that of a device as it is now.
func (p *player) place(device int) place {
	at := place{fmt.Sprintf("tun%d", device), control, route}
	d := p.m.Devices[device]
	if d != nil && d.Renamed {
		at.name = fmt.Sprintf("new%d", device)
	}
	if d != nil && d.Elsewhere {
		at.control += " " + awayNS
		at.route += " " + awayNS
	}
	return at
}

// inPlace writes steps that are taken in the namespace of a device.
func (p *player) inPlace(device int, steps func()) {
	if d := p.m.Devices[device]; d == nil || !d.Elsewhere {
		steps()
		return
	}
	p.namespace(awayNS)
	steps()
	p.namespace("home")
}

// look reads the peers of a device and their keys.
func (p *player) look(device int) {
	d := p.m.Devices[device]
	if d == nil {
		return
	}
	at := p.place(device)
	p.send("peers of "+at.name, at.control, request(peerGet, ifindexOf(at.name)).with(dumping))
	last := &p.Steps[len(p.Steps)-1]
	last.Kind = script.Expecting
	var keys []message
	for _, id := range d.PeerIDs() {
		var e encoder
		e.attrs(described(d.Peer(id)))
		last.Expect = append(last.Expect, e.data)
		for slot := range uint32(2) {
			keys = append(keys, request(keyGet, ifindexOf(at.name), keyconf(u32(keyPeerID, id), u32(keySlot, slot))).with(unix.NLM_F_REQUEST))
		}
	}
	if keys != nil {
		p.send("keys of "+at.name, at.control, keys...)
	}
}

// described is what a dump tells of a peer, but for the namespace of its socket.
func described(p *model.Peer) []attr {
	attrs := []attr{u32(peerID, p.ID), u32(peerTxID, p.TxID)}
	if p.VPN4 != "" {
		attrs = append(attrs, addr(peerVPN4, p.VPN4))
	}
	if p.VPN6 != "" {
		attrs = append(attrs, addr(peerVPN6, p.VPN6))
	}
	attrs = append(attrs, u32(peerInterval, p.Keepalive[0]), u32(peerTimeout, p.Keepalive[1]))
	if p.Remote != 0 {
		remote := netip.MustParseAddrPort(model.Remotes[p.Remote-1])
		port := be16(peerPort|netByteOrder, remote.Port())
		if ip := remote.Addr().String(); model.V6(p.Remote) {
			attrs = append(attrs, addr(peerRemote6, ip), u32(peerScope, 0), port, addr(peerLocal6, p.Local))
		} else {
			attrs = append(attrs, addr(peerRemote4, ip), port, addr(peerLocal4, p.Local))
		}
	}
	attrs = append(attrs, be16(peerLocalPort|netByteOrder, netip.MustParseAddrPort(model.Sockets[p.Socket-1].Address).Port()))
	for i, c := range []model.Count{p.VPNRx, p.VPNTx, p.LinkRx, p.LinkTx} {
		// Received bytes, sent bytes, received packets, sent packets are the numbers; they come in another order.
		at := uint16(peerVPNRxBytes + 4*(i/2) + i%2)
		attrs = append(attrs, u32(at, uint32(c.Bytes)), u32(at+2, uint32(c.Packets)))
	}
	return attrs
}

// play writes the steps of an operation, of whose interface it is known where it was before.
func (p *player) play(o model.Op, out model.Outcome, at place) {
	name := at.name
	switch o.Do {
	case model.LinkNew:
		mode := uint8(modeP2P)
		if o.MP {
			mode = modeMP
		}
		p.send("RTM_NEWLINK "+name, route, newLink(name, info(mode)))
		if out.Seen[model.Reply][0] == "ACK" {
			p.find(name)
			p.open(script.Tap, model.Tap(o.Device), name)
		}
	case model.LinkDel:
		p.send("RTM_DELLINK "+name, at.route, linkMessage(unix.RTM_DELLINK, do, name))
		p.await(out)
		p.close(model.Tap(o.Device))
	case model.LinkUp, model.LinkDown:
		action := script.Up
		if o.Do == model.LinkDown {
			action = script.Down
		}
		p.inPlace(o.Device, func() { p.add(script.Step{Name: "set " + name, Action: action, On: name}) })
	case model.LinkMTU:
		p.send("MTU of "+name, at.route, linkMessage(unix.RTM_NEWLINK, do, name, u32(unix.IFLA_MTU, uint32(o.Size))))
	case model.LinkRename:
		to := p.place(o.Device).name
		p.send("rename "+name, at.route, linkMessage(unix.RTM_NEWLINK, do, name, text(unix.IFLA_IFNAME, to)))
		p.inPlace(o.Device, func() { p.find(to) })
	case model.LinkMove:
		to := "home"
		if p.m.Devices[o.Device].Elsewhere {
			to = awayNS
		}
		p.send("move "+name, at.route, linkMessage(unix.RTM_NEWLINK, do, name, namespaceFD(to)))
		p.close(model.Tap(o.Device))
		p.inPlace(o.Device, func() {
			p.find(name)
			p.open(script.Tap, model.Tap(o.Device), name)
		})
	case model.SocketOpen:
		s := model.Sockets[o.Socket-1]
		kind := map[model.Kind]string{model.UDP4: script.UDP, model.UDP6: script.UDP, model.TCP: script.TCP, model.NotASocket: "file"}[s.Kind]
		p.open(kind, model.Client(o.Socket), s.Address)
	case model.SocketClose:
		p.close(model.Client(o.Socket))
		p.await(out)
	case model.Finish:
		p.add(script.Step{Name: "FIN", Action: script.Shutdown, On: model.FarEnd(o.Socket)})
		p.await(out)
	case model.Reset:
		p.add(script.Step{Name: "RST", Action: script.Close, Kind: script.Reset, On: model.FarEnd(o.Socket)})
		p.await(out)
	case model.PeerNew, model.PeerSet, model.PeerGet, model.PeerDel, model.Expire, model.Ping:
		p.peer(o, out, at)
	case model.KeyNew:
		p.ask(at, o, keyNew, material(o.Key).install(o.Peer, o.Slot, o.KeyID))
	case model.KeySwap:
		p.ask(at, o, keySwap, keyconf(u32(keyPeerID, o.Peer)))
	case model.KeyGet, model.KeyDel:
		cmd := map[model.Action]uint8{model.KeyGet: keyGet, model.KeyDel: keyDel}[o.Do]
		p.ask(at, o, cmd, keyconf(u32(keyPeerID, o.Peer), u32(keySlot, o.Slot)))
	case model.Transmit:
		e := given(unix.ETH_P_IP, nil)
		if o.VPN6 != "" {
			e = given(unix.ETH_P_IPV6, ip6(model.Inside6, o.VPN6, o.Size))
		} else {
			e.Data = ip4(model.Inside4, o.VPN4, o.Size)
		}
		e.On = model.Tap(o.Device)
		p.emit(o, out, e)
	default:
		p.emit(o, out, packet(o))
	}
}

// ask sends a request about a device.
func (p *player) ask(at place, o model.Op, cmd uint8, attrs ...attr) {
	p.send(string(o.Do), at.control, request(cmd, append([]attr{ifindexOf(at.name)}, attrs...)...))
}

func (p *player) emit(o model.Op, out model.Outcome, e script.Emission) {
	p.add(emitOnly(string(o.Do), e))
	p.await(out)
}

// await has the last step wait for what is to be seen.
func (p *player) await(out model.Outcome) {
	last := &p.Steps[len(p.Steps)-1]
	for receiver, lines := range out.Seen {
		switch receiver {
		case model.Reply:
		case model.Notices:
			last.Await = append(last.Await, script.Await{On: events, Count: len(lines)})
		default:
			last.Await = append(last.Await, script.Await{On: receiver, Count: len(lines)})
		}
	}
}

// peer writes the requests about a peer.
func (p *player) peer(o model.Op, out model.Outcome, at place) {
	set := func(interval, timeout uint32) {
		p.ask(at, o, peerSet, peer(u32(peerID, o.Peer), u32(peerInterval, interval), u32(peerTimeout, timeout)))
	}
	switch o.Do {
	case model.PeerGet:
		p.ask(at, o, peerGet, peer(u32(peerID, o.Peer)))
	case model.PeerDel:
		p.ask(at, o, peerDel, peer(u32(peerID, o.Peer)))
		p.await(out)
	case model.Expire:
		set(600, 1)
		p.await(out)
	case model.Ping:
		// Long enough for the next one not to come before this is over.
		set(2, 600)
		p.await(out)
		set(0, 0)
	default:
		cmd := uint8(peerSet)
		if o.Do == model.PeerNew {
			cmd = peerNew
		}
		p.ask(at, o, cmd, peer(wanted(o)...))
		p.await(out)
		if d := p.m.Devices[o.Device]; o.Do == model.PeerNew && d != nil && !d.MP && d.Up && d.Peer(o.Peer) != nil {
			// The kernel notices a carrier on its own time, but for an interface that is set up.
			p.inPlace(o.Device, func() {
				p.add(script.Step{Name: "set " + at.name, Action: script.Down, On: at.name})
				p.add(script.Step{Name: "set " + at.name, Action: script.Up, On: at.name})
			})
		}
	}
}

// wanted is what PEER_NEW or PEER_SET asks for.
func wanted(o model.Op) []attr {
	attrs := []attr{u32(peerID, o.Peer)}
	add := func(given bool, a func() attr) {
		if given {
			attrs = append(attrs, a())
		}
	}
	add(o.TxID != 0, func() attr { return u32(peerTxID, o.TxID) })
	add(o.Socket != 0, func() attr { return fdOf(peerSocket, model.Client(o.Socket)) })
	if o.Remote != 0 {
		remote := netip.MustParseAddrPort(model.Remotes[o.Remote-1])
		kind, local, ours := uint16(peerRemote4), uint16(peerLocal4), model.Ours4
		if model.V6(o.Remote) {
			kind, local, ours = peerRemote6, peerLocal6, model.Ours6
		}
		attrs = append(attrs, addr(kind, remote.Addr().String()))
		add(!o.NoPort, func() attr { return be16(peerPort, remote.Port()) })
		add(o.Local, func() attr { return addr(local, ours) })
	}
	add(o.VPN4 != "", func() attr { return addr(peerVPN4, o.VPN4) })
	add(o.VPN6 != "", func() attr { return addr(peerVPN6, o.VPN6) })
	add(len(o.Keepalive) > 0, func() attr { return u32(peerInterval, o.Keepalive[0]) })
	add(len(o.Keepalive) > 1, func() attr { return u32(peerTimeout, o.Keepalive[1]) })
	return attrs
}

// packet is what a remote or the client sends.
func packet(o model.Op) script.Emission {
	socket, overTCP := model.Sockets[o.Socket-1], model.Sockets[o.Socket-1].Kind == model.TCP
	data := []byte{0x38, 1, 2, 3, 4} // a control packet
	switch o.Do {
	case model.BadRecord:
		return script.Emission{On: model.FarEnd(o.Socket), Data: []byte{0, 2, 0x48, 0}}
	case model.Receive:
		data = sealed(o)
	}
	if overTCP {
		data = record(data)
	}
	if o.Do == model.ControlOut {
		e := script.Emission{On: model.Client(o.Socket), Data: data}
		if !overTCP {
			e.To = model.Remotes[o.Remote-1]
		}
		if socket.Kind == model.UDP6 && !model.V6(o.Remote) {
			e.To = "[::ffff:" + strings.Replace(e.To, ":", "]:", 1)
		}
		return e
	}
	if overTCP {
		return script.Emission{On: model.FarEnd(o.Socket), Data: data}
	}
	to, port := model.Ours4, netip.MustParseAddrPort(socket.Address).Port()
	if model.V6(o.Remote) {
		to = model.Ours6
	}
	return script.Emission{On: model.Remote(o.Remote), To: netip.AddrPortFrom(netip.MustParseAddr(to), port).String(), Data: data}
}

// material is the key of an operation.
func material(k model.Key) pair { return pair{k.Cipher, k.Length, k.Seed} }

// sealed is the data packet of an operation.
func sealed(o model.Op) []byte {
	var inner []byte
	switch o.Inner {
	case model.IPv6:
		source := o.Source
		if !strings.Contains(source, ":") {
			source = model.Inside6
		}
		inner = ip6(source, model.Nobody6, o.Size)
	case model.Keepalive:
		inner = keepalive
	case model.Nonsense:
		inner = []byte("nonsense")
	case model.Empty:
	default:
		source := o.Source
		if !strings.Contains(source, ".") {
			source = model.Inside4 // a packet that nobody opens
		}
		inner = ip4(source, model.Nobody4, o.Size)
	}
	key := material(o.Key)
	if key.length == 0 || key.length == 31 {
		key = pair{aesGCM, 32, o.Key.Seed}
	}
	packet := key.seal(op(o.KeyID, o.Peer), o.Packet, inner)
	switch o.Inner {
	case model.Forged:
		packet[len(packet)-1] ^= 1
	case model.Short:
		packet = packet[:model.ShortLength]
	}
	return packet
}
