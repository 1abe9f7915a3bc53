package conformance

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// format is what an attribute holds.
type format struct {
	name string
	// size is its length in bytes; of a nest 0.
	size int
	// values are interesting contents: the ends of the range, and what lies just outside.
	values [][]byte
	nest   bool
}

func number(name string, values ...uint32) format {
	f := format{name: name, size: 4}
	for _, v := range values {
		f.values = append(f.values, u32(0, v).value)
	}
	return f
}

func address(name string, size int) format { return format{name: name, size: size} }

func portNumber(name string) format {
	return format{name: name, size: 2, values: [][]byte{{0, 0}, {0, 1}, {1, 0}, {255, 255}}}
}

func counter(name string) format {
	return format{name: name, size: 4, values: [][]byte{make([]byte, 8), make([]byte, 6), make([]byte, 12)}}
}

// peerFormats and keyFormats are the attributes as the specification has them, by number.
var (
	peerFormats = []format{
		peerID:        number("id", 0, 0xffffff, 0x1000000, 1<<32-1),
		peerRemote4:   address("remote-ipv4", 4),
		peerRemote6:   address("remote-ipv6", 16),
		peerScope:     number("remote-ipv6-scope-id", 0, 1<<32-1),
		peerPort:      portNumber("remote-port"),
		peerSocket:    number("socket", 0, 1<<31, 1<<32-1),
		peerNetNSID:   number("socket-netnsid", 0, 1<<31, 1<<32-1),
		peerVPN4:      address("vpn-ipv4", 4),
		peerVPN6:      address("vpn-ipv6", 16),
		peerLocal4:    address("local-ipv4", 4),
		peerLocal6:    address("local-ipv6", 16),
		peerLocalPort: portNumber("local-port"),
		peerInterval:  number("keepalive-interval", 0, 86400, 86401, 1<<32-1),
		peerTimeout:   number("keepalive-timeout", 0, 86400, 86401, 1<<32-1),
		peerReason:    number("del-reason", 0, 4, 5),
		16:            counter("vpn-rx-bytes"), 17: counter("vpn-tx-bytes"), 18: counter("vpn-rx-packets"),
		19: counter("vpn-tx-packets"), 20: counter("link-rx-bytes"), 21: counter("link-tx-bytes"),
		22: counter("link-rx-packets"), 23: counter("link-tx-packets"),
		peerTxID: number("tx-id", 0, 0xffffff, 0x1000000, 1<<32-1),
	}
	keyFormats = []format{
		keyPeerID:  number("peer-id", 0, 0xffffff, 0x1000000),
		keySlot:    number("slot", 0, 1, 2, 1<<32-1),
		keyID:      number("key-id", 0, 7, 8),
		keyCipher:  number("cipher-alg", 0, 2, 3),
		keyEncrypt: {name: "encrypt-dir", nest: true},
		keyDecrypt: {name: "decrypt-dir", nest: true},
	}
)

// operation is a command with the nest that it takes.
type operation struct {
	name    string
	cmd     uint8
	nest    uint16
	formats []format
}

var operations = []operation{
	{"PEER_NEW", peerNew, attrPeer, peerFormats},
	{"PEER_SET", peerSet, attrPeer, peerFormats},
	{"PEER_GET", peerGet, attrPeer, peerFormats},
	{"PEER_DEL", peerDel, attrPeer, peerFormats},
	{"KEY_NEW", keyNew, attrKeyconf, keyFormats},
	{"KEY_GET", keyGet, attrKeyconf, keyFormats},
	{"KEY_SWAP", keySwap, attrKeyconf, keyFormats},
	{"KEY_DEL", keyDel, attrKeyconf, keyFormats},
}

// policySequences are about the rules V1 to V10, for every attribute of every operation. Nothing in them finds a
// peer, so that nothing but the answer changes.
func policySequences(p profile) []*writer {
	var all []*writer
	for _, op := range operations {
		w := newSequence("policy of "+op.name, p)
		w.link("tun0", modeP2P)
		w.everyAttribute(op)
		w.everyMistake(op)
		all = append(all, w)
	}
	all = append(all, keyDirections(p))
	return all
}

