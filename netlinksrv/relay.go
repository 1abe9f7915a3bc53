package netlinksrv

import (
	"golang.org/x/sys/unix"
)

// relay passes a datagram to the real kernel and delivers the kernel's answers, with no more rights than task
// has. The error, of which the client is told, says that the kernel did not get it.
func (g *GenericSocket) relay(task Task, datagram []byte) error {
	if len(datagram) == 0 {
		return nil
	}
	send := func() error { return g.twin.send(datagram) }
	err := g.asSender(task, send)
	if err == unix.EPERM && onlyToController(datagram) {
		// The controller has nothing that needs a right.
		err = send()
	}
	if err != nil {
		g.server.log.Warn("relay netlink request", "port", g.Port(), "error", err)
		g.refuseAll(datagram, errnoOf(err, unix.EIO))
	}
	g.twin.drain()
	return err
}

// refuseAll answers each message that could not be relayed.
func (g *GenericSocket) refuseAll(datagram []byte, errno unix.Errno) {
	for {
		msg, rest, ok := cutMessage(datagram)
		if !ok {
			return
		}
		g.post(acknowledge(msg, g.Port(), &requestError{errno: errno}, g.ackOptions()))
		datagram = rest
	}
}

func onlyToController(datagram []byte) bool {
	for {
		msg, rest, ok := cutMessage(datagram)
		if !ok {
			return true
		}
		if parseHeader(msg).kind != unix.GENL_ID_CTRL {
			return false
		}
		datagram = rest
	}
}
