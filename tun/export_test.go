package tun

import "golang.org/x/sys/unix"

// FlushApart is Flush on a kernel that refuses super-frames.
func (c *Coalescer) FlushApart() (dropped int) {
	frame := c.buf[:c.end]
	vnet := VnetHdr{}
	packets := c.flow.packets
	if packets > 1 {
		vnet = c.flow.seal(frame[VnetHdrLen:])
	}
	vnet.Encode(frame)
	c.end, c.flow.packets, c.flow.header = VnetHdrLen, 0, 0
	if packets > 0 {
		if err := c.split.Reset(frame); err != nil {
			panic(err)
		}
		c.deliverApart(frame)
	}
	return c.takeDropped()
}

// Held returns the number of packets in the open frame.
func (c *Coalescer) Held() int { return c.flow.packets }

// OpenQueue attaches to a new interface in the calling thread's namespace.
func OpenQueue(name string) (fd int, err error) {
	return openQueue(&name, 0, unix.IFF_TUN|unix.IFF_NO_PI|unix.IFF_VNET_HDR|unix.IFF_TUN_EXCL)
}
