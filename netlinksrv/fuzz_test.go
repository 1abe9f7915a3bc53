package netlinksrv

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"

	"ovpn-go/crypto"
	"ovpn-go/datapath"
	"ovpn-go/peers"
	"ovpn-go/tun/netns"
)

// FuzzRequest executes datagrams for our family. Nothing of them reaches the kernel: message types are set.
//
// Every answer must be a whole message, and a datagram whose messages are all refused must change nothing.
func FuzzRequest(f *testing.F) {
	s := testServer(f)
	d := addDevice(f, s, testIfindex, peers.MP)
	ns, err := netns.Current()
	if err != nil {
		f.Fatal(err)
	}
	defer ns.Close()
	in := newInbox()
	g, err := s.OpenGeneric(ns, in.deliver)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(g.Close)
	g.extended.Store(true)
	task := &fakeTask{}
	f.Fuzz(func(t *testing.T, other bool, data []byte) {
		family := ovpnFamily
		if other {
			family = dcoFamily
		}
		d.peers = []*fakePeer{{
			info: datapath.PeerInfo{ID: 1, TCP: true, LocalPort: 1}, keys: [2]crypto.KeyConfig{{ID: 1, Cipher: crypto.AESGCM}},
		}}
		before := d.state()
		for rest := bytes.Clone(data); ; {
			msg, after, ok := cutMessage(rest)
			if !ok {
				break
			}
			rest = after
			nativeEndian.PutUint16(msg[4:], unix.GENL_ID_CTRL)
			if asked, family := s.controllerQuestion(msg); asked == questionPolicy {
				s.policyDump(family, msg, 1)
			}
			nativeEndian.PutUint16(msg[4:], s.ids[family].family)
			g.serve(task, family, msg)
		}
		g.continueDump()
		succeeded := false
		for _, answer := range in.take() {
			for {
				msg, rest, ok := cutMessage(answer)
				if !ok {
					break
				}
				switch parseHeader(msg).kind {
				case unix.NLMSG_ERROR, unix.NLMSG_DONE:
					succeeded = succeeded || readRefusal(t, msg).Errno == 0
				case s.ids[family].family:
					if err := replies(family).validate(msg[firstAttribute:], firstAttribute); err != nil {
						t.Errorf("reply breaks the policy: %v\n%s", err, hexLines([][]byte{msg}))
					}
				default:
					t.Errorf("answer of a wrong type:\n%s", hexLines([][]byte{msg}))
				}
				answer = rest
			}
			if len(answer) > 0 {
				t.Errorf("%d bytes of an answer are no message", len(answer))
			}
		}
		// Without NLM_F_ACK there is no answer to tell of a success.
		if !succeeded && asksForAcks(data) && d.state() != before {
			t.Errorf("device changed without a success:\n%s\nbefore:\n%s", d.state(), before)
		}
	})
}

// replies is all that can stand in an answer of a family.
func replies(family int) *attributeSet {
	if family == ovpnFamily {
		return families[ovpnFamily].messages
	}
	return &attributeSet{attrs: []attributePolicy{8: nest("get-peer", &attributeSet{attrs: []attributePolicy{
		dcoPeerID: fullU32("peer-id"), dcoGetRemote: {kind: kindBinary, min: 16, max: 28}, dcoGetVPN4: be32("ipv4"), dcoGetVPN6: exactly("ipv6", 16),
		dcoGetLocalIP: {kind: kindBinary, min: 4, max: 16}, dcoGetLocalPort: {kind: kindBE16, max: 65535},
		dcoGetInterval: fullU32("interval"), dcoGetTimeout: fullU32("timeout"),
		dcoGetVPNRxBytes: uintOf("vpn-rx-bytes"), dcoGetVPNTxBytes: uintOf("vpn-tx-bytes"),
		dcoGetVPNRxPackets: fullU32("vpn-rx-packets"), dcoGetVPNTxPackets: fullU32("vpn-tx-packets"),
		dcoGetLinkRxBytes: uintOf("link-rx-bytes"), dcoGetLinkTxBytes: uintOf("link-tx-bytes"),
		dcoGetLinkRxPackets: fullU32("link-rx-packets"), dcoGetLinkTxPackets: fullU32("link-tx-packets"),
	}})}}
}

// asksForAcks reports whether every message of a datagram has NLM_F_ACK.
func asksForAcks(datagram []byte) bool {
	for {
		msg, rest, ok := cutMessage(datagram)
		if !ok {
			return true
		}
		if parseHeader(msg).flags&unix.NLM_F_ACK == 0 {
			return false
		}
		datagram = rest
	}
}

