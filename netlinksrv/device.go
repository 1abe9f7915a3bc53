package netlinksrv

import (
	"os"

	"ovpn-go/crypto"
	"ovpn-go/datapath"
	"ovpn-go/peers"
	"ovpn-go/tun/netns"
)

// device is what the server needs of a *datapath.Device. Tests have one in memory.
type device interface {
	Name() string
	Ifindex() int
	Place() (ns netns.ID, ifindex int)
	Mode() peers.Mode
	Done() <-chan struct{}
	Close() error
	Teardown()

	SocketProtocol(*os.File) (int, error)
	NewPeer(datapath.PeerConfig) error
	SetPeer(id uint32, up datapath.PeerUpdate) error
	DeletePeer(id uint32) error
	Peer(id uint32) (datapath.PeerInfo, error)
	Peers() []datapath.PeerInfo

	InstallKey(peerID uint32, slot crypto.Slot, key crypto.KeyConfig) error
	Key(peerID uint32, slot crypto.Slot) (datapath.KeyInfo, error)
	SwapKeys(peerID uint32) error
	DeleteKey(peerID uint32, slot crypto.Slot) error
}

func openDevice(cfg datapath.Config) (device, error) {
	d, err := datapath.New(cfg)
	if err != nil {
		// Not d: a nil *Device in an interface is not a nil interface.
		return nil, err
	}
	return d, nil
}
