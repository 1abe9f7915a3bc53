package conformance

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"ovpn-go/test/conformance/script"
)

// Names in sequences about packets.
const (
	client = "client" // the client's transport socket
	remote = "peer"   // that of the other side, which has the keys
	tap    = "tap"    // what the interface receives and is given to send
	stack4 = "stack"  // IPv4 packets that the stack routes
	stack6 = "stack 6"
	farEnd = client + script.FarEnd
)

// packetPrefix begins the names of sequences about packets.
const packetPrefix = "packets: "

// Addresses in sequences about packets.
const (
	ourTransport  = "127.0.0.1:6000"
	peerTransport = "127.0.0.2:7001"
	ourVPN        = "10.8.0.254" // with a network of 24 bits
	elsewhere     = "10.99.0.1"  // an address that nobody has
	ourVPN6       = "fd00:8::fe" // with a network of 64 bits
	elsewhere6    = "fd00:8::99" // likewise, in the network: nobody is told that there is no such address
)

// Keys: that of a case, and the one of packets that only show that those before them have been dealt with.
var (
	usual = pair{aesGCM, 32, 1}
	fence = pair{aesGCM, 32, 2}
)

const fenceKeyID = 7

// tunnel is a sequence about the packets of one device. Its peers have the usual key as key id 0 in their primary
// slot and the fence's in the secondary one.
type tunnel struct {
	*writer
	mode uint8
	// records says that packets go over TCP.
	records bool
	// to is where the client's transport socket is, from the socket that packets to it come from, and peer the peer id
	// that they name.
	to, from string
	peer     uint32
	// source is a source address that the peer's packets may have inside.
	source string
	// destination leads to the peer by the stack.
	destination string
	// fences counts the packets with the fence's key in either direction, and ids those with the usual key.
	fences, ids uint32
	// quiet leaves out the fences.
	quiet bool
}

// PacketCorpus returns the sequences about packets.
func PacketCorpus() []script.Sequence {
	var all []script.Sequence
	for _, make := range []func() []*tunnel{
		malformedPackets, forgedPackets, replayedPackets, innerPackets, cipherPackets, keyPackets,
		sentPackets, severalPeers, floats, families, keepalives, records, states,
	} {
		for _, t := range make() {
			all = append(all, t.Sequence)
		}
	}
	return all
}

var modeNames = []string{"P2P", "MP"}

// newTunnel starts a sequence in which a device is made and nothing else.
func newTunnel(name string, mode uint8) *tunnel {
	t := &tunnel{
		writer: newSequence(packetPrefix+name, extended), mode: mode,
		to: ourTransport, from: remote, peer: 1, source: "10.8.0.1", destination: "10.8.0.1",
	}
	t.silence()
	t.listen()
	t.link("tun0", mode)
	return t
}

// silence leaves the stack of the namespace nothing of its own to say.
func (t *tunnel) silence() {
	for _, s := range [][2]string{
		{"ipv6/conf/default/addr_gen_mode", "1"}, {"ipv6/conf/default/router_solicitations", "0"},
		{"ipv6/conf/default/accept_dad", "0"}, {"ipv4/conf/all/rp_filter", "0"}, {"ipv4/conf/default/rp_filter", "0"},
	} {
		t.add(script.Step{Name: "set " + s[0], Action: script.Sysctl, On: s[0], Kind: s[1]})
	}
}

// udpTunnel is a tunnel over UDP and IPv4 with one peer, which is up.
func udpTunnel(name string, mode uint8) *tunnel {
	t := newTunnel(name+" in "+modeNames[mode]+" mode", mode)
	t.open(script.UDP, client, "0.0.0.0:6000")
	t.open(script.UDP, remote, peerTransport)
	t.addPeer(1, peerTransport)
	t.up()
	return t
}

func (t *tunnel) open(kind, name, address string) {
	t.add(script.Step{Name: "open " + name, Action: script.Socket, On: name, Kind: kind, Address: address})
}

// vpn is what a peer's addresses inside are.
func (t *tunnel) vpn(id uint32) []attr {
	if t.mode == modeP2P {
		return nil
	}
	return []attr{addr(peerVPN4, fmt.Sprintf("10.8.0.%d", id)), addr(peerVPN6, fmt.Sprintf("fd00:8::%d", id))}
}

// addPeer makes a peer of the client's socket, with keys. Packets to it bear its id and 9 more.
func (t *tunnel) addPeer(id uint32, at string, more ...attr) {
	attrs := append([]attr{u32(peerID, id), u32(peerTxID, id+9), fdOf(peerSocket, client)}, t.vpn(id)...)
	if at != "" {
		a := netip.MustParseAddrPort(at)
		kind := uint16(peerRemote4)
		if a.Addr().Is6() {
			kind = peerRemote6
		}
		attrs = append(attrs, addr(kind, a.Addr().String()), be16(peerPort, a.Port()))
	}
	t.on("tun0", fmt.Sprintf("PEER_NEW %d", id), peerNew, peer(append(attrs, more...)...))
	t.keys(id)
}

// keys gives a peer the usual keys.
func (t *tunnel) keys(id uint32) {
	t.install(id, 0, 0, usual)
	t.install(id, 1, fenceKeyID, fence)
}

func (t *tunnel) install(id, slot, keyID uint32, p pair) {
	t.on("tun0", fmt.Sprintf("KEY_NEW peer %d slot %d key id %d", id, slot, keyID), keyNew, p.install(id, slot, keyID))
}

