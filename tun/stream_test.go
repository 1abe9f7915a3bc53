package tun_test

import (
	"math/rand/v2"

	"ovpn-go/tun/tuntest"
)

// stream makes the packets of a flow that sometimes does what a flow may not.
type stream struct {
	random *rand.Rand
	ip     tuntest.IP
	tcp    tuntest.TCP
	udp    tuntest.UDP
	isTCP  bool
	size   int
}

func newStream(random *rand.Rand) *stream {
	s := &stream{
		random: random,
		ip:     tuntest.IP{Src: client4, Dst: server4, ID: uint16(random.Uint32())},
		tcp: tuntest.TCP{
			Src: uint16(random.IntN(3)), Dst: 443, Seq: random.Uint32(), Ack: 1, Flags: tuntest.ACK, Window: 512,
		},
		udp:   tuntest.UDP{Src: uint16(random.IntN(3)), Dst: 443},
		isTCP: random.IntN(2) == 0,
		size:  1 + random.IntN([]int{4, 600, 1400, 30000}[random.IntN(4)]),
	}
	if random.IntN(2) == 0 {
		s.ip.Src, s.ip.Dst = client6, server6
	} else if random.IntN(2) == 0 {
		s.ip.Fragment = tuntest.DontFragment
	}
	if random.IntN(2) == 0 {
		s.tcp.Options = randomBytes(random, 4*random.IntN(11))
	}
	if random.IntN(6) == 0 {
		s.ip.Options = []byte{148, 4, 0, 0} // router alert
		s.ip.ExtensionType, s.ip.Extensions = extension(random)
	}
	return s
}

// extension returns an IPv6 extension header: hop-by-hop options, routing, fragment, or destination options.
func extension(random *rand.Rand) (kind uint8, header []byte) {
	return []uint8{0, 43, 44, 60}[random.IntN(4)], append([]byte{0, 0}, randomBytes(random, 6)...)
}

// next returns the next packet. One in odds differs from what continues the flow.
func (s *stream) next(odds int) []byte {
	deviation := -1
	if s.random.IntN(odds) == 0 {
		deviation = s.random.IntN(deviations)
	}
	return s.deviate(deviation)
}

// deviations is the number of ways in which a packet may differ from what continues its flow.
const deviations = 22

// deviate returns a packet that differs in one way, or continues the flow if there is no such way.
func (s *stream) deviate(deviation int) []byte {
	ip, tcp, udp, size := s.ip, s.tcp, s.udp, s.size
	damage := false
	switch deviation {
	case 0:
		size = 1 + s.random.IntN(s.size)
	case 1:
		size = s.size + 1 + s.random.IntN(100)
	case 2:
		size = 0
	case 3:
		tcp.Flags |= tuntest.PSH
	case 4:
		tcp.Flags = uint8(s.random.Uint32())
	case 5:
		tcp.Flags |= tuntest.ECE
	case 6:
		tcp.Flags |= tuntest.CWR
	case 7:
		tcp.Ack++
	case 8:
		tcp.Window++
	case 9:
		tcp.Urgent++
	case 10:
		tcp.Seq += uint32(s.random.IntN(3)) - 1
	case 11:
		tcp.Options = randomBytes(s.random, 4*s.random.IntN(11))
	case 12:
		ip.TOS++
	case 13:
		ip.TTL = 1
	case 14:
		ip.ID += 5
	case 15:
		ip.Flow = 77
	case 16:
		ip.Fragment ^= []uint16{0x8000, tuntest.DontFragment, 0x2000, 0x0001}[s.random.IntN(4)]
	case 17:
		ip.Options = []byte{1, 1, 1, 0}
	case 18:
		ip.ExtensionType, ip.Extensions = extension(s.random)
	case 19:
		udp.NoChecksum = true
	case 20:
		damage = true
	case 21:
		return randomBytes(s.random, 1+s.random.IntN(100))
	}
	var p []byte
	if s.isTCP {
		p = ip.TCP(tcp, randomBytes(s.random, size))
		s.tcp.Seq += uint32(size)
	} else {
		p = ip.UDP(udp, randomBytes(s.random, size))
	}
	s.ip.ID++
	if damage {
		p[s.random.IntN(len(p))] ^= 1 << s.random.IntN(8)
	}
	return p
}
