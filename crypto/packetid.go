package crypto

import "math"

// lastPacketID is the last id a key may use. Every id is half of a nonce, so it must never come
// again under the same key.
const lastPacketID = math.MaxUint32

// Reserve takes up to n packet ids, n > 0, for the caller alone: first, first+1, ... and granted of
// them. It takes one atomic add, whatever n is.
//
// Ids run from 1 to 0xffffffff without gap or repetition. When fewer than n are left the caller
// gets those that are, and from then on granted is 0 for everybody: the key is exhausted for good.
func (k *Key) Reserve(n int) (first uint32, granted int) {
	if n <= 0 {
		return 0, 0
	}
	// The counter is wider than an id and overshoots the last id instead of wrapping. The bound on
	// n and the look before the add keep it from ever overshooting far enough to wrap as well.
	want := min(uint64(n), lastPacketID)
	if k.sealing.taken.Load() >= lastPacketID {
		return 0, 0
	}
	end := k.sealing.taken.Add(want)
	before := end - want
	if before >= lastPacketID {
		return 0, 0
	}
	return uint32(before + 1), int(min(end, lastPacketID) - before)
}

// ReportExhaustion returns true to its first caller and false to all others. Who finds that Reserve
// grants nothing calls it to learn whether to be the one that removes and announces the key.
func (k *Key) ReportExhaustion() bool {
	return !k.sealing.reported.Swap(true)
}
