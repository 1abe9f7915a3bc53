package datapath

import (
	"os"

	"golang.org/x/sys/unix"
)

// restore gives the client its connection back, now that no peer uses it: in place of the end of the pair, wherever the
// client has that. What is queued there for the client is gone, and so is the beginning of a frame that has arrived (kernel
// behaviour).
//
// A connection on which nothing more comes is given back as well: what the client sends may still be read, and when it ends
// is the client's to say.
//
// It is not done while something that the client sent has yet to leave. The pair then passes plain bytes, as it does when a
// process of the client's can't be reached.
func (d *Device) restore(c *tcpConn) {
	var stream *os.File
	err := d.do(func() {
		if c.settle(); !c.is(tcpPlain) && !c.is(tcpOver) || len(c.out) > 0 {
			return
		}
		fd, err := unix.FcntlInt(uintptr(c.stream.fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			d.log.Warn("duplicate a client's connection", "error", err)
			return
		}
		stream = os.NewFile(uintptr(fd), "connection of a client")
		c.state.Store(uint32(tcpRestoring)) // no other worker changes the state of one without a peer
	})
	if err != nil || stream == nil {
		return
	}
	defer stream.Close()
	failed := c.substitute(c.inode, stream)
	_ = d.do(func() {
		switch {
		case !c.is(tcpRestoring):
			// The device was stopped, or the client has closed what it had.
		case failed != nil:
			d.log.Debug("a client keeps a pair in place of its connection", "error", failed)
			c.become(tcpRestoring, tcpPlain) // should nothing more come, that is read again
			c.worker.markReadable(&c.stream)
			c.worker.awake()
		default:
			c.settle() // what was sent to the pair meanwhile
			d.sockets.releaseTCP(c)
		}
	})
}

// settle takes all that the client has sent by now to the connection, as far as that takes it, between turns.
func (c *tcpConn) settle() {
	if c.worker == nil || c.stream.fd < 0 {
		return
	}
	for {
		queued, err := unix.IoctlGetInt(c.client.fd, unix.SIOCINQ)
		if err != nil || queued == 0 || !c.forward(c.worker) {
			break
		}
	}
	c.worker.awake() // for what forward left to do
}
