package confine

// RefusedCalls are the system calls that RefuseCalls refuses whatever their arguments are.
func RefusedCalls() []uint32 { return append(append([]uint32(nil), refusedCalls...), legacyCalls...) }
