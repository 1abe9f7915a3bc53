package datapath

import (
	"ovpn-go/peers"
	"ovpn-go/tun"
	"ovpn-go/tun/netns"
)

// transport is how the device reaches one peer: a share in a UDP socket, or a TCP connection of its own.
type transport struct {
	udp *udpSocket
	tcp *tcpConn
	// adopted: tcp has been ours since an earlier peer, and stays so if the new one can't be added.
	adopted bool
	gso     gsoState // of the way to this peer
	path    path     // what fits on the way to this peer
}

// transportOf returns p's transport.
func transportOf(p *peers.Peer) *transport { return p.Transport().(*transport) }

// reaches reports whether there is somewhere to send to.
func (t *transport) reaches(binding *peers.Binding) bool { return t.tcp != nil || binding != nil }

// netns is the namespace of the client's socket.
func (t *transport) netns() *netns.NS {
	if t.tcp != nil {
		return t.tcp.ns
	}
	return t.udp.ns
}

func (t *transport) localPort() uint16 {
	if t.tcp != nil {
		return t.tcp.localPort
	}
	return t.udp.info.LocalPort
}

// clampMSS lowers the MSS option of a TCP SYN as Fit.MSS has it. A packet that does not fit is fragmented and
// loses the batch's speed; the kernel module leaves that to the user.
func (t *transport) clampMSS(packet []byte) {
	mss := t.path.mss4.Load()
	if packet[0]>>4 == 6 {
		mss = t.path.mss6.Load()
	}
	if mss != 0 {
		tun.ClampMSS(packet, uint16(mss))
	}
}
