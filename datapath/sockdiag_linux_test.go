package datapath

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestParseDiag(t *testing.T) {
	msg := []byte{
		unix.AF_INET6, 7, 0, 0, // family, state, timer, retrans
		0x04, 0xaa, 0, 0, // source and destination port, big-endian
		0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, // source
		0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // destination
		3, 0, 0, 0, // interface
		1, 2, 3, 4, 5, 6, 7, 8, // cookie
		0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // expires, rqueue, wqueue, uid
		9, 0, 0, 0, // inode
		5, 0, inetDiagSKV6Only, 0, 1, 0, 0, 0,
	}
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("the literal is little-endian")
	}
	want := diagSocket{
		cookie:  0x0807060504030201,
		family:  unix.AF_INET6,
		local:   netip.MustParseAddrPort("[2001:db8::1]:1194"),
		ifindex: 3,
		inode:   9,
		v6only:  true,
	}
	got, ok := parseDiag(msg)
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(diagSocket{}), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" || !ok {
		t.Errorf("parseDiag (-want +got), %v:\n%s", ok, diff)
	}
	if _, ok := parseDiag(msg[:inetDiagMsgLen-1]); ok {
		t.Error("a truncated message was accepted")
	}
}

func FuzzParseDiag(f *testing.F) {
	f.Add(make([]byte, inetDiagMsgLen))
	f.Add(append(make([]byte, inetDiagMsgLen), 5, 0, inetDiagSKV6Only, 0, 1))
	f.Fuzz(func(t *testing.T, datagram []byte) {
		parseDiag(datagram)
		eachMessage(datagram, func(m nlMessage) { parseDiag(m.payload) })
	})
}
