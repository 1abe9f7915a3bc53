package datapath

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/chacha20poly1305"

	"ovpn-go/crypto"
	"ovpn-go/tun/tuntest"
)

// slowReceiver says what becomes of datagrams, one at a time and without any of the rooms' own means: ciphers from
// the library, packet ids in a map, peers in a list. It is made for packets that all come within one silence, over UDP.
type slowReceiver struct {
	peers     []*slowPeer
	delivered [][]byte          // inner packets, in order
	drops     map[string]uint64 // by the reason's label
}

type slowPeer struct {
	id               uint32
	from             netip.AddrPort
	addr4, addr6     netip.Addr
	keys             map[byte]*slowKey
	received, passed int // packets
}

type slowKey struct {
	aead    cipher.AEAD
	seen    map[uint32]bool
	highest uint32
}

func newSlowKey(t testing.TB, cfg crypto.KeyConfig) *slowKey {
	t.Helper()
	block, err := aes.NewCipher(cfg.Decrypt.Key)
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if cfg.Cipher == crypto.ChaCha20Poly1305 {
		aead, err = chacha20poly1305.New(cfg.Decrypt.Key)
	}
	if err != nil {
		t.Fatal(err)
	}
	return &slowKey{aead: aead, seen: map[uint32]bool{}}
}

// buffer takes a GRO buffer as the kernel fills it: datagrams of one length, and perhaps a shorter one.
func (r *slowReceiver) buffer(data []byte, stride int, from netip.AddrPort) {
	for len(data) > stride {
		r.datagram(data[:stride], from)
		data = data[stride:]
	}
	r.datagram(data, from)
}

func (r *slowReceiver) datagram(p []byte, from netip.AddrPort) {
	if reason := r.fate(p, from); reason != numDropReasons {
		r.drops[reason.String()]++
	}
}

// fate delivers a datagram or says why it is dropped; keepalives have no reason.
func (r *slowReceiver) fate(p []byte, from netip.AddrPort) DropReason {
	if len(p) < 4 {
		return DropRunt
	}
	switch p[0] >> 3 {
	case 9:
	case 6:
		return DropOpcode
	default:
		return DropClient // nobody is there to take it
	}
	peer := r.find(func(s *slowPeer) bool {
		id := binary.BigEndian.Uint32(p) & 0xffffff
		return s.id == id || id == 0xffffff && s.from == from
	})
	if peer == nil {
		return DropUnknownPeer
	}
	peer.received++
	key := peer.keys[p[0]&7]
	if key == nil {
		return DropUnknownKey
	}
	if len(p) < 24 {
		return DropRunt
	}
	nonce := append(bytes.Clone(p[4:8]), make([]byte, 8)...)
	inner, err := key.aead.Open(nil, nonce, append(bytes.Clone(p[24:]), p[8:24]...), p[:8])
	if err != nil {
		return DropAuthentication
	}
	id := binary.BigEndian.Uint32(p[4:])
	if id == 0 || key.seen[id] || id < key.highest && key.highest-id >= 2048 {
		return DropReplay
	}
	key.seen[id] = true
	key.highest = max(key.highest, id)

	var source netip.Addr
	switch {
	case len(inner) >= 20 && inner[0]>>4 == 4:
		source = netip.AddrFrom4([4]byte(inner[12:]))
	case len(inner) >= 40 && inner[0]>>4 == 6:
		source = netip.AddrFrom16([16]byte(inner[8:]))
	case bytes.Equal(inner, crypto.Keepalive[:]):
		return numDropReasons
	default:
		return DropInner
	}
	if r.find(func(s *slowPeer) bool { return s.addr4 == source || s.addr6 == source }) != peer {
		return DropReversePath
	}
	peer.passed++
	r.delivered = append(r.delivered, inner)
	return numDropReasons
}

func (r *slowReceiver) find(is func(*slowPeer) bool) *slowPeer {
	for _, p := range r.peers {
		if is(p) {
			return p
		}
	}
	return nil
}

// took takes a frame that the stack has got from what was delivered, and returns how many packets it held.
func (r *slowReceiver) took(t testing.TB, frame []byte) int {
	t.Helper()
	packets, err := tuntest.Segment(frame)
	if err != nil {
		t.Fatalf("the kernel refuses a frame of %d bytes: %v", len(frame), err)
	}
	for i, got := range packets {
		if len(r.delivered) == 0 {
			t.Fatalf("a packet too many: %x", got)
		}
		want := r.delivered[0]
		r.delivered = r.delivered[1:]
		if i > 0 {
			got, want = comparable4(got), comparable4(want)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("packet %d of %d (-model +delivered):\n%s", i, len(packets), cmp.Diff(want, got))
		}
	}
	return len(packets)
}
