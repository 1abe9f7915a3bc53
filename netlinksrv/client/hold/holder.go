package hold

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv/client"
)

// holder is the process that keeps a socket.
type holder struct {
	listener *net.UnixListener
	netlink  *client.Conn

	mu      sync.Mutex
	socket  *os.File           // guarded by mu
	kept    map[claim]struct{} // guarded by mu
	pending int                // guarded by mu; conversations, whose claims are not to be judged yet
}

// Main is the holder's main function. It finds the listener at descriptor 3 and the socket at 4, and returns when the last
// peer is gone, or when nobody has claimed the socket.
func Main() error {
	listener, err := net.FileListener(os.NewFile(3, "holder's socket"))
	if err != nil {
		return fmt.Errorf("adopt the holder's socket: %w", err)
	}
	unixListener, ok := listener.(*net.UnixListener)
	if !ok {
		return fmt.Errorf("descriptor 3 is a %T: holders are started by adding a peer", listener)
	}
	unix.CloseOnExec(4)
	h := &holder{
		socket:   os.NewFile(4, "transport socket"),
		listener: unixListener,
		kept:     map[claim]struct{}{},
	}
	if h.netlink, err = client.Dial(); err != nil {
		return err
	}
	monitor, err := client.OpenMonitor()
	if err != nil {
		return err
	}
	go h.follow(monitor)
	h.serve()
	return nil
}

// follow looks after the claims whenever something happens to peers.
func (h *holder) follow(monitor *client.Monitor) {
	for {
		event, err := monitor.Next()
		if err != nil && !errors.Is(err, client.ErrLost) {
			// Without announcements nobody would ever end this process.
			h.listener.Close()
			return
		}
		if err != nil || event.Kind == client.PeerDeleted {
			h.review()
		}
	}
}

// serve answers those who want the socket until nobody does any more.
func (h *holder) serve() {
	if err := h.listener.SetDeadline(time.Now().Add(patience)); err != nil {
		return
	}
	for {
		conn, err := h.listener.AcceptUnix()
		if errors.Is(err, os.ErrDeadlineExceeded) && h.wanted() {
			if h.listener.SetDeadline(time.Time{}) != nil {
				return
			}
			continue
		}
		if err != nil {
			return
		}
		h.mu.Lock()
		h.pending++
		h.mu.Unlock()
		go func() {
			if what, socket := h.converse(conn); socket != nil {
				h.mu.Lock()
				h.kept[what] = struct{}{}
				h.socket.Close()
				h.socket = socket
				h.mu.Unlock()
				_, _ = conn.Write([]byte{1})
				go h.drain(what, socket)
			}
			conn.Close()
			h.mu.Lock()
			h.pending--
			h.mu.Unlock()
			h.review()
		}()
	}
}

// converse hands the socket to one who wants it and hears whether the peer came to be. It returns what is to be kept then: another
// duplicate of the socket, or what the peer's daemon has put in a connection's place.
func (h *holder) converse(conn *net.UnixConn) (what claim, socket *os.File) {
	if sameUser(conn) != nil || conn.SetDeadline(time.Now().Add(patience)) != nil {
		return what, nil
	}
	b := make([]byte, 256)
	n, err := conn.Read(b)
	if err != nil || json.Unmarshal(b[:n], &what) != nil {
		return what, nil
	}
	h.mu.Lock()
	_, _, err = conn.WriteMsgUnix([]byte{1}, unix.UnixRights(int(h.socket.Fd())), nil)
	h.mu.Unlock()
	if err != nil {
		return what, nil
	}
	n, socket, err = receive(conn, b)
	if err == nil && string(b[:n]) != "keep" {
		socket.Close()
		return what, nil
	}
	return what, socket
}

// drain reads from a connection until it ends, and then deletes its peer: that is up to whoever has the connection. It reads only
// once the peer is there, as nobody but that has any use for what else comes. A UDP socket does not end.
func (h *holder) drain(what claim, socket *os.File) {
	kind, err := unix.GetsockoptInt(int(socket.Fd()), unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil || kind == unix.SOCK_DGRAM {
		return
	}
	for b := make([]byte, 1<<16); err == nil; {
		_, err = socket.Read(b)
	}
	_ = h.netlink.DeletePeer(what.Ifindex, what.Peer)
	h.review()
}

// wanted reports whether there is a peer for the socket, or may be one soon.
func (h *holder) wanted() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.kept) > 0 || h.pending > 0
}

// review forgets the peers that are gone and ends the process with the last. It asks instead of believing an announcement,
// which may speak of an earlier peer with the same id.
func (h *holder) review() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for what := range h.kept {
		_, err := h.netlink.Peer(what.Ifindex, what.Peer)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
			delete(h.kept, what)
		}
	}
	if len(h.kept) == 0 && h.pending == 0 {
		h.listener.Close()
	}
}
