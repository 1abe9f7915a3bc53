package hold

import (
	"fmt"
	"net"
	"net/netip"
)

// Connect opens a TCP connection to remote for a peer of the interface, from local as far as that says anything, and starts a holder
// for it as Acquire does. The peer is added between Connect and Keep.
func Connect(path string, local, remote netip.AddrPort, ifindex int, peer uint32) (*Claim, error) {
	conn, err := net.DialTCP("tcp", net.TCPAddrFromAddrPort(likeRemote(local, remote)), net.TCPAddrFromAddrPort(remote))
	if err != nil {
		return nil, err
	}
	return adopt(path, conn, ifindex, peer)
}

// Accept waits at local for a TCP connection, takes the first that comes for a peer of the interface, and starts a holder for it
// as Acquire does. The peer is added between Accept and Keep.
func Accept(path string, local netip.AddrPort, ifindex int, peer uint32) (*Claim, error) {
	listener, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(local))
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	conn, err := listener.AcceptTCP()
	if err != nil {
		return nil, err
	}
	return adopt(path, conn, ifindex, peer)
}

// likeRemote makes the address that stands for every one, which by default is IPv6's, one of the remote address's family.
func likeRemote(local, remote netip.AddrPort) netip.AddrPort {
	if local.Addr().IsUnspecified() && remote.Addr().Is4() {
		return netip.AddrPortFrom(netip.IPv4Unspecified(), local.Port())
	}
	return local
}

// adopt hands a connection to a holder of its own and closes it here.
func adopt(path string, conn *net.TCPConn, ifindex int, peer uint32) (*Claim, error) {
	defer conn.Close()
	ends := fmt.Sprintf("%v-%v", conn.LocalAddr(), conn.RemoteAddr())
	socket, err := conn.File()
	if err != nil {
		return nil, err
	}
	holder := &net.UnixAddr{Name: "@ovpn-go/tcp/" + ends, Net: "unixpacket"}
	if err := start(path, holder, socket); err != nil {
		return nil, fmt.Errorf("hold the connection %s: %w", ends, err)
	}
	held, err := dial(holder)
	if err != nil {
		return nil, fmt.Errorf("reach the holder of %s: %w", ends, err)
	}
	c := &Claim{conn: held}
	if err := c.ask(claim{ifindex, peer}); err != nil {
		held.Close()
		return nil, fmt.Errorf("ask the holder of %s: %w", ends, err)
	}
	return c, nil
}
