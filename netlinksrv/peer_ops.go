package netlinksrv

import (
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"

	"ovpn-go/datapath"
	"ovpn-go/netlinksrv/uapi"
	"ovpn-go/peers"
)

// newPeer is PEER_NEW.
func newPeer(r *request) ([]byte, error) {
	args := readPeer(r)
	if err := firstBroken(peerRules, args); err != nil {
		return nil, err
	}
	// N2
	if !args.has(uapi.PeerSocket) {
		return nil, missing(&r.inner, uapi.PeerSocket)
	}
	if args.mode == peers.MP {
		if err := firstBroken(vpnRules, args.vpn); err != nil {
			return nil, err
		}
	}
	// N4. The number is one of the process that sent the request. Whatever is wrong with the descriptor is
	// reported as ENOTSOCK; only the text tells more.
	fd := args.u32(uapi.PeerSocket)
	socket, err := r.task.File(int(int32(fd)))
	if err != nil {
		return nil, refuse(unix.ENOTSOCK, "cannot lookup peer socket (fd=%d): %d", fd, -int(errnoOf(err, unix.EBADF)))
	}
	defer socket.Close()
	protocol, err := r.device.SocketProtocol(socket)
	if err != nil {
		return nil, refuse(unix.ENOTSOCK, "cannot lookup peer socket (fd=%d): %d", fd, -int(errnoOf(err, unix.ENOTSOCK)))
	}
	if protocol == unix.IPPROTO_TCP && r.op.tcpRemote {
		args.remote, args.local = netip.Addr{}, netip.Addr{}
	}
	switch {
	case protocol == unix.IPPROTO_UDP && !args.remote.IsValid(): // N5
		return nil, refuse(unix.EINVAL, "missing remote IP address for UDP socket")
	case protocol == unix.IPPROTO_TCP && args.remote.IsValid(): // N6
		return nil, refuse(unix.EINVAL, "unexpected remote IP address with TCP socket")
	}

	id := args.u32(uapi.PeerID)
	err = r.device.NewPeer(datapath.PeerConfig{
		ID:        id,
		TxID:      args.txID(id),
		Remote:    args.endpoint(),
		ScopeID:   args.scopeID(),
		Local:     args.localAddr(),
		VPN4:      whenSet(args.vpn.v4),
		VPN6:      whenSet(args.vpn.v6),
		Keepalive: args.keepalive(),
		Socket:    socket,

		Substitute: r.task.Replace,
	})
	return nil, newPeerError(err, id)
}

// newPeerError is N3 and N7 to N11.
func newPeerError(err error, id uint32) error {
	if err == nil {
		return nil
	}
	var attach *datapath.AttachError
	if errors.As(err, &attach) {
		return refuse(unix.ENOTSOCK, "cannot encapsulate socket: %d", -int(attach.Errno))
	}
	for _, row := range []struct {
		is    error
		errno unix.Errno
	}{
		{datapath.ErrDeviceGone, unix.ENODEV},
		{peers.ErrIDInUse, unix.EEXIST},
		{peers.ErrAddrInUse, unix.EADDRINUSE},
	} {
		if errors.Is(err, row.is) {
			return refuse(row.errno, "cannot add new peer (id=%d) to hashtable: %d", id, -int(row.errno))
		}
	}
	errno := errnoOf(err, unix.EINVAL)
	return refuse(errno, "cannot create new peer object for peer %d: %d", id, -int(errno))
}

// setPeer is PEER_SET.
func setPeer(r *request) ([]byte, error) {
	args := readPeer(r)
	if err := firstBroken(peerRules, args); err != nil {
		return nil, err
	}
	id := args.u32(uapi.PeerID)
	now, err := r.device.Peer(id)
	if err != nil {
		return nil, setPeerError(err, id)
	}
	if now.TCP && args.remote.IsValid() {
		return nil, setPeerError(datapath.ErrTCPRemote, id)
	}
	if args.mode == peers.MP {
		if err := checkMergedVPN(r.device, id, now, args.vpn); err != nil {
			return nil, err
		}
	}
	up := datapath.PeerUpdate{
		Remote:    args.endpoint(),
		ScopeID:   args.scopeID(),
		Local:     args.localAddr(),
		VPN4:      pointerIfValid(args.vpn.v4),
		VPN6:      pointerIfValid(args.vpn.v6),
		Keepalive: args.keepalive(),
	}
	if args.has(uapi.PeerTxID) {
		tx := args.u32(uapi.PeerTxID)
		up.TxID = &tx
	}
	return nil, setPeerError(r.device.SetPeer(id, up), id)
}

