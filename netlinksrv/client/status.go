package client

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv/daemon/wire"
)

// ErrNoStatus says that nobody answers who could tell more of peers than the family has words for: only a daemon can.
var ErrNoStatus = errors.New("no daemon tells the status of peers")

// PeerStatus is what a daemon knows of a peer beside what the family tells.
type PeerStatus struct {
	// Silence is how long ago the last genuine packet came, in whole seconds; negative if none has come.
	Silence time.Duration

	ages map[heldKey]time.Duration
}

type heldKey struct {
	slot string
	id   uint8
}

// KeyAge returns how long ago a key of the peer was installed, in whole seconds; ok is false if the peer has no such key.
func (s PeerStatus) KeyAge(slot Slot, id uint8) (age time.Duration, ok bool) {
	age, ok = s.ages[heldKey{slot.String(), id}]
	return age, ok
}

// PeerStatus returns the status of an interface's peers, by id. The interface is in the network namespace of the calling thread,
// which must be the one that Dial was called in. The error is ErrNoStatus where the connection is not to a daemon, EPERM
// without CAP_NET_ADMIN over the namespace, ENODEV if the daemon has no such interface.
func (c *Conn) PeerStatus(ifindex int) (map[uint32]PeerStatus, error) {
	if c.kernel {
		return nil, ErrNoStatus
	}
	hello, err := wire.Find()
	if errors.Is(err, wire.ErrNoDaemon) {
		return nil, ErrNoStatus
	}
	if err != nil {
		return nil, err
	}
	defer hello.Close()
	request := wire.Request{Type: wire.TypeStatus, Ifindex: uint32(ifindex)}
	reply, _, err := beginHere(hello, request)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, ErrNoStatus // it is of a version that knew no such request
	}
	all := map[uint32]PeerStatus{}
	for ; err == nil && len(reply.Peers) > 0; reply, _, err = hello.Ask(request) {
		for _, p := range reply.Peers {
			all[p.ID] = statusOf(p)
		}
		request.From = reply.Peers[len(reply.Peers)-1].ID + 1
	}
	if err != nil {
		return nil, fmt.Errorf("status of peers: %w", err)
	}
	return all, nil
}

func statusOf(p wire.PeerStatus) PeerStatus {
	status := PeerStatus{Silence: -1, ages: map[heldKey]time.Duration{}}
	if p.LastSeen != nil {
		status.Silence = time.Duration(*p.LastSeen) * time.Second
	}
	for _, key := range p.Keys {
		status.ages[heldKey{key.Slot, key.ID}] = time.Duration(key.Age) * time.Second
	}
	return status
}
