package tun_test

import (
	"testing"

	"ovpn-go/tun/tuntest"
)

func TestCoalesceMergeRules(t *testing.T) {
	type edit struct {
		ip  tuntest.IP
		tcp tuntest.TCP
		udp tuntest.UDP
		n   int // payload bytes
	}
	const size = 500
	first4 := edit{
		ip:  tuntest.IP{Src: client4, Dst: server4, ID: 0xffff},
		tcp: tuntest.TCP{Src: 1, Dst: 2, Seq: 0xffffffff - 100, Ack: 9, Flags: tuntest.ACK, Window: 7, Options: []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}},
		udp: tuntest.UDP{Src: 1, Dst: 2}, n: size,
	}
	first6 := first4
	first6.ip.Src, first6.ip.Dst = client6, server6
	for _, row := range []struct {
		rule         string
		tcp, udp     bool // whether the second packet joins the first
		only4, only6 bool
		first        func(*edit)
		second       func(*edit)
		damage       int // offset from the second packet's end of a byte to change
	}{
		{rule: "continues", tcp: true, udp: true},
		{rule: "shorter", tcp: true, udp: true, second: func(e *edit) { e.n-- }},
		{rule: "longer", second: func(e *edit) { e.n++ }},
		{rule: "empty", second: func(e *edit) { e.n = 0 }},
		{rule: "first is empty", first: func(e *edit) { e.n = 0 }},
		{rule: "PSH ends the frame with the packet in it", tcp: true, udp: true, second: func(e *edit) { e.tcp.Flags |= tuntest.PSH }},
		{rule: "nothing follows PSH", udp: true, first: func(e *edit) { e.tcp.Flags |= tuntest.PSH }},
		{rule: "FIN", udp: true, second: func(e *edit) { e.tcp.Flags |= tuntest.FIN }},
		{rule: "SYN", udp: true, second: func(e *edit) { e.tcp.Flags |= tuntest.SYN }},
		{rule: "SYN first", udp: true, first: func(e *edit) { e.tcp.Flags |= tuntest.SYN }, second: func(e *edit) { e.tcp.Flags |= tuntest.SYN }},
		{rule: "RST", udp: true, second: func(e *edit) { e.tcp.Flags |= tuntest.RST }},
		{rule: "URG", udp: true, second: func(e *edit) { e.tcp.Flags |= tuntest.URG }},
		{rule: "URG on both", udp: true, first: func(e *edit) { e.tcp.Flags |= tuntest.URG }, second: func(e *edit) { e.tcp.Flags |= tuntest.URG }},
		{rule: "CWR on the second", udp: true, second: func(e *edit) { e.tcp.Flags |= tuntest.CWR }},
		{rule: "CWR on the first", udp: true, first: func(e *edit) { e.tcp.Flags |= tuntest.CWR }},
		{rule: "ECE on both", tcp: true, udp: true, first: func(e *edit) { e.tcp.Flags |= tuntest.ECE }, second: func(e *edit) { e.tcp.Flags |= tuntest.ECE }},
		{rule: "ECE on one", udp: true, second: func(e *edit) { e.tcp.Flags |= tuntest.ECE }},
		{rule: "no ACK", udp: true, second: func(e *edit) { e.tcp.Flags = 0 }},
		{rule: "other acknowledgement", udp: true, second: func(e *edit) { e.tcp.Ack++ }},
		{rule: "other window", udp: true, second: func(e *edit) { e.tcp.Window++ }},
		{rule: "other urgent pointer", udp: true, second: func(e *edit) { e.tcp.Urgent++ }},
		{rule: "gap in sequence", udp: true, second: func(e *edit) { e.tcp.Seq++ }},
		{rule: "repetition", udp: true, second: func(e *edit) { e.tcp.Seq -= size }},
		{rule: "other timestamp", udp: true, second: func(e *edit) { e.tcp.Options = []byte{1, 1, 8, 10, 0, 0, 0, 3, 0, 0, 0, 2} }},
		{rule: "fewer options", udp: true, second: func(e *edit) { e.tcp.Options = nil }},
		{rule: "other source port", second: func(e *edit) { e.tcp.Src++; e.udp.Src++ }},
		{rule: "other destination port", second: func(e *edit) { e.tcp.Dst++; e.udp.Dst++ }},
		{rule: "other source", second: func(e *edit) { e.ip.Src = e.ip.Src.Next() }},
		{rule: "other destination", second: func(e *edit) { e.ip.Dst = e.ip.Dst.Next() }},
		{rule: "other TOS, its ECN bits too", second: func(e *edit) { e.ip.TOS = 1 }},
		{rule: "other TTL", second: func(e *edit) { e.ip.TTL = 63 }},
		{rule: "other flow label", only6: true, second: func(e *edit) { e.ip.Flow = 1 }},
		{rule: "extension header", only6: true, second: func(e *edit) { e.ip.ExtensionType, e.ip.Extensions = 60, make([]byte, 8) }},
		{rule: "extension header on both", only6: true,
			first:  func(e *edit) { e.ip.ExtensionType, e.ip.Extensions = 60, make([]byte, 8) },
			second: func(e *edit) { e.ip.ExtensionType, e.ip.Extensions = 60, make([]byte, 8) }},
		{rule: "id does not count up", only4: true, second: func(e *edit) { e.ip.ID++ }},
		{rule: "id with DF means nothing", only4: true, tcp: true, udp: true,
			first:  func(e *edit) { e.ip.Fragment = tuntest.DontFragment },
			second: func(e *edit) { e.ip.Fragment, e.ip.ID = tuntest.DontFragment, 4711 }},
		{rule: "DF on one", only4: true, second: func(e *edit) { e.ip.Fragment = tuntest.DontFragment }},
		{rule: "reserved bit on one", only4: true, second: func(e *edit) { e.ip.Fragment = 0x8000 }},
		{rule: "fragment", only4: true, second: func(e *edit) { e.ip.Fragment = 0x2000 }},
		{rule: "fragments", only4: true, first: func(e *edit) { e.ip.Fragment = 0x2000 }, second: func(e *edit) { e.ip.Fragment = 0x2000 }},
		{rule: "IP options", only4: true, first: func(e *edit) { e.ip.Options = make([]byte, 4) }, second: func(e *edit) { e.ip.Options = make([]byte, 4) }},
		{rule: "no UDP checksum", only4: true, tcp: true,
			first:  func(e *edit) { e.udp.NoChecksum = true },
			second: func(e *edit) { e.udp.NoChecksum = true }},
		{rule: "no UDP checksum on the second", only4: true, tcp: true, second: func(e *edit) { e.udp.NoChecksum = true }},
		{rule: "damaged payload", damage: 1},
		{rule: "damaged IPv4 checksum", only4: true, damage: -11},
	} {
		for _, protocol := range []string{"TCP4", "TCP6", "UDP4", "UDP6"} {
			four, isTCP := protocol[3] == '4', protocol[:3] == "TCP"
			if row.only4 && !four || row.only6 && four {
				continue
			}
			t.Run(row.rule+" "+protocol, func(t *testing.T) {
				a := first4
				if !four {
					a = first6
				}
				b := a
				if row.first != nil {
					row.first(&a)
				}
				b.ip.ID++
				b.tcp.Seq += uint32(a.n)
				if row.second != nil {
					row.second(&b)
				}
				build := func(e edit) []byte {
					if isTCP {
						return e.ip.TCP(e.tcp, make([]byte, e.n))
					}
					return e.ip.UDP(e.udp, make([]byte, e.n))
				}
				p, q := build(a), build(b)
				if row.damage > 0 {
					q[len(q)-row.damage] ^= 1
				} else if row.damage < 0 {
					q[-row.damage] ^= 1
				}
				g := newGather(t)
				g.commit(p)
				g.commit(q)
				g.flush()
				want := 2
				if isTCP && row.tcp || !isTCP && row.udp {
					want = 1
				}
				if g.frames != want {
					t.Errorf("%d frames, want %d", g.frames, want)
				}
			})
		}
	}
}
