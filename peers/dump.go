package peers

import (
	"math/bits"
	"slices"
)

// dumpOrder lists peers in the order in which the kernel dumps them: the order of its hash table
// of peer ids, which has 4096 buckets and puts new entries first. Its methods are serialised by
// the caller. The zero value is empty.
type dumpOrder struct {
	buckets [dumpBuckets][]*Peer // the newest last
}

const dumpBuckets = 4096 // the size of the tables in the kernel's struct ovpn_peer_collection

func (d *dumpOrder) add(p *Peer) {
	bucket := &d.buckets[dumpBucket(p.id)]
	*bucket = append(*bucket, p)
}

func (d *dumpOrder) remove(p *Peer) {
	bucket := &d.buckets[dumpBucket(p.id)]
	i := slices.Index(*bucket, p)
	*bucket = slices.Delete(*bucket, i, i+1)
}

// appendTo does not look at the peers themselves, which would cost a cache miss for each, with the
// table locked.
func (d *dumpOrder) appendTo(all []*Peer) []*Peer {
	for i := range d.buckets {
		for _, p := range slices.Backward(d.buckets[i]) {
			all = append(all, p)
		}
	}
	return all
}

// dumpBucket is the kernel's jhash of the id's four bytes, on a little-endian machine: the final
// mix of Bob Jenkins' lookup3.
func dumpBucket(id uint32) uint32 {
	const initial = 0xdeadbeef + 4
	a, b, c := initial+id, uint32(initial), uint32(initial)
	c ^= b
	c -= bits.RotateLeft32(b, 14)
	a ^= c
	a -= bits.RotateLeft32(c, 11)
	b ^= a
	b -= bits.RotateLeft32(a, 25)
	c ^= b
	c -= bits.RotateLeft32(b, 16)
	a ^= c
	a -= bits.RotateLeft32(c, 4)
	b ^= a
	b -= bits.RotateLeft32(a, 14)
	c ^= b
	c -= bits.RotateLeft32(b, 24)
	return c % dumpBuckets
}
