package conformance

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"ovpn-go/test/conformance/script"
	"ovpn-go/test/model"
)

// Check compares what came back from a sequence with what the model says. It returns the first difference in words,
// or nothing. Beside it is what the program has logged until then, as it may never happen again.
func (s *Modelled) Check(run *script.Transcript, r *script.Results) string {
	w := &witness{family: run.Family, results: r}
	for _, o := range s.Ops {
		if o.Do == model.KeyNew && o.Key.Cipher != 0 && !slices.Contains(w.keys, o.Key) {
			w.keys = append(w.keys, o.Key)
		}
	}
	complete := len(r.Outcomes) == len(s.Sequence.Steps) && r.Problem == ""
	for i, span := range s.spans {
		if span == nil {
			continue
		}
		var differences []string
		w.seen = map[string][]string{}
		for _, out := range between(r.Outcomes, span.begin, span.state) {
			w.look(out)
		}
		receivers := map[string]bool{}
		for _, m := range []map[string][]string{w.seen, span.seen} {
			for receiver := range m {
				receivers[receiver] = true
			}
		}
		for receiver := range receivers {
			differences = append(differences, unequal(receiver, span.seen[receiver], w.seen[receiver])...)
		}
		slices.Sort(differences)
		w.seen = map[string][]string{}
		for _, out := range between(r.Outcomes, span.state, span.end) {
			w.look(out)
		}
		differences = append(differences, unequal("state", slices.Concat(span.states[0], span.states[1]), w.seen[model.Reply])...)
		delete(w.seen, model.Reply)
		for receiver, lines := range w.seen {
			differences = append(differences, unequal("late: "+receiver, nil, lines)...)
		}
		if len(r.Outcomes) < span.end && r.Problem != "" {
			differences = append(differences, r.Problem)
		}
		if len(differences) > 0 {
			return fmt.Sprintf("%s: operation %d, %s\n    %s\n  in\n%s  logged by then, also of sequences beside it:\n%s", s.Name, i, s.Ops[i],
				strings.Join(differences, "\n    "), model.Text(s.Ops[:i+1]), logged(run.Log, between(r.Outcomes, 0, span.end)))
		}
	}
	if !complete {
		return fmt.Sprintf("%s: %d of %d steps, %s", s.Name, len(r.Outcomes), len(s.Sequence.Steps), r.Problem)
	}
	return ""
}

func between(all []script.Outcome, begin, end int) []script.Outcome {
	return all[min(begin, len(all)):min(end, len(all))]
}

// unequal puts two lists side by side: "-" is what the model says, "+" what was seen.
func unequal(what string, want, got []string) (lines []string) {
	if slices.Equal(want, got) {
		return nil
	}
	lines = append(lines, what+":")
	same := 0
	for same < min(len(want), len(got)) && want[same] == got[same] {
		same++
	}
	for _, line := range want[same:] {
		lines = append(lines, "  - "+line)
	}
	for _, line := range got[same:] {
		lines = append(lines, "  + "+line)
	}
	return lines
}

// witness puts what came back into the model's words.
type witness struct {
	family  uint16
	results *script.Results
	keys    []model.Key
	seen    map[string][]string
	ended   []string // connections
}

func (w *witness) see(receiver, format string, args ...any) {
	w.seen[receiver] = append(w.seen[receiver], fmt.Sprintf(format, args...))
}

func (w *witness) look(out script.Outcome) {
	for _, d := range out.Received {
		switch {
		case d.From != "":
			w.packet(d)
		case d.Error != 0:
			w.see(d.On, "read fails: %s", unix.ErrnoName(unix.Errno(d.Error)))
		default:
			eachMessage(d.Data, func(msg []byte) { w.message(d.On, msg) })
		}
	}
}

// message is a netlink message.
func (w *witness) message(on string, msg []byte) {
	kind := ne.Uint16(msg[4:])
	switch {
	case kind == unix.NLMSG_ERROR && len(msg) >= attributeStart:
		text := errnoText(ne.Uint32(msg[headerSize:]))
		if text == "0" {
			text = "ACK"
		}
		w.see(model.Reply, "%s", text)
	case kind == unix.NLMSG_DONE && len(msg) >= attributeStart:
		if text := errnoText(ne.Uint32(msg[headerSize:])); text != "0" {
			w.see(model.Reply, "%s", text)
		}
	case kind == w.family && len(msg) >= attributeStart:
		w.ofFamily(on, msg[headerSize], attributesOf(msg[attributeStart:]), ne.Uint16(msg[6:])&unix.NLM_F_MULTI != 0)
	default:
		w.see(on, "message of type %d", kind)
	}
}

// values are attributes by their numbers.
type values map[uint16][]byte

func attributesOf(data []byte) values {
	all := values{}
	eachAttribute(data, func(kind uint16, value []byte) { all[kind] = value })
	return all
}

// number is an attribute of any length in host byte order, 0 if it is missing.
func (v values) number(kind uint16) uint32 {
	switch b := v[kind]; len(b) {
	case 2:
		return uint32(ne.Uint16(b))
	case 4:
		return ne.Uint32(b)
	default:
		return 0
	}
}

// address is an address, without a port of 0 bytes.
func (v values) address(kinds ...uint16) string {
	for _, kind := range kinds {
		if a, ok := netip.AddrFromSlice(v[kind]); ok {
			return a.String()
		}
	}
	return ""
}