// everyAttribute sends each number there is, alone, with a valid content if there is any.
func (w *writer) everyAttribute(op operation) {
	for kind := range uint16(6) {
		if kind == attrIfindex {
			continue
		}
		for _, a := range []attr{u32(kind, 1), nest(kind)} {
			w.on("tun0", fmt.Sprintf("V1/V7: %s, attribute %#x", op.name, a.kind), op.cmd, a)
			w.on("tun0", fmt.Sprintf("V1/V7: %s, attribute %#x after a good one", op.name, a.kind), op.cmd,
				nest(op.nest, u32(1, 5)), a)
		}
	}
	for kind := range uint16(len(op.formats) + 3) {
		value := make([]byte, 4)
		if int(kind) < len(op.formats) && kind > 0 {
			f := op.formats[kind]
			value = make([]byte, f.size)
			if f.size == 2 {
				value[1] = 1
			}
		}
		w.on("tun0", fmt.Sprintf("V1/V7: %s, attribute %d of the nest", op.name, kind), op.cmd,
			nest(op.nest, u32(1, 5), data(kind, value...)))
		w.on("tun0", fmt.Sprintf("V1/V7: %s, attribute %d alone in the nest", op.name, kind), op.cmd,
			nest(op.nest, data(kind, value...)))
	}
	for _, kind := range []uint16{0x3fff, 0x1fff, 0x100} {
		w.on("tun0", fmt.Sprintf("V1: %s, attribute %#x of the nest", op.name, kind), op.cmd,
			nest(op.nest, u32(1, 5), u32(kind, 1)))
	}
}

// everyMistake breaks the rules about lengths, flags and values with every attribute.
func (w *writer) everyMistake(op operation) {
	send := func(rule string, f format, a attr) {
		w.on("tun0", fmt.Sprintf("%s: %s, %s", rule, op.name, f.name), op.cmd, nest(op.nest, u32(1, 5), a))
	}
	for kind, f := range op.formats {
		kind := uint16(kind)
		switch {
		case f.nest:
			send("V3", f, data(kind))
			send("V3", f, u32(kind, 0))
			send("empty nest", f, nest(kind))
			for n := 1; n <= 3; n++ {
				send(fmt.Sprintf("V6 with %d bytes", n), f, bytesOf(kind|nested, n))
			}
		case f.size > 0:
			for _, n := range []int{0, 1, 2, 3, 4, 5, 8, 15, 17, 20} {
				if n != f.size {
					send(fmt.Sprintf("V2/V5/V9 with %d bytes", n), f, bytesOf(kind, n))
				}
			}
			send("V4", f, bytesOf(kind|nested, f.size))
			send("V4 and V2", f, bytesOf(kind|nested, f.size-1))
			flagged := bytesOf(kind|netByteOrder, f.size)
			flagged.value[f.size-1] = 1
			send("net byte order flag", f, flagged)
			for _, value := range f.values {
				send(fmt.Sprintf("V8 with %x", value), f, data(kind, value...))
			}
		}
	}
	id := u32(1, 5)
	// The message's own attributes.
	for _, n := range []int{0, 1, 3, 5, 8} {
		w.do(fmt.Sprintf("V2: %s, ifindex of %d bytes", op.name, n), op.cmd, bytesOf(attrIfindex, n), nest(op.nest, id))
	}
	w.do("V4: "+op.name+", ifindex", op.cmd, bytesOf(attrIfindex|nested, 4), nest(op.nest, id))
	w.on("tun0", "V3: "+op.name+", nest", op.cmd, attr{kind: op.nest, kids: []attr{id}})
	for n := range 4 {
		w.on("tun0", fmt.Sprintf("V6: %s, nest of %d bytes", op.name, n), op.cmd, bytesOf(op.nest|nested, n))
	}
	w.on("tun0", "net byte order flag: "+op.name+", nest", op.cmd, nest(op.nest|netByteOrder, id))
	// V10
	for n := 1; n < 8; n++ {
		w.on("tun0", fmt.Sprintf("V10: %s, %d zeros behind", op.name, n), op.cmd, nest(op.nest, id), junk(make([]byte, n)...))
		w.on("tun0", fmt.Sprintf("V10: %s, %d zeros in the nest", op.name, n), op.cmd, nest(op.nest, id, junk(make([]byte, n)...)))
	}
	for _, size := range []uint16{1, 2, 3, 9, 200} {
		wrong := u32(1, 5)
		wrong.size = size
		w.on("tun0", fmt.Sprintf("V10: %s, length %d in the nest", op.name, size), op.cmd, nest(op.nest, wrong))
		wrong = nest(op.nest, id)
		wrong.size = size + 8
		w.on("tun0", fmt.Sprintf("V10: %s, length %d of the nest", op.name, size+8), op.cmd, wrong)
	}
	// Order and repetition.
	w.on("tun0", op.name+": the last of two ids counts", op.cmd, nest(op.nest, u32(1, 6), u32(1, 7)))
	w.on("tun0", op.name+": a bad id before a good one", op.cmd, nest(op.nest, u32(1, 1<<31), u32(1, 7)))
	w.on("tun0", op.name+": the last of two nests counts", op.cmd, nest(op.nest, u32(1, 6)), nest(op.nest, u32(1, 7)))
	w.on("tun0", op.name+": the last of two nests is empty", op.cmd, nest(op.nest, id), nest(op.nest))
	w.do(op.name+": the last of two interfaces counts", op.cmd, u32(attrIfindex, 9999), ifindexOf("tun0"), nest(op.nest, id))
	w.do(op.name+": the interface last", op.cmd, nest(op.nest, id), ifindexOf("tun0"))
	w.do("V8 before I1: "+op.name, op.cmd, nest(op.nest, u32(1, 1<<31)))
	w.do("V1 before I2: "+op.name, op.cmd, u32(attrIfindex, 9999), nest(op.nest, u32(60, 0)))
	last := u32(1, 5)
	last.value, last.tight = last.value[:4], true
	w.on("tun0", op.name+": no attributes but the interface", op.cmd)
	w.do(op.name+": no attributes", op.cmd)
	w.send(op.name+": only some of the flags", control, message{
		flags: unix.NLM_F_REQUEST, body: []byte{op.cmd, 1, 0, 0}, attrs: []attr{ifindexOf("tun0"), nest(op.nest, last)},
	})
}

