package peers

import "math/bits"

// dumpOrder lists peers in the order in which the kernel dumps them: the order of its hash table
// of peer ids, which has 4096 buckets and puts new entries first. Its methods are serialised by
// the caller. The zero value is empty.
type dumpOrder struct {
	buckets [dumpBuckets]*Peer
}

const dumpBuckets = 4096 // the size of struct ovpn_peer_collection's tables in the kernel

// dumpLinks chains the peers of a bucket.
type dumpLinks struct{ prev, next *Peer }

func (d *dumpOrder) add(p *Peer) {
	first := &d.buckets[dumpBucket(p.id)]
	p.dump = dumpLinks{next: *first}
	if p.dump.next != nil {
		p.dump.next.dump.prev = p
	}
	*first = p
}

func (d *dumpOrder) remove(p *Peer) {
	links := p.dump
	p.dump = dumpLinks{}
	if links.next != nil {
		links.next.dump.prev = links.prev
	}
	if links.prev != nil {
		links.prev.dump.next = links.next
	} else {
		d.buckets[dumpBucket(p.id)] = links.next
	}
}

func (d *dumpOrder) appendTo(all []*Peer) []*Peer {
	for _, p := range d.buckets {
		for ; p != nil; p = p.dump.next {
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