// validatedSets picks attribute sets to fuzz.
func validatedSets(choice uint8) []*attributeSet {
	f := &families[int(choice)/16%familyCount]
	sets := []*attributeSet{f.operations[int(choice)%16%len(f.operations)].do}
	for _, op := range f.operations {
		if op.dump != nil {
			sets = append(sets, op.dump)
		}
	}
	return sets
}

// FuzzValidate compares the validator with a slow and obvious one.
func FuzzValidate(f *testing.F) {
	f.Fuzz(func(t *testing.T, op uint8, data []byte) {
		for _, set := range validatedSets(op) {
			err := set.validate(data, firstAttribute)
			if want := obviouslyValid(set, data); (err == nil) != want {
				t.Errorf("validate: %v, want valid: %v", err, want)
			}
			if err == nil {
				readEverything(set.parse(data, firstAttribute, attribute{}))
				continue
			}
			if err.bad != 0 && (err.bad < firstAttribute || err.bad > firstAttribute+len(data)-attributeHeader) {
				t.Errorf("bad attribute at %d of a message with %d bytes of attributes", err.bad, len(data))
			}
			refused(t, err)
		}
	})
}

// obviouslyValid restates the rules for one attribute after the other.
func obviouslyValid(set *attributeSet, data []byte) bool {
	for len(data) > 0 {
		if len(data) < 4 {
			return false
		}
		size, kind := int(nativeEndian.Uint16(data)), nativeEndian.Uint16(data[2:])
		if size < 4 || size > len(data) {
			return false
		}
		number, nested, value := int(kind&0x3fff), kind&0x8000 != 0, data[4:size]
		if number >= len(set.attrs) || set.attrs[number].kind == kindAbsent {
			return false
		}
		p := set.attrs[number]
		if nested != (p.kind == kindNest) {
			return false
		}
		switch n := uint64(len(value)); p.kind {
		case kindU32:
			if n != 4 || uint64(nativeEndian.Uint32(value)) < p.min || uint64(nativeEndian.Uint32(value)) > p.max {
				return false
			}
		case kindS32, kindBE32:
			if n != 4 {
				return false
			}
		case kindBE16:
			if n != 2 || value[0] == 0 && value[1] == 0 {
				return false
			}
		case kindUint:
			if n != 4 && n != 8 {
				return false
			}
		case kindBinary:
			if n < p.min || n > p.max {
				return false
			}
		case kindNest:
			if !obviouslyValid(p.nest, value) {
				return false
			}
		}
		for size%4 != 0 {
			size++
		}
		if size > len(data) {
			return true
		}
		data = data[size:]
	}
	return true
}

// readEverything reads all attributes as handlers do, which must not fail after validation.
func readEverything(p parsed) {
	for n := range p.at {
		a := p.get(uint16(n))
		if !a.present() {
			continue
		}
		switch p.set.attrs[n].kind {
		case kindU32, kindS32, kindBE32:
			a.u32()
		case kindBE16:
			a.be16()
		case kindNest:
			readEverything(p.inside(uint16(n)))
		}
	}
}

// FuzzRewriteRoute rewrites what a kernel could send. What is not about our link must stay as it is, what is must
// stay whole, and to do it twice must be the same as to do it once.
func FuzzRewriteRoute(f *testing.F) {
	s := testServer(f)
	addDevice(f, s, testIfindex, peers.MP)
	home := homeID(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		in := bytes.Clone(data)
		out := s.RewriteRoute(home, &LinkDumps{}, in)
		if !bytes.Equal(in, data) {
			t.Error("the datagram was written to")
		}
		if twice := s.RewriteRoute(home, &LinkDumps{}, out); !bytes.Equal(twice, out) {
			t.Errorf("rewritten twice:\n%s\nonce:\n%s", hexLines([][]byte{twice}), hexLines([][]byte{out}))
		}
		for {
			was, restIn, okIn := cutMessage(in)
			is, restOut, okOut := cutMessage(out)
			if okIn != okOut {
				t.Fatalf("a message of %v became one of %v", was, is)
			}
			if !okIn {
				break
			}
			if m, ok := parseLinkMessage(was); !ok || m.index != testIfindex ||
				m.header.kind != unix.RTM_NEWLINK && m.header.kind != unix.RTM_DELLINK {
				if !bytes.Equal(was, is) {
					t.Errorf("a message that is not about our link was changed")
				}
			} else {
				modeOf(m)
				m.settings(1)
			}
			in, out = restIn, restOut
		}
		if !bytes.Equal(in, out) {
			t.Errorf("what is no message was changed: %x, %x", in, out)
		}
	})
}
