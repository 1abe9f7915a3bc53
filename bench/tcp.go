package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// congestionControl is set on every TCP socket of the harness. BBR, where it is the default, paces
// its sending, so that a measurement would be of its model of the path.
const congestionControl = "cubic"

func useCubic(_, _ string, c syscall.RawConn) error {
	var err error
	if ctlErr := c.Control(func(fd uintptr) {
		err = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, congestionControl)
	}); ctlErr != nil {
		return ctlErr
	}
	if err != nil {
		return fmt.Errorf("set TCP congestion control %s: %w", congestionControl, err)
	}
	return nil
}

// listenTCP listens on a free port of the address, in the node's namespace.
func listenTCP(ctx context.Context, node *Node, addr netip.Addr) (listener net.Listener, err error) {
	config := net.ListenConfig{Control: useCubic}
	err = node.Do(func() (err error) {
		listener, err = config.Listen(ctx, "tcp", net.JoinHostPort(addr.String(), strconv.Itoa(0)))
		return err
	})
	return listener, err
}

// dialTCP connects from the node's namespace.
func dialTCP(ctx context.Context, node *Node, to net.Addr) (conn net.Conn, err error) {
	dialer := net.Dialer{Control: useCubic}
	err = node.Do(func() (err error) {
		// An address and no name: the dialer stays on this thread.
		conn, err = dialer.DialContext(ctx, "tcp", to.String())
		return err
	})
	if err != nil {
		// The dialer says "timeout" where the context has ended.
		return nil, errors.Join(err, context.Cause(ctx))
	}
	return conn, nil
}
