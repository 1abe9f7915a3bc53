package datapath

// WorkersUnderTest is how many workers the tests' devices have, where a test does not say.
var WorkersUnderTest = 1

// Fits returns what is known of the way to a peer: the longest inner packet in bytes that leaves whole, and the
// limits on TCP segments inside IPv4 and IPv6. 0: not known, or no limit.
func (d *Device) Fits(peerID uint32) (whole, mss4, mss6 int) {
	p := &transportOf(d.table.ByID(peerID)).path
	return int(p.whole.Load()), int(p.mss4.Load()), int(p.mss6.Load())
}
