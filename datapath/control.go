package datapath

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/crypto"
	"ovpn-go/peers"
	"ovpn-go/tun/netns"
)

var (
	// ErrNoKey says that a key slot is empty.
	ErrNoKey = errors.New("no key in slot")
	// ErrTCPRemote says that a remote address was given for a peer whose connection is its address.
	ErrTCPRemote = errors.New("a tcp peer has no remote address of its own")
)

// PeerConfig describes a peer to add.
type PeerConfig struct {
	ID   uint32 // in received packets; 0..crypto.MaxPeerID
	TxID uint32 // in sent packets; 0..crypto.MaxPeerID
	// Remote is the peer's transport address: unmapped, no zone.
	Remote  netip.AddrPort
	ScopeID uint32     // of an IPv6 link-local Remote
	Local   netip.Addr // source address towards the peer; invalid: routing chooses until one is learned
	// VPN4 and VPN6 are the peer's addresses inside the tunnel (MP only); invalid or unspecified: none.
	VPN4, VPN6 netip.Addr
	Keepalive  *peers.Keepalive // nil: off
	// Socket is a duplicate of the client's transport socket. NewPeer neither keeps nor closes it.
	Socket *os.File
	// Substitute puts another descriptor in place of a socket, known by its inode number, wherever the client has
	// it; it duplicates what it is given. It is called for TCP, where the connection becomes the device's and the
	// client finds its control packets on another socket, and once more when the connection becomes the client's again.
	Substitute func(inode uint64, file *os.File) error
}

// PeerUpdate is a change to a peer: what is invalid or nil stays as it is.
type PeerUpdate struct {
	// Remote replaces the whole binding, ScopeID and Local included.
	Remote  netip.AddrPort
	ScopeID uint32
	Local   netip.Addr
	TxID    *uint32
	// VPN4 and VPN6: an unspecified address clears that family.
	VPN4, VPN6 *netip.Addr
	// Keepalive restarts both timers, even with the same values.
	Keepalive *peers.Keepalive
}

// PeerInfo is a peer as a controller sees it.
type PeerInfo struct {
	ID, TxID    uint32
	VPN4, VPN6  netip.Addr // invalid: none
	Keepalive   peers.Keepalive
	TCP         bool
	Remote      netip.AddrPort // invalid for TCP
	ScopeID     uint32
	Local       netip.Addr // invalid: none
	LocalPort   uint16
	SocketNetNS *netns.NS // of the transport socket; borrowed, valid while the peer lives
	Stats       peers.Stats
	// Silence is how long ago the last genuine packet came, in whole seconds of boot time; negative if none has come.
	Silence time.Duration
}

// KeyInfo is a key as a controller sees it.
type KeyInfo struct {
	ID     uint8
	Cipher crypto.Cipher
	// Age is how long ago it was installed, in whole seconds of boot time.
	Age time.Duration
}

// NewPeer adds a peer; on a P2P device it takes the place of the one there is, which is removed with reason
// teardown. Errors: *AttachError, peers.ErrIDInUse, peers.ErrAddrInUse, ErrDeviceGone. On error nothing is changed.
func (d *Device) NewPeer(cfg PeerConfig) error {
	tr, client, err := d.sockets.newTransport(d, cfg.Socket)
	if err != nil {
		return err
	}
	if tr.udp != nil {
		d.measurePath(tr, cfg.Remote, cfg.ScopeID, bootSeconds())
	}
	if client != nil {
		defer client.Close()
		tr.tcp.substitute = cfg.Substitute
		if err = cfg.substitute(cfg.Socket, client); err != nil {
			// All that the client is told of this is a number.
			d.log.Warn("take over a client's connection", "peer", cfg.ID, "error", err)
		}
	}
	var replaced *peers.Peer
	if err == nil {
		gone := d.do(func() { replaced, err = d.add(cfg, tr) })
		err = errors.Join(gone, err)
	}
	if err != nil {
		if client != nil {
			// Even if the substitution is what failed: it may have come half the way.
			err = errors.Join(err, cfg.substitute(client, cfg.Socket))
		}
		d.releaseUnused(tr)
		return err
	}
	if replaced != nil {
		if conn := transportOf(replaced).tcp; conn != nil {
			d.restore(conn)
		}
	}
	d.events.drain()
	d.log.Info("peer added", "peer", cfg.ID, "remote", cfg.Remote, "vpn4", cfg.VPN4, "vpn6", cfg.VPN6)
	return nil
}

