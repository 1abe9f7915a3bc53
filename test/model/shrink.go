package model

import "slices"

// Shrink returns a shorter sequence that fails, too. failing gets sequences to try and returns the index of the first
// one that fails, or -1; it may try them all at a time.
func Shrink(ops []Op, failing func(candidates [][]Op) int) []Op {
	for {
		shorter := shrinkOnce(ops, failing)
		if len(shorter) == len(ops) {
			return simplify(ops, failing)
		}
		ops = shorter
	}
}

// shrinkOnce leaves out chunks, of half of the sequence at first and of single operations in the end.
func shrinkOnce(ops []Op, failing func([][]Op) int) []Op {
	for size := (len(ops) + 1) / 2; size > 0; size /= 2 {
		for {
			var candidates [][]Op
			// What comes last is left out first: what fails early needs nothing that comes after it.
			for end := len(ops); end > 0; end -= size {
				candidates = append(candidates, slices.Concat(ops[:max(0, end-size)], ops[end:]))
			}
			i := failing(candidates)
			if i < 0 {
				break
			}
			ops = candidates[i]
			if len(ops) == 0 {
				return ops
			}
		}
	}
	return ops
}

// simplify takes away what the operations need not say.
func simplify(ops []Op, failing func([][]Op) int) []Op {
	for {
		var candidates [][]Op
		for i := range ops {
			for _, simpler := range simpler(ops[i]) {
				candidate := slices.Clone(ops)
				candidate[i] = simpler
				candidates = append(candidates, candidate)
			}
		}
		i := failing(candidates)
		if i < 0 {
			return ops
		}
		ops = candidates[i]
	}
}

// simpler returns operations that say a little less.
func simpler(o Op) (all []Op) {
	try := func(useless bool, change func(o *Op)) {
		if !useless {
			s := o
			change(&s)
			all = append(all, s)
		}
	}
	try(o.TxID == 0, func(o *Op) { o.TxID = 0 })
	try(o.Keepalive == nil, func(o *Op) { o.Keepalive = nil })
	try(!o.Local, func(o *Op) { o.Local = false })
	try(o.VPN6 == "" || o.VPN4 == "", func(o *Op) { o.VPN6 = "" })
	try(o.Size == 0, func(o *Op) { o.Size = 0 })
	try(o.Inner == IPv4 || o.Inner == IPv6, func(o *Op) { o.Inner = IPv4 })
	try(o.Remote < 2, func(o *Op) { o.Remote = 1 })
	try(o.Packet < 2, func(o *Op) { o.Packet = 1 })
	return all
}
