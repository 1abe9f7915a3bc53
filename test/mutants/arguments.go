package main

// arguments say why a survivor may live. A survivor is known by its file, the line of code it is in, and what was done to it,
// so that code which moves takes its argument along and code which changes loses it.
var arguments = []struct {
	file      string
	code      string
	mutations []string
	why       string
}{
	{
		"crypto/packetid.go", "if k.sealing.taken.Load() >= lastPacketID {", []string{"CONDITIONALS_BOUNDARY"},
		"The check behind the addition refuses the same ids. This one keeps the counter from growing for ever, and only at a distance of 2^32 from its end.",
	},
	{
		"crypto/packetid.go", "if before >= lastPacketID {", []string{"CONDITIONALS_BOUNDARY"},
		"With before at the last id exactly, what is granted is 0 either way.",
	},
	{
		"crypto/replay.go", "} else if w.highest-id >= ReplayWindowSize || id <= w.floor || w.isSeen(id) {", []string{"CONDITIONALS_BOUNDARY"},
		"An id exactly one window below the highest has the highest's place, which is taken; the floor itself was the highest once, and so was seen. Both are refused by the last term.",
	},
	{
		"crypto/replay.go", "if id-skipped >= ReplayWindowSize-1 {", []string{"CONDITIONALS_BOUNDARY", "ARITHMETIC_BASE", "INVERT_NEGATIVES"},
		"A short cut: the loop below it forgets the same places one by one.",
	},
	{
		"crypto/replay.go", "if skipped%64 == 0 && id-skipped >= 64 {", []string{"CONDITIONALS_BOUNDARY", "ARITHMETIC_BASE"},
		"A short cut: the loop forgets the same places bit by bit.",
	},
	{
		"peers/index.go", "if array == nil || (x.used+1)*4 > len(array.slots)*3 {", []string{"CONDITIONALS_BOUNDARY"},
		"When an array is left for a new one, one entry sooner or later, is a matter of speed.",
	},
	{
		"peers/index.go", "size := max(minSlots, 1<<bits.Len(uint(2*(x.live+1)-1)))", []string{"ARITHMETIC_BASE", "INVERT_NEGATIVES"},
		"How much larger an array is than what is in it is a matter of speed and space; it has room for all entries with any of these.",
	},
	{
		"peers/lifetime.go", "if l.heap[parent].at <= d.at {", []string{"CONDITIONALS_BOUNDARY"},
		"Of two peers that are due at the same time either may come first.",
	},
	{
		"peers/lifetime.go", "if other := child + 1; other < len(l.heap) && l.heap[other].at < l.heap[child].at {", []string{"CONDITIONALS_BOUNDARY"},
		"Likewise of two children. That the other comparison is changed is noticed: there is no child behind the last one.",
	},
	{
		"peers/lifetime.go", "if d.at <= l.heap[child].at {", []string{"CONDITIONALS_BOUNDARY"},
		"Likewise of a peer and the one that it would give way to.",
	},
}