// keyDirections breaks the rules inside a key's directions.
func keyDirections(p profile) *writer {
	w := newSequence("policy of a key direction", p)
	w.link("tun0", modeP2P)
	for _, dir := range []uint16{keyEncrypt, keyDecrypt} {
		send := func(rule string, inside ...attr) {
			w.on("tun0", fmt.Sprintf("%s: direction %d", rule, dir), keyNew,
				keyconf(u32(keyPeerID, 5), u32(keySlot, 0), u32(keyID, 0), u32(keyCipher, 1), nest(dir, inside...)))
		}
		for kind := range uint16(5) {
			send(fmt.Sprintf("V1: attribute %d", kind), bytesOf(kind, 8))
		}
		for _, n := range []int{0, 1, 16, 255, 256, 257, 1000} {
			send(fmt.Sprintf("V9: key of %d bytes", n), bytesOf(dirKey, n))
		}
		for _, n := range []int{0, 1, 7, 9, 12} {
			send(fmt.Sprintf("V9: tail of %d bytes", n), bytesOf(dirTail, n))
		}
		send("V4: key", bytesOf(dirKey|nested, 32))
		send("V4: tail", bytesOf(dirTail|nested, 8))
		send("V4 and V9: tail", bytesOf(dirTail|nested, 7))
		send("net byte order flag: key", bytesOf(dirKey|netByteOrder, 32))
		send("V10: zeros behind", bytesOf(dirKey, 32), junk(0, 0, 0))
		send("V10: zeros behind both", bytesOf(dirKey, 32), bytesOf(dirTail, 8), junk(0, 0))
		send("both", bytesOf(dirKey, 32), bytesOf(dirTail, 8))
	}
	return w
}

// interfaceSequences are about the rules I1 to I3.
func interfaceSequences(p profile) []*writer {
	w := newSequence("interface", p)
	w.link("tun0", modeP2P)
	for _, op := range operations {
		valid := nest(op.nest, u32(1, 5))
		w.do("I1: "+op.name, op.cmd, valid)
		for _, index := range []uint32{0, 9999, 1<<31 - 1, 1 << 31, 1<<32 - 1} {
			w.do(fmt.Sprintf("I2: %s, ifindex %d", op.name, index), op.cmd, u32(attrIfindex, index), valid)
		}
		w.do("I3: "+op.name, op.cmd, u32(attrIfindex, 1), valid)
		w.do("I3, attributes swapped: "+op.name, op.cmd, valid, u32(attrIfindex, 1))
		w.do("I2 before the missing nest: "+op.name, op.cmd, u32(attrIfindex, 9999))
	}
	w.send("delete tun0", route, linkMessage(unix.RTM_DELLINK, do, "tun0"))
	for _, op := range operations {
		w.on("tun0", "I2: "+op.name+", deleted interface", op.cmd, nest(op.nest, u32(1, 5)))
	}
	w.dump("I2: dump, deleted interface", "tun0")
	return []*writer{w}
}
