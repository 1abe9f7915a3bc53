package datapath

import "golang.org/x/sys/unix"

// offer hands frames to the connection, in a turn of w. What that does not take at once is kept, and written before
// anything else. As long as something is kept or the client's records wait, and after a failure, it takes nothing and
// reports false.
func (c *tcpConn) offer(w *worker, frames []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.clear(w) || c.held || c.is(tcpFailing) {
		return false
	}
	c.write(w, frames)
	return true
}

// ready reports whether the connection can take a record of the client's. If it can't, the records come before any
// frame once it can: what the workers have to send may be without end, and a client must be heard.
func (c *tcpConn) ready(w *worker) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = !c.clear(w)
	return !c.held
}

// push hands the connection a record of the client's. It is kept behind what is kept already.
func (c *tcpConn) push(w *worker, record []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.clear(w) {
		c.write(w, record)
	} else {
		c.out = append(c.out, record...)
	}
}

// drained is called when the connection has room again. Another worker may have been the one to use it.
func (c *tcpConn) drained() {
	c.mu.Lock()
	proceed := c.clear(c.worker) && c.held
	c.mu.Unlock()
	if proceed {
		c.worker.markReadable(&c.client)
	}
}

// clear tries to get rid of what an earlier write left over, and reports whether there is none any more: it went, or
// the connection failed. mu is held.
func (c *tcpConn) clear(w *worker) bool {
	if len(c.out) == 0 {
		return true
	}
	n, err := c.send(c.out)
	if err != nil {
		c.out = nil // nor will anything else get through
		c.fail(w)
		return true
	}
	c.out = c.out[:copy(c.out, c.out[n:])]
	return len(c.out) == 0
}

// write hands data to the connection while nothing is kept. mu is held.
func (c *tcpConn) write(w *worker, data []byte) {
	n, err := c.send(data)
	if err != nil {
		c.fail(w)
		return
	}
	if n < len(data) {
		c.out = append(c.out[:0], data[n:]...)
	}
}

// send returns how much of data the connection took.
func (c *tcpConn) send(data []byte) (int, error) {
	for {
		n, err := unix.SendmsgN(c.stream.fd, data, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		switch err {
		case nil:
			return n, nil
		case unix.EAGAIN:
			return 0, nil
		case unix.EINTR:
		default:
			return 0, err
		}
	}
}
