package datapath

import (
	"encoding/binary"
	"errors"
	"os"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"ovpn-go/peers"
	"ovpn-go/tun/netns"
)

// nftConn is a connection to nf_tables in a namespace.
type nftConn struct{ *netlink.Conn }

// dropOutput makes a namespace drop whatever is sent in it, loopback included.
func dropOutput(t *testing.T, ns *netns.NS) nftConn {
	t.Helper()
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: int(ns.File().Fd())})
	if errors.Is(err, unix.EPROTONOSUPPORT) && os.Getenv("OVPN_GO_REQUIRE") == "" {
		t.Skip("the kernel has no nf_tables")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	const create = netlink.Request | netlink.Acknowledge | netlink.Create
	_, err = conn.SendMessages([]netlink.Message{
		nftMessage(t, unix.NFNL_MSG_BATCH_BEGIN, netlink.Request, nil),
		nftMessage(t, nftType(unix.NFT_MSG_NEWTABLE), create, func(ae *netlink.AttributeEncoder) {
			ae.String(unix.NFTA_TABLE_NAME, "test")
		}),
		nftMessage(t, nftType(unix.NFT_MSG_NEWCHAIN), create, func(ae *netlink.AttributeEncoder) {
			ae.String(unix.NFTA_CHAIN_TABLE, "test")
			ae.String(unix.NFTA_CHAIN_NAME, "output")
			ae.String(unix.NFTA_CHAIN_TYPE, "filter")
			ae.Nested(unix.NFTA_CHAIN_HOOK, func(ae *netlink.AttributeEncoder) error {
				ae.Uint32(unix.NFTA_HOOK_HOOKNUM, unix.NF_INET_LOCAL_OUT)
				ae.Uint32(unix.NFTA_HOOK_PRIORITY, 0)
				return nil
			})
			ae.Uint32(unix.NFTA_CHAIN_POLICY, 0) // NF_DROP
			ae.Nested(unix.NFTA_CHAIN_COUNTERS, func(ae *netlink.AttributeEncoder) error {
				ae.Uint64(unix.NFTA_COUNTER_BYTES, 0)
				ae.Uint64(unix.NFTA_COUNTER_PACKETS, 0)
				return nil
			})
		}),
		nftMessage(t, unix.NFNL_MSG_BATCH_END, netlink.Request, nil),
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // table and chain
		if _, err := conn.Receive(); err != nil {
			t.Fatalf("create a chain that drops: %v", err)
		}
	}
	return nftConn{conn}
}

func nftType(msg int) netlink.HeaderType {
	return netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | msg)
}

func nftMessage(t *testing.T, typ netlink.HeaderType, flags netlink.HeaderFlags, attrs func(*netlink.AttributeEncoder)) netlink.Message {
	t.Helper()
	ae := netlink.NewAttributeEncoder()
	ae.ByteOrder = binary.BigEndian
	if attrs != nil {
		attrs(ae)
	}
	b, err := ae.Encode()
	if err != nil {
		t.Fatal(err)
	}
	family, resource := byte(unix.NFPROTO_IPV4), byte(0)
	if attrs == nil {
		family, resource = unix.NFPROTO_UNSPEC, unix.NFNL_SUBSYS_NFTABLES
	}
	return netlink.Message{
		Header: netlink.Header{Type: typ, Flags: flags},
		Data:   append([]byte{family, unix.NFNETLINK_V0, 0, resource}, b...), // struct nfgenmsg
	}
}

// dropped is how many packets the chain has dropped.
func (c nftConn) dropped(t *testing.T) (packets uint64) {
	t.Helper()
	answers, err := c.Execute(nftMessage(t, nftType(unix.NFT_MSG_GETCHAIN), netlink.Request, func(ae *netlink.AttributeEncoder) {
		ae.String(unix.NFTA_CHAIN_TABLE, "test")
		ae.String(unix.NFTA_CHAIN_NAME, "output")
	}))
	if err != nil || len(answers) != 1 {
		t.Fatalf("read the chain: %d answers, %v", len(answers), err)
	}
	// Behind struct nfgenmsg.
	ad, err := netlink.NewAttributeDecoder(answers[0].Data[4:])
	if err != nil {
		t.Fatal(err)
	}
	ad.ByteOrder = binary.BigEndian
	for ad.Next() {
		if ad.Type() == unix.NFTA_CHAIN_COUNTERS {
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					if ad.Type() == unix.NFTA_COUNTER_PACKETS {
						packets = ad.Uint64()
					}
				}
				return nil
			})
		}
	}
	if err := ad.Err(); err != nil {
		t.Fatal(err)
	}
	return packets
}

// TestPacketFilterSeesEveryRefusedDatagram: its counters must say what they would with the kernel's device,
// which hands it one packet at a time.
func TestPacketFilterSeesEveryRefusedDatagram(t *testing.T) {
	ns := freshNS(t)
	filter := dropOutput(t, ns)
	s := newStage(t)
	p := s.dev.table.Sole()
	client := udpSocketIn(t, ns, unix.AF_INET, func(int) error { return nil })
	p.SetTransport(&transport{udp: &udpSocket{owner: s.dev, lanes: []source{{fd: rawFD(t, client)}}, info: udpInfo{Family: unix.AF_INET}}})
	s.dev.table.Rebind(p, &peers.Binding{Remote: s.from})

	const frames = 3
	for range frames {
		s.tx.transmit(superFrame())
		s.tx.flush()
	}
	if got, want := filter.dropped(t), uint64(frames*stageSegments); got != want {
		t.Errorf("the packet filter counted %d packets, want %d", got, want)
	}
	if got := s.dev.Stats().Drops[DropSend.String()]; got != frames*stageSegments {
		t.Errorf("%d datagrams counted as refused, want %d", got, frames*stageSegments)
	}
}