// substitute puts file in place of the client's socket.
func (cfg *PeerConfig) substitute(socket, file *os.File) error {
	if cfg.Substitute == nil {
		return attachError(unix.EOPNOTSUPP, errors.New("the client's descriptor can't be replaced"))
	}
	inode, err := inodeOf(socket)
	if err == nil {
		err = cfg.Substitute(inode, file)
	}
	if err != nil {
		return attachError(unix.EINVAL, fmt.Errorf("replace the client's descriptor: %w", err))
	}
	return nil
}

// add makes a peer of a transport that is ready, between turns, and returns the one that it replaces; on error nothing
// is changed.
func (d *Device) add(cfg PeerConfig, tr *transport) (replaced *peers.Peer, err error) {
	if tr.udp != nil {
		if err := tr.udp.poll(); err != nil {
			return nil, err
		}
	}
	if tr.tcp != nil {
		if tcpState(tr.tcp.state.Load()) != tcpPlain {
			return nil, attachError(unix.EBUSY, errors.New("the connection carries another peer, or nothing any more"))
		}
		if err := tr.tcp.start(d.owner(cfg.ID)); err != nil {
			return nil, err
		}
	}
	p := peers.New(peers.Config{ID: cfg.ID, TxID: cfg.TxID, VPN4: cfg.VPN4, VPN6: cfg.VPN6})
	p.SetTransport(tr)
	if tr.udp != nil {
		d.table.Rebind(p, &peers.Binding{Remote: cfg.Remote, ScopeID: cfg.ScopeID, Local: specified(cfg.Local)})
	}
	replaced, err = d.table.Add(p)
	if err != nil {
		if tr.tcp != nil && !tr.adopted {
			tr.tcp.unpoll() // what arrives is the client's, which is about to have the connection again
		}
		return nil, err
	}
	if tr.tcp != nil {
		tr.tcp.carry(p)
	}
	if replaced != nil {
		d.removed(replaced, peers.Teardown)
	}
	if cfg.Keepalive != nil {
		d.owner(cfg.ID).lifetimes.Set(p, *cfg.Keepalive, bootSeconds())
	}
	if d.mode == peers.P2P {
		d.setCarrier(true)
	}
	return replaced, nil
}

// releaseUnused gives back a transport that no peer came to use.
func (d *Device) releaseUnused(tr *transport) {
	if tr.adopted {
		return
	}
	d.exclusively(func() {
		if tr.tcp != nil {
			d.sockets.releaseTCP(tr.tcp)
		} else {
			d.sockets.release(tr.udp)
		}
	})
}

// SetPeer changes a peer. Errors: peers.ErrNotFound, peers.ErrAddrInUse, ErrTCPRemote, ErrDeviceGone. On error
// nothing is changed.
func (d *Device) SetPeer(id uint32, up PeerUpdate) (err error) {
	gone := d.do(func() {
		p := d.table.ByID(id)
		if p == nil {
			err = peers.ErrNotFound
			return
		}
		tr := transportOf(p)
		if up.Remote.IsValid() && tr.udp == nil {
			err = ErrTCPRemote
			return
		}
		if up.VPN4 != nil || up.VPN6 != nil {
			v4, v6 := p.VPN4(), p.VPN6()
			if up.VPN4 != nil {
				v4 = *up.VPN4
			}
			if up.VPN6 != nil {
				v6 = *up.VPN6
			}
			if err = d.table.SetVPN(p, v4, v6); err != nil {
				return
			}
		}
		if up.Remote.IsValid() {
			d.table.Rebind(p, &peers.Binding{Remote: up.Remote, ScopeID: up.ScopeID, Local: specified(up.Local)})
			tr.path.moved()
			d.measurePath(tr, up.Remote, up.ScopeID, bootSeconds())
		}
		if up.TxID != nil {
			p.SetTxID(*up.TxID)
		}
		if up.Keepalive != nil {
			d.owner(id).lifetimes.Set(p, *up.Keepalive, bootSeconds())
		}
	})
	return errors.Join(gone, err)
}

// measurePath sizes a transport for the way to remote. now is the boot-time second.
func (d *Device) measurePath(tr *transport, remote netip.AddrPort, scope uint32, now int64) {
	if err := tr.path.measure(tr.udp.probe, d.fit, remote, scope, now); err != nil {
		d.log.Debug("no path mtu", "error", err)
	}
}

