package bench

import (
	"crypto/rand"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"

	"ovpn-go/crypto"
	"ovpn-go/datapath"
	"ovpn-go/peers"
)

// staticInterface is the name of each device; each is alone in its namespace.
const staticInterface = "ovpn0"

// StaticServerAddr is the server's address inside the tunnels of StaticDevices.
var StaticServerAddr = staticAddr(1)

// staticAddr is the address inside the tunnel: of the server for 1, of client i for 2 + i.
func staticAddr(host int) netip.Addr { return netip.AddrFrom4([4]byte{10, 8, 0, byte(host)}) }

// StaticDevices join the namespaces of a star by devices of ours in this very process, with random AES-256-GCM
// keys: what a controller does over netlink is done by calling the data path.
type StaticDevices struct {
	sockets *datapath.Sockets
	ends    []*staticEnd
}

// NewStaticDevices makes a device with so many workers in each of the star's namespaces, datapath's choice if 0.
func NewStaticDevices(star *Star, workers int) (*StaticDevices, error) {
	log := slog.New(slog.DiscardHandler)
	sockets, err := datapath.NewSockets(log)
	if err != nil {
		return nil, err
	}
	s := &StaticDevices{sockets: sockets}
	if err := s.join(star, workers, log); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *StaticDevices) join(star *Star, workers int, log *slog.Logger) error {
	for i, node := range append([]*Node{star.Server}, star.Clients...) {
		mode := peers.P2P
		if i == 0 {
			mode = peers.MP
		}
		end, err := openStatic(node, mode, 1+i, workers, s.sockets, log)
		if err != nil {
			return err
		}
		s.ends = append(s.ends, end)
	}
	for i := range star.Clients {
		err := joinStatic(s.ends[0], s.ends[1+i], uint32(i), star.ServerAddr4(i), star.ClientAddr4(i), staticAddr(2+i))
		if err != nil {
			return err
		}
	}
	return nil
}

// Close removes the devices.
func (s *StaticDevices) Close() error {
	var errs []error
	for _, e := range s.ends {
		errs = append(errs, e.close())
	}
	s.sockets.Close()
	return errors.Join(errs...)
}

// A staticEnd is one device of ours with the UDP socket of whoever controls it.
type staticEnd struct {
	node   *Node
	device *datapath.Device
	socket *os.File
	port   uint16
}

func (e *staticEnd) close() error { return errors.Join(e.device.Close(), e.socket.Close()) }

func openStatic(node *Node, mode peers.Mode, host, workers int, sockets *datapath.Sockets, log *slog.Logger) (*staticEnd, error) {
	socket, port, err := bindUDP(node)
	if err != nil {
		return nil, err
	}
	device, err := datapath.New(datapath.Config{
		Name: staticInterface, Mode: mode, NetNS: node.NS, Workers: workers, Sockets: sockets, Logger: log})
	if err != nil {
		return nil, errors.Join(err, socket.Close())
	}
	e := &staticEnd{node: node, device: device, socket: socket, port: port}
	err = node.AddAddr(staticInterface, netip.PrefixFrom(staticAddr(host), 24))
	if err == nil {
		err = node.SetUp(staticInterface)
	}
	if err != nil {
		return nil, errors.Join(err, e.close())
	}
	return e, nil
}

// bindUDP opens the controller's transport socket on a free port.
func bindUDP(node *Node) (socket *os.File, port uint16, err error) {
	var conn *net.UDPConn
	err = node.Do(func() (err error) {
		conn, err = net.ListenUDP("udp4", nil)
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	defer conn.Close()
	// The file is a duplicate, as the one that a control server takes from its client.
	socket, err = conn.File()
	if err != nil {
		return nil, 0, err
	}
	return socket, conn.LocalAddr().(*net.UDPAddr).AddrPort().Port(), nil
}

// joinStatic makes the two devices each other's peer under the given id, with a key for either
// direction.
func joinStatic(server, client *staticEnd, id uint32, serverAddr, clientAddr, vpn netip.Addr) error {
	up, err := randomDirection()
	if err != nil {
		return err
	}
	down, err := randomDirection()
	if err != nil {
		return err
	}
	for _, side := range []struct {
		end              *staticEnd
		remote           netip.AddrPort
		vpn              netip.Addr
		encrypt, decrypt crypto.Direction
	}{
		{server, netip.AddrPortFrom(clientAddr, client.port), vpn, down, up},
		{client, netip.AddrPortFrom(serverAddr, server.port), netip.Addr{}, up, down},
	} {
		err := side.end.device.NewPeer(datapath.PeerConfig{ID: id, TxID: id, Remote: side.remote, VPN4: side.vpn, Socket: side.end.socket})
		if err != nil {
			return err
		}
		err = side.end.device.InstallKey(id, crypto.Primary, crypto.KeyConfig{Cipher: crypto.AESGCM, Encrypt: side.encrypt, Decrypt: side.decrypt})
		if err != nil {
			return err
		}
	}
	return nil
}

// randomDirection makes an AES-256-GCM key and nonce tail.
func randomDirection() (crypto.Direction, error) {
	d := crypto.Direction{Key: make([]byte, 32)}
	if _, err := rand.Read(d.Key); err != nil {
		return crypto.Direction{}, err
	}
	_, err := rand.Read(d.NonceTail[:])
	return d, err
}