// checkMergedVPN checks the addresses that a peer would have (S8). The kernel first looks whether the new ones
// belong to another peer (S6 and S7), which the device does when it is told to set them, and only then at this;
// so where this fails, the other has to be looked at here.
func checkMergedVPN(dev device, id uint32, now datapath.PeerInfo, given vpnAddrs) error {
	merged := vpnAddrs{now.VPN4, now.VPN6}
	if given.v4.IsValid() {
		merged.v4 = given.v4
	}
	if given.v6.IsValid() {
		merged.v6 = given.v6
	}
	err := firstBroken(vpnRules, merged)
	if err == nil {
		return nil
	}
	for _, other := range dev.Peers() {
		if other.ID != id && (isSet(given.v4) && other.VPN4 == given.v4 || isSet(given.v6) && other.VPN6 == given.v6) {
			return setPeerError(peers.ErrAddrInUse, id)
		}
	}
	return err
}

// setPeerError is S4 to S7.
func setPeerError(err error, id uint32) error {
	switch {
	case errors.Is(err, datapath.ErrTCPRemote):
		return refuse(unix.EINVAL, "unexpected remote IP address with TCP socket")
	case errors.Is(err, peers.ErrAddrInUse):
		return refuse(unix.EADDRINUSE, "VPN IP is already assigned to another peer")
	}
	return peerError(err, "cannot find peer with id %d", id)
}

// peerError is the refusal of a request for a peer that there isn't, in the words of format.
func peerError(err error, format string, id uint32) error {
	switch {
	case errors.Is(err, peers.ErrNotFound):
		return refuse(unix.ENOENT, format, id)
	case errors.Is(err, datapath.ErrDeviceGone):
		return refuse(unix.ENODEV, "ifindex does not match any interface")
	}
	return err
}

// getPeer is PEER_GET, not as a dump.
func getPeer(r *request) ([]byte, error) {
	id := r.inner.u32(uapi.PeerID)
	info, err := r.device.Peer(id)
	if err != nil {
		return nil, peerError(err, "cannot find peer with id %d", id)
	}
	return families[r.family].describe(r, &info, 0, newNamespaceIDs(r.socket.ns)), nil
}

// deletePeer is PEER_DEL. When it returns the client's socket is free again.
func deletePeer(r *request) ([]byte, error) {
	id := r.inner.u32(uapi.PeerID)
	return nil, peerError(r.device.DeletePeer(id), "cannot find peer with id %d", id)
}

// txID is the peer's own id unless another is given.
func (p *peerArgs) txID(id uint32) uint32 {
	if p.has(uapi.PeerTxID) {
		return p.u32(uapi.PeerTxID)
	}
	return id
}

func (p *peerArgs) endpoint() netip.AddrPort {
	if !p.remote.IsValid() {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(p.remote, p.get(uapi.PeerRemotePort).be16())
}

func (p *peerArgs) scopeID() uint32 {
	if p.has(uapi.PeerRemoteScopeID) {
		return p.u32(uapi.PeerRemoteScopeID)
	}
	return 0
}

// localAddr is invalid for 0.0.0.0 and :: as well.
func (p *peerArgs) localAddr() netip.Addr { return whenSet(p.local) }

func (p *peerArgs) keepalive() *peers.Keepalive {
	if !p.has(uapi.PeerKeepaliveInterval) {
		return nil
	}
	return &peers.Keepalive{Interval: p.u32(uapi.PeerKeepaliveInterval), Timeout: p.u32(uapi.PeerKeepaliveTimeout)}
}

func whenSet(addr netip.Addr) netip.Addr {
	if isSet(addr) {
		return addr
	}
	return netip.Addr{}
}

func pointerIfValid(addr netip.Addr) *netip.Addr {
	if addr.IsValid() {
		return &addr
	}
	return nil
}
