package netlinksrv

import (
	"cmp"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/crypto"
	"ovpn-go/datapath"
	"ovpn-go/tun/netns"
)

// PeerStatus is what there is to know of a peer that the family has no words for. Times are whole seconds of boot time, which
// goes on while the machine sleeps.
type PeerStatus struct {
	ID uint32
	// Silence is how long ago the last genuine packet came; negative if none has come.
	Silence time.Duration
	Keys    []KeyStatus // of the slots that have one, the primary first
}

// KeyStatus is a key in its slot.
type KeyStatus struct {
	Slot crypto.Slot
	datapath.KeyInfo
}

// Status returns the status of peers of the interface with that index in ns: of those whose id is at least from the first, in the
// order of ids, limit at most. As for requests of the family, mayAdmin, which is Task's, must grant CAP_NET_ADMIN over ns. Errors: mayAdmin's,
// unix.ENODEV.
func (s *Server) Status(mayAdmin func(*netns.NS) error, ns *netns.NS, ifindex, from uint32, limit int) ([]PeerStatus, error) {
	if err := mayAdmin(ns); err != nil {
		return nil, err
	}
	l := s.linkAt(ns.ID(), ifindex)
	if l == nil {
		return nil, unix.ENODEV
	}
	infos := l.dev.Peers()
	infos = slices.DeleteFunc(infos, func(p datapath.PeerInfo) bool { return p.ID < from })
	slices.SortFunc(infos, func(a, b datapath.PeerInfo) int { return cmp.Compare(a.ID, b.ID) })
	status := make([]PeerStatus, 0, min(limit, len(infos)))
	for _, info := range infos[:min(limit, len(infos))] {
		p := PeerStatus{ID: info.ID, Silence: info.Silence}
		for _, slot := range []crypto.Slot{crypto.Primary, crypto.Secondary} {
			if key, err := l.dev.Key(info.ID, slot); err == nil {
				p.Keys = append(p.Keys, KeyStatus{slot, key})
			}
		}
		status = append(status, p)
	}
	return status, nil
}