// DeletePeer removes a peer (reason userspace). When it returns, the controller has been told and the peer's
// socket is the client's alone again. Errors: peers.ErrNotFound, ErrDeviceGone.
func (d *Device) DeletePeer(id uint32) (err error) {
	var conn *tcpConn
	gone := d.do(func() {
		p := d.table.ByID(id)
		if p == nil {
			err = peers.ErrNotFound
			return
		}
		conn = transportOf(p).tcp
		d.remove(p, peers.Userspace)
	})
	if err = errors.Join(gone, err); err != nil {
		return err
	}
	if conn != nil {
		d.restore(conn)
	}
	d.events.drain()
	return nil
}

// Peer describes one peer. Errors: peers.ErrNotFound, ErrDeviceGone.
func (d *Device) Peer(id uint32) (info PeerInfo, err error) {
	gone := d.do(func() {
		if p := d.table.ByID(id); p != nil {
			info = describe(p)
		} else {
			err = peers.ErrNotFound
		}
	})
	return info, errors.Join(gone, err)
}

// Peers describes all peers in the order in which the kernel lists them. It is empty when the device is gone.
func (d *Device) Peers() []PeerInfo {
	// Room for thousands of peers takes longer to make than to fill, and packets need not wait for it.
	infos := make([]PeerInfo, 0, d.table.Len())
	_ = d.do(func() {
		for _, p := range d.table.All() {
			infos = append(infos, describe(p))
		}
	})
	return infos
}

// describe runs between turns: all counters have been published then.
func describe(p *peers.Peer) PeerInfo {
	info := PeerInfo{
		ID: p.ID(), TxID: p.TxID(), VPN4: p.VPN4(), VPN6: p.VPN6(),
		Keepalive: p.Keepalive(), Stats: p.Counters.Stats(), Silence: -1,
	}
	if seen := p.LastSeen(); seen != 0 {
		info.Silence = since(seen)
	}
	tr := transportOf(p)
	info.TCP = tr.tcp != nil
	info.LocalPort = tr.localPort()
	info.SocketNetNS = tr.netns()
	if b := p.Binding(); b != nil {
		info.Remote, info.ScopeID, info.Local = b.Remote, b.ScopeID, b.Local
	}
	return info
}

// InstallKey puts a new key into a slot, in place of the one there. Errors: peers.ErrNotFound,
// crypto.ErrKeyLength, crypto.ErrUnsupportedCipher.
func (d *Device) InstallKey(peerID uint32, slot crypto.Slot, cfg crypto.KeyConfig) error {
	p := d.table.ByID(peerID)
	if p == nil {
		return peers.ErrNotFound
	}
	cfg.Born = bootSeconds()
	key, err := crypto.NewKey(cfg)
	if err != nil {
		return err
	}
	p.Keys.Install(slot, key)
	return nil
}

// Key describes the key in a slot. Errors: peers.ErrNotFound, ErrNoKey.
func (d *Device) Key(peerID uint32, slot crypto.Slot) (KeyInfo, error) {
	p := d.table.ByID(peerID)
	if p == nil {
		return KeyInfo{}, peers.ErrNotFound
	}
	key := p.Keys.At(slot)
	if key == nil {
		return KeyInfo{}, ErrNoKey
	}
	return KeyInfo{ID: key.ID(), Cipher: key.Cipher(), Age: since(key.Born())}, nil
}

// since returns how long ago a second of boot time was. A worker's clock may be a moment behind or ahead.
func since(boot int64) time.Duration {
	return time.Duration(max(bootSeconds()-boot, 0)) * time.Second
}

// SwapKeys makes the secondary key the primary one and the other way round, whether or not there are any. The
// error is peers.ErrNotFound.
func (d *Device) SwapKeys(peerID uint32) error {
	p := d.table.ByID(peerID)
	if p == nil {
		return peers.ErrNotFound
	}
	p.Keys.Swap()
	return nil
}

// DeleteKey empties a slot, which may be empty already. The error is peers.ErrNotFound.
func (d *Device) DeleteKey(peerID uint32, slot crypto.Slot) error {
	p := d.table.ByID(peerID)
	if p == nil {
		return peers.ErrNotFound
	}
	p.Keys.Delete(slot)
	return nil
}

// specified returns addr, or the invalid address for :: and 0.0.0.0.
func specified(addr netip.Addr) netip.Addr {
	if !addr.IsValid() || addr.IsUnspecified() {
		return netip.Addr{}
	}
	return addr
}