func (v values) remote() string {
	port := uint16(0)
	if b := v[peerPort]; len(b) == 2 {
		port = uint16(b[0])<<8 | uint16(b[1])
	}
	a, err := netip.ParseAddr(v.address(peerRemote4, peerRemote6))
	if err != nil {
		return "nowhere"
	}
	return netip.AddrPortFrom(a, port).String()
}

// reasons are those of a deletion (enum ovpn_del_peer_reason).
var reasons = []string{"teardown", "userspace", "expired", "transport-error", "transport-disconnect"}

func (w *witness) ofFamily(on string, cmd uint8, attrs values, listed bool) {
	p, key := attributesOf(attrs[attrPeer]), attributesOf(attrs[attrKeyconf])
	device := w.device(attrs.number(attrIfindex))
	switch cmd {
	case peerDelNtf:
		reason := fmt.Sprint(p.number(peerReason))
		if n := p.number(peerReason); int(n) < len(reasons) {
			reason = reasons[n]
		}
		w.see(model.Notices, "peer %d of device %d deleted: %s", p.number(peerID), device, reason)
	case peerFloatNtf:
		w.see(model.Notices, "peer %d of device %d is now at %s", p.number(peerID), device, p.remote())
	case keyGet:
		w.see(model.Reply, "key id %d, cipher %d", key.number(keyID), key.number(keyCipher))
	case peerGet:
		if !listed {
			w.see(model.Reply, "peer %d", p.number(peerID))
			return
		}
		where := "over TCP"
		if len(p[peerPort]) > 0 {
			where = fmt.Sprintf("at %s, to us at %s", p.remote(), p.address(peerLocal4, peerLocal6))
		}
		count := func(at uint16) model.Count {
			return model.Count{Packets: int(p.number(at + 2)), Bytes: int(p.number(at))}
		}
		w.see(model.Reply, "%s", model.PeerText(&model.Peer{
			ID: p.number(peerID), TxID: p.number(peerTxID), VPN4: p.address(peerVPN4), VPN6: p.address(peerVPN6),
			Keepalive: [2]uint32{p.number(peerInterval), p.number(peerTimeout)},
			VPNRx:     count(peerVPNRxBytes), VPNTx: count(peerVPNRxBytes + 1),
			LinkRx: count(peerVPNRxBytes + 4), LinkTx: count(peerVPNRxBytes + 5),
		}, where))
	default:
		w.see(on, "command %d", cmd)
	}
}

// device says which device has had an interface index, or -1.
func (w *witness) device(index uint32) int {
	for name, indexes := range w.results.Interfaces {
		if slices.Contains(indexes, index) {
			return int(name[len(name)-1] - '0')
		}
	}
	return -1
}

// packet is what was received in place of a netlink message.
func (w *witness) packet(d script.Datagram) {
	if strings.HasPrefix(d.On, "interface") {
		if d.Error == 0 { // it is told when the interface goes down
			w.see(d.On, "%s", inner(d.Data))
		}
		return
	}
	data := d.Data
	if d.From == "the stream" || d.From == "the connection" && len(data) > 0 {
		data = data[2:]
	}
	switch {
	case d.From == "the stream, as its last bytes" && len(data) == 0:
	case d.From == "the connection, which has ended", d.Error == int(unix.ECONNRESET):
		// After a reset each of them is read, one after the other.
		if !slices.Contains(w.ended, d.On) {
			w.ended = append(w.ended, d.On)
			w.see(d.On, model.Ended)
		}
	case d.Error != 0:
		w.see(d.On, "read fails: %s", unix.ErrnoName(unix.Errno(d.Error)))
	case len(data) > 0 && data[0]>>3 == dataV2 && strings.HasPrefix(d.On, "client") && !strings.HasSuffix(d.On, script.FarEnd):
		w.see(d.On, "data packet of %d bytes", len(data))
	case len(data) > 0 && data[0]>>3 == dataV2:
		w.see(d.On, "%s", w.opened(data))
	default:
		w.see(d.On, "control packet of %d bytes", len(data))
	}
}

// inner describes a packet inside the tunnel.
func inner(b []byte) string {
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		return model.Packet(netip.AddrFrom4([4]byte(b[12:])).String(), netip.AddrFrom4([4]byte(b[16:])).String(), len(b))
	case len(b) >= 40 && b[0]>>4 == 6:
		return model.Packet(netip.AddrFrom16([16]byte(b[8:])).String(), netip.AddrFrom16([16]byte(b[24:])).String(), len(b))
	case string(b) == string(keepalive):
		return model.KeepaliveText
	}
	return fmt.Sprintf("%x", b)
}

// opened describes a data packet that the device has sent.
func (w *witness) opened(b []byte) string {
	if len(b) < overhead {
		return fmt.Sprintf("data packet %x", b)
	}
	head, id := uint32(b[0])<<24|uint32(b[1])<<16|uint32(b[2])<<8|uint32(b[3]), b[4:packetHead]
	number := uint32(id[0])<<24 | uint32(id[1])<<16 | uint32(id[2])<<8 | uint32(id[3])
	for _, k := range w.keys {
		key, tail := material(k).half(false)
		aead, err := newAEAD(k.Cipher, key)
		if err != nil {
			continue // a key that was refused
		}
		sealed := slices.Concat(b[overhead:], b[packetHead:overhead])
		if text, err := aead.Open(nil, slices.Concat(id, tail), sealed, b[:packetHead]); err == nil {
			return model.Sealed(head>>24&7, head&undefinedPeer, number, k, inner(text))
		}
	}
	return fmt.Sprintf("data packet %d to peer %d with an unknown key", number, head&undefinedPeer)
}
