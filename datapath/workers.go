package datapath

import (
	"fmt"

	"ovpn-go/peers"
)

// MaxWorkers is how many workers a device can have.
const MaxWorkers = 64

// workersFor returns the number of workers of a device, where asked is what its Config says and procs how many
// goroutines may run at once.
//
// Up to four processors one worker is enough: the others are busy with the two network stacks that the packets cross
// and with whoever sends and receives them. Beyond, half of them are workers, and up to maxAutomatic as more
// have not been measured. A P2P device has one peer, whose packets come in at one worker whatever their number.
func workersFor(asked int, mode peers.Mode, procs int) (int, error) {
	const (
		enoughForOne = 4
		maxAutomatic = 8
	)
	switch {
	case asked < 0 || asked > MaxWorkers:
		return 0, fmt.Errorf("%d workers: must be 1 to %d, or 0 for as many as suit", asked, MaxWorkers)
	case asked > 0:
		return asked, nil
	case mode == peers.P2P || procs <= enoughForOne:
		return 1, nil
	}
	return min(procs/2, maxAutomatic), nil
}
