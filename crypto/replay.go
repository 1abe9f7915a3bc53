package crypto

import "time"

const (
	// ReplayWindowSize is how many packet ids, counted back from the highest one, may still come
	// in (REPLAY_WINDOW_SIZE in the kernel's pktid.h).
	ReplayWindowSize = 2048
	// ReplayExpiry is how long a silence must be for the ids before it to be refused from then on
	// (PKTID_RECV_EXPIRE in the kernel's pktid.h).
	ReplayExpiry = 30 * time.Second

	replayWords = ReplayWindowSize / 64
)

// ReplayWindow tells packet ids that were not seen before from those that were, or that are too old
// to tell. The zero value is ready to use and has seen nothing. It is not safe for concurrent use.
//
// An id is too old when it is ReplayWindowSize or more below the highest accepted one, and also
// when it is not above what was the highest id before a silence of ReplayExpiry: late packets are a
// matter of milliseconds, so after such a silence only a replay can be that old.
type ReplayWindow struct {
	expire  int64  // when the silence has lasted long enough
	highest uint32 // highest accepted id
	floor   uint32 // this id and those below are refused
	// seen has one bit for each id of (highest-ReplayWindowSize, highest], at its remainder by
	// ReplayWindowSize.
	seen [replayWords]uint64
}

// Accept reports whether id is new and marks it as seen. now is in nanoseconds, not negative and
// from a clock that never goes back. An id that is refused changes nothing but, after a silence,
// the floor.
func (w *ReplayWindow) Accept(id uint32, now int64) bool {
	if id == 0 {
		return false
	}
	if now >= w.expire {
		w.floor = w.highest
	}
	if id > w.highest {
		w.advance(id)
	} else if w.highest-id >= ReplayWindowSize || id <= w.floor || w.isSeen(id) {
		return false
	}
	w.seen[id/64%replayWords] |= 1 << (id % 64)
	w.expire = now + int64(ReplayExpiry)
	return true
}

func (w *ReplayWindow) isSeen(id uint32) bool {
	return w.seen[id/64%replayWords]&(1<<(id%64)) != 0
}

// advance makes id the highest one and forgets what was known about the places of the ids that
// were skipped. Its own place still belongs to an older id and is the caller's to mark.
func (w *ReplayWindow) advance(id uint32) {
	skipped := w.highest + 1
	w.highest = id
	if id-skipped >= ReplayWindowSize-1 {
		w.seen = [replayWords]uint64{}
		return
	}
	for skipped != id {
		if skipped%64 == 0 && id-skipped >= 64 {
			w.seen[skipped/64%replayWords] = 0
			skipped += 64
			continue
		}
		w.seen[skipped/64%replayWords] &^= 1 << (skipped % 64)
		skipped++
	}
}
