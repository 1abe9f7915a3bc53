package datapath

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"ovpn-go/tun/netns"
)

// Layout of inet_diag messages (linux/inet_diag.h).
const (
	sockDiagByFamily  = 20 // SOCK_DIAG_BY_FAMILY
	inetDiagReqLen    = 56 // struct inet_diag_req_v2
	inetDiagMsgLen    = 72 // struct inet_diag_msg
	inetDiagSKV6Only  = 11 // INET_DIAG_SKV6ONLY
	inetDiagAllStates = 0xffffffff
)

// diagSocket is what inet_diag says of a socket.
type diagSocket struct {
	cookie  uint64
	family  int
	local   netip.AddrPort // an AF_INET6 socket's IPv4 address stays mapped
	ifindex uint32         // SO_BINDTODEVICE
	inode   uint32         // 0: no file refers to the socket any more
	v6only  bool
}

// parseDiag reads a struct inet_diag_msg and its attributes.
func parseDiag(payload []byte) (s diagSocket, ok bool) {
	if len(payload) < inetDiagMsgLen {
		return s, false
	}
	s.family = int(payload[0])
	port := binary.BigEndian.Uint16(payload[4:])
	addr := netip.AddrFrom16([16]byte(payload[8:24]))
	if s.family == unix.AF_INET {
		addr = netip.AddrFrom4([4]byte(payload[8:12]))
	}
	s.local = netip.AddrPortFrom(addr, port)
	s.ifindex = binary.NativeEndian.Uint32(payload[40:])
	s.cookie = uint64(binary.NativeEndian.Uint32(payload[44:])) | uint64(binary.NativeEndian.Uint32(payload[48:]))<<32
	s.inode = binary.NativeEndian.Uint32(payload[68:])
	eachAttribute(payload[inetDiagMsgLen:], func(typ uint16, value []byte) {
		if typ == inetDiagSKV6Only && len(value) == 1 {
			s.v6only = value[0] != 0
		}
	})
	return s, true
}

// dumpSockets lists the UDP or TCP sockets of one family in ns that are bound to port, or to any port if it
// is 0. Sockets that have no port are not listed by the kernel.
func dumpSockets(ns *netns.NS, proto, family int, port uint16) ([]diagSocket, error) {
	req := make([]byte, inetDiagReqLen)
	req[0], req[1] = byte(family), byte(proto)
	binary.NativeEndian.PutUint32(req[4:], inetDiagAllStates)
	binary.BigEndian.PutUint16(req[8:], port)
	var socks []diagSocket
	err := dumpNetlink(ns, unix.NETLINK_SOCK_DIAG, sockDiagByFamily, req, func(m nlMessage) {
		if s, ok := parseDiag(m.payload); ok && m.typ == sockDiagByFamily {
			socks = append(socks, s)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list sockets: %w", err)
	}
	return socks, nil
}