// up sets the device up, with addresses of either family.
func (t *tunnel) up() {
	t.add(script.Step{Name: "set tun0 up", Action: script.Up, On: "tun0"})
	t.address("tun0", ourVPN, 24)
	t.address("tun0", ourVPN6, 64)
	t.open(script.Tap, tap, "tun0")
	t.open(script.RawIP, stack4, "0.0.0.0")
	t.open(script.RawIP, stack6, "::")
	t.settle()
}

// settle leaves the device time to learn of routes.
func (t *tunnel) settle() {
	t.add(script.Step{Name: "let routes become known", Action: script.Pause, Number: 200})
}

// address gives an interface an address; lo is known to have the index 1.
func (t *tunnel) address(device, ip string, bits uint8) {
	const noDAD = 2 // IFA_F_NODAD
	a := netip.MustParseAddr(ip)
	m := message{
		kind: unix.RTM_NEWADDR, flags: unix.NLM_F_REQUEST | unix.NLM_F_ACK | unix.NLM_F_CREATE,
		body:  []byte{familyOf(a), bits, noDAD, 0, 1, 0, 0, 0},
		attrs: []attr{addr(unix.IFA_LOCAL, ip), addr(unix.IFA_ADDRESS, ip)},
	}
	if device != "lo" {
		m.patches = []script.Patch{{Offset: headerSize + 4, What: script.Ifindex, Of: device}}
	}
	t.send("address "+ip, route, m)
}

func familyOf(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// route adds a route by way of the device, and of a gateway unless that is empty.
func (t *tunnel) route(to, gateway string) {
	prefix := netip.MustParsePrefix(to)
	const scopeLink = 253
	attrs := []attr{
		addr(unix.RTA_DST, prefix.Addr().String()),
		{kind: unix.RTA_OIF, value: make([]byte, 4), patch: script.Patch{What: script.Ifindex, Of: "tun0"}},
	}
	scope := byte(scopeLink)
	if gateway != "" {
		attrs, scope = append(attrs, addr(unix.RTA_GATEWAY, gateway)), 0
	}
	t.send("route to "+to+" via "+gateway, route, message{
		kind: unix.RTM_NEWROUTE, flags: unix.NLM_F_REQUEST | unix.NLM_F_ACK | unix.NLM_F_CREATE,
		body:  []byte{familyOf(prefix.Addr()), byte(prefix.Bits()), 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, scope, unix.RTN_UNICAST, 0, 0, 0, 0},
		attrs: attrs,
	})
	t.settle()
}

// sealed is the next packet of the other side with the usual key.
func (t *tunnel) sealed(plaintext []byte) []byte {
	t.ids++
	return usual.seal(op(0, t.peer), t.ids, plaintext)
}

// inner is a packet that the peer may send.
func (t *tunnel) inner(payload int) []byte { return ip4(t.source, elsewhere, payload) }

func (t *tunnel) fence() []byte {
	t.fences++
	return fence.seal(op(fenceKeyID, t.peer), t.fences, ip4(t.source, elsewhere, 8))
}

// emission sends a packet from the other side.
func (t *tunnel) emission(packet []byte) script.Emission {
	if t.records {
		return script.Emission{On: t.from, Data: record(packet)}
	}
	return script.Emission{On: t.from, To: t.to, Data: packet}
}

// record puts the length before a packet, as it is sent over TCP.
func record(packet []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(packet))), packet...)
}

// in is a case: the other side sends packets, and so many come out of the interface. Then the counters are read.
func (t *tunnel) in(name string, arrive int, packets ...[]byte) {
	t.receive(name, []script.Await{{On: tap, Count: arrive}}, packets...)
}

// upward is in for a packet that goes up to the client's socket.
func (t *tunnel) upward(name string, packet []byte) {
	t.receive(name, []script.Await{{On: tap}, {On: client, Count: 1}}, packet)
}

func (t *tunnel) receive(name string, await []script.Await, packets ...[]byte) {
	var emissions []script.Emission
	for _, p := range packets {
		emissions = append(emissions, t.emission(p))
	}
	if !t.quiet {
		emissions = append(emissions, t.emission(t.fence()))
		await[0].Count++
	}
	t.add(script.Step{Name: name, Action: script.Emit, Emissions: emissions, Await: await})
	t.counters()
}

// farSocket is where what the device sends arrives.
func (t *tunnel) farSocket() string {
	if t.records {
		return farEnd
	}
	return remote
}

// out is a case: packets are sent by the stack or into the interface, and so many reach the other side.
func (t *tunnel) out(name string, reach int, emissions ...script.Emission) {
	if !t.quiet {
		emissions = append(emissions, t.routed(ip4(ourVPN, t.destination, 8)))
		reach++
	}
	t.add(script.Step{
		Name: name, Action: script.Emit, Emissions: emissions, Await: []script.Await{{On: t.farSocket(), Count: reach}},
	})
	t.counters()
}

// routed has the stack send a packet.
func (t *tunnel) routed(packet []byte) script.Emission {
	if packet[0]>>4 == 6 {
		return script.Emission{On: stack6, To: netip.AddrFrom16([16]byte(packet[24:40])).String(), Data: packet}
	}
	return script.Emission{On: stack4, To: netip.AddrFrom4([4]byte(packet[16:20])).String(), Data: packet}
}

// given puts a packet into the interface as one of an EtherType.
func given(protocol uint16, packet []byte) script.Emission {
	return script.Emission{On: tap, Protocol: protocol, Data: packet}
}

// counters reads those of all peers and of the interface.
func (t *tunnel) counters() {
	t.send("peers", control, request(peerGet, ifindexOf("tun0")).with(unix.NLM_F_REQUEST|unix.NLM_F_DUMP))
	t.Steps[len(t.Steps)-1].Kind = script.Settled
	t.add(script.Step{Name: "counters of the interface", Action: script.Stats, On: "tun0"})
}
