package tun

import (
	"encoding/binary"
	"math/bits"
)

// sum returns the one's complement sum of the big-endian 16-bit words of b (RFC 1071), folded to
// 16 bits but not complemented. An odd last byte counts as if a zero followed it. Sums of pieces
// that start at even offsets may be added with + and folded at the end.
//
// The words are added eight bytes at a time in little-endian order, which RFC 1071 section 2(B)
// allows because the result only has to be swapped once. Two accumulators with a carry chain each
// let the processor run both chains at once.
func sum(b []byte) uint32 {
	var even, odd, carry uint64
	n := len(b)
	for len(b) >= 128 {
		p := (*[128]byte)(b)
		even, carry = bits.Add64(even, binary.LittleEndian.Uint64(p[0:]), 0)
		even, carry = bits.Add64(even, binary.LittleEndian.Uint64(p[8:]), carry)
		even, carry = bits.Add64(even, binary.LittleEndian.Uint64(p[16:]), carry)
		even, carry = bits.Add64(even, binary.LittleEndian.Uint64(p[24:]), carry)
		even, carry = bits.Add64(even, binary.LittleEndian.Uint64(p[32:]), carry)
		even, carry = bits.Add64(even, binary.LittleEndian.Uint64(p[40:]), carry)
		even, carry = bits.Add64(even, binary.LittleEndian.Uint64(p[48:]), carry)
		even, carry = bits.Add64(even, binary.LittleEndian.Uint64(p[56:]), carry)
		even += carry
		odd, carry = bits.Add64(odd, binary.LittleEndian.Uint64(p[64:]), 0)
		odd, carry = bits.Add64(odd, binary.LittleEndian.Uint64(p[72:]), carry)
		odd, carry = bits.Add64(odd, binary.LittleEndian.Uint64(p[80:]), carry)
		odd, carry = bits.Add64(odd, binary.LittleEndian.Uint64(p[88:]), carry)
		odd, carry = bits.Add64(odd, binary.LittleEndian.Uint64(p[96:]), carry)
		odd, carry = bits.Add64(odd, binary.LittleEndian.Uint64(p[104:]), carry)
		odd, carry = bits.Add64(odd, binary.LittleEndian.Uint64(p[112:]), carry)
		odd, carry = bits.Add64(odd, binary.LittleEndian.Uint64(p[120:]), carry)
		odd += carry
		b = b[128:]
	}
	for len(b) >= 32 {
		p := (*[32]byte)(b)
		even, carry = bits.Add64(even, binary.LittleEndian.Uint64(p[0:]), 0)
		even, carry = bits.Add64(even, binary.LittleEndian.Uint64(p[8:]), carry)
		even, carry = bits.Add64(even, binary.LittleEndian.Uint64(p[16:]), carry)
		even, carry = bits.Add64(even, binary.LittleEndian.Uint64(p[24:]), carry)
		even += carry
		b = b[32:]
	}
	for len(b) >= 8 {
		odd, carry = bits.Add64(odd, binary.LittleEndian.Uint64(b), 0)
		odd += carry
		b = b[8:]
	}
	if n&4 != 0 {
		odd, carry = bits.Add64(odd, uint64(binary.LittleEndian.Uint32(b)), 0)
		odd += carry
		b = b[4:]
	}
	if n&2 != 0 {
		odd, carry = bits.Add64(odd, uint64(binary.LittleEndian.Uint16(b)), 0)
		odd += carry
		b = b[2:]
	}
	if n&1 != 0 {
		odd, carry = bits.Add64(odd, uint64(b[0]), 0)
		odd += carry
	}
	even, carry = bits.Add64(even, odd, 0)
	even += carry
	even = even>>32 + even&0xffffffff
	even = even>>32 + even&0xffffffff
	return uint32(bits.ReverseBytes16(fold(uint32(even>>16 + even&0xffff))))
}

// fold reduces a sum of 16-bit words to 16 bits, adding the carries back in.
func fold(s uint32) uint16 {
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return uint16(s)
}

// mangle keeps a computed UDP checksum from reading as "no checksum": RFC 768 sends zero as all
// ones, which is the same number in one's complement.
func mangle(check uint16) uint16 {
	if check == 0 {
		return 0xffff
	}
	return check
}
