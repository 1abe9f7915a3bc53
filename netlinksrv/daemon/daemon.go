// Package daemon is a door that many programs share: a UNIX socket on which they ask for netlink sockets of one server, or
// hand over whole programs that run under exec's filter. Package wire has what is said on it.
//
// A program under `ovpn-go exec` stays below the process that started it, which passes signals, waits, and ends the program when
// the daemon is gone. Only the filter's listener is handed over, so that the daemon answers the program's trapped calls by
// itself, with a session as exec's own and its own rights. What those calls touch, the datapath and the program's descriptors,
// is then all in one process, as without a daemon.
//
// Who may connect is decided by the mode of the socket's file. What a client may do is decided by what it may do without a daemon: each message by
// CAP_NET_ADMIN over the network namespace in question. The daemon's own rights never count.
//
// Devices, peers and keys are the daemon's, as those of the kernel's module are the kernel's: they outlive who made them, and
// end with the daemon.
package daemon

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/datapath"
	"ovpn-go/netlinksrv"
	"ovpn-go/netlinksrv/daemon/wire"
	"ovpn-go/netlinksrv/exec"
	"ovpn-go/tun/netns"
)

// Config configures a Daemon. All fields are required.
type Config struct {
	// Server answers the clients. It stays the caller's, who closes it after Serve and before Close, so that clients still hear
	// of the end of their peers.
	Server *netlinksrv.Server
	// Sockets are those that the server's devices share.
	Sockets *datapath.Sockets
	Logger  *slog.Logger
}

// Daemon serves the clients of a socket.
type Daemon struct {
	options exec.Options
	log     *slog.Logger
	direct  *exec.Direct

	mu       sync.Mutex
	conns    map[*wire.Conn]struct{} // guarded by mu: of all clients
	runs     map[*wire.Conn]struct{} // guarded by mu: of those that have handed a program over
	stopping bool                    // guarded by mu
	closed   bool                    // guarded by mu
	running  sync.WaitGroup          // runs
	clients  sync.WaitGroup          // goroutines of clients
}

// New returns a daemon without clients.
func New(cfg Config) *Daemon {
	o := exec.Options{Server: cfg.Server, Sockets: cfg.Sockets, Logger: cfg.Logger}
	return &Daemon{
		options: o, log: cfg.Logger, direct: exec.NewDirect(o),
		conns: map[*wire.Conn]struct{}{}, runs: map[*wire.Conn]struct{}{},
	}
}

// stopPatience is how long programs may take to end when the daemon is to stop. OpenVPN takes a second or two to tell its peers.
const stopPatience = 20 * time.Second

// Serve serves who connects until the context ends. It then takes no more clients, has the programs that were handed over
// ended, and returns when they are gone, or have taken too long. The listener is closed.
func (d *Daemon) Serve(ctx context.Context, l *net.UnixListener) error {
	accepted := make(chan error, 1)
	go func() { accepted <- d.accept(l) }()
	var err error
	select {
	case <-ctx.Done():
		l.Close()
		<-accepted
	case err = <-accepted:
		l.Close()
	}
	d.stopRuns()
	return err
}

// accept serves who connects until the listener is closed. While there is no descriptor for another client, they wait.
func (d *Daemon) accept(l *net.UnixListener) error {
	const shortest, longest = 10 * time.Millisecond, time.Second
	var pause time.Duration // 0 unless descriptors are lacking
	for {
		conn, err := l.AcceptUnix()
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENOMEM):
			if pause == 0 {
				d.log.Warn("no more clients can be accepted, and they wait: raise the daemon's hard limit on descriptors "+
					"(ulimit -Hn, LimitNOFILE= in a unit), or fs.file-max", "error", err)
			}
			pause = min(max(2*pause, shortest), longest)
			time.Sleep(pause) // until somebody has closed something
			continue
		case errors.Is(err, unix.ECONNABORTED):
			continue
		case err != nil:
			return fmt.Errorf("accept a client: %w", err)
		}
		if pause != 0 {
			d.log.Info("clients are accepted again")
			pause = 0
		}
		c := wire.NewConn(conn)
		if !d.enter(c) {
			c.Close()
			continue
		}
		go func() {
			defer d.clients.Done()
			defer d.leave(c)
			if err := d.serve(c); err != nil {
				d.log.Info("client refused", "error", err)
			}
		}()
	}
}

func (d *Daemon) enter(c *wire.Conn) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return false
	}
	d.conns[c] = struct{}{}
	d.clients.Add(1)
	return true
}

func (d *Daemon) leave(c *wire.Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.conns, c)
	c.Close()
}

// stopRuns asks the programs to end and waits for them.
func (d *Daemon) stopRuns() {
	d.mu.Lock()
	d.stopping = true
	runs := make([]*wire.Conn, 0, len(d.runs))
	for c := range d.runs {
		runs = append(runs, c)
	}
	d.mu.Unlock()
	if len(runs) == 0 {
		return
	}
	d.log.Info("stopping the programs", "programs", len(runs))
	for _, c := range runs {
		// One that does not read is not waited for longer than the others.
		go func() { _ = c.Send(wire.Reply{Type: wire.TypeStop}) }()
	}
	done := make(chan struct{})
	go func() {
		d.running.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(stopPatience):
		d.log.Warn("programs did not end in time")
	}
}

// Close ends the conversation with all clients and returns when everything that was theirs is released. Programs that have not ended
// by then are killed by those who started them.
func (d *Daemon) Close() {
	d.mu.Lock()
	d.closed = true
	for c := range d.conns {
		c.Close()
	}
	d.mu.Unlock()
	d.clients.Wait()
	d.direct.Close()
}

// serve converses with one client until it is gone. The error says why it was refused, which it has been told.
func (d *Daemon) serve(c *wire.Conn) error {
	caller, request, err := greet(c)
	if caller != nil {
		defer caller.Close()
	}
	defer request.Close()
	if err == nil {
		switch request.Type {
		case wire.TypeRun:
			err = d.run(c, caller, request)
		case wire.TypeNetlink:
			err = d.netlink(c, caller, request)
		case wire.TypeStatus:
			err = d.status(c, caller, request)
		default:
			err = fmt.Errorf("request %q: %w", request.Type, unix.EOPNOTSUPP)
		}
	}
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	_ = c.Send(wire.Refusal(err)) // it may be gone
	if caller != nil {
		return fmt.Errorf("process %d: %w", caller.PID(), err)
	}
	return err
}

// A request is what a client asks for, with the descriptors that came with it.
type request struct {
	wire.Request
	packet wire.Packet
}

// Close closes the descriptors that came with the request.
func (r request) Close() { r.packet.Close() }

// greet finds out who has connected and what it wants. The caller is nil if that can't be found out.
func greet(c *wire.Conn) (*exec.Caller, request, error) {
	if err := netns.Control(c.Unix(), func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED, 1) }); err != nil {
		return nil, request{}, err
	}
	if err := c.Unix().SetReadDeadline(time.Now().Add(wire.Patience)); err != nil {
		return nil, request{}, err
	}
	hello, err := receive(c)
	hello.Close()
	if err != nil {
		return nil, request{}, err
	}
	if hello.Type != wire.TypeHello {
		return nil, request{}, fmt.Errorf("request %q before a hello: %w", hello.Type, unix.EPROTO)
	}
	var caller *exec.Caller
	err = netns.Control(c.Unix(), func(fd int) (err error) {
		caller, err = exec.NewCaller(fd)
		return err
	})
	if err != nil {
		return nil, request{}, err
	}
	nonce := newNonce()
	if err := c.Send(wire.Reply{Nonce: nonce}); err != nil {
		return caller, request{}, err
	}
	r, err := receive(c)
	switch {
	case err != nil:
	case r.Nonce != nonce:
		err = fmt.Errorf("request without the nonce: %w", unix.EPROTO)
	case r.packet.PID != caller.PID():
		err = fmt.Errorf("request of process %d on the connection of process %d: %w", r.packet.PID, caller.PID(), unix.EPERM)
	default:
		err = caller.Unchanged()
	}
	if err == nil {
		err = c.Unix().SetReadDeadline(time.Time{})
	}
	return caller, r, err
}

func receive(c *wire.Conn) (request, error) {
	p, err := c.Receive()
	if err != nil {
		return request{}, err
	}
	r, err := wire.ParseRequest(p.Message)
	return request{r, p}, err
}

func newNonce() uint64 {
	var b [8]byte
	rand.Read(b[:])
	// Below 2^53, so that any reader of JSON gets it right.
	return binary.NativeEndian.Uint64(b[:])>>11 | 1
}

// run answers a program until its supervisor closes the connection.
func (d *Daemon) run(c *wire.Conn, caller *exec.Caller, r request) error {
	if len(r.packet.Files) != 2 {
		return fmt.Errorf("run with %d descriptors: %w", len(r.packet.Files), unix.EPROTO)
	}
	if err := d.beginRun(c); err != nil {
		return err
	}
	defer d.endRun(c)
	adopted, err := exec.Adopt(d.options, exec.Handover{
		Listener: r.packet.Files[0], Guard: r.packet.Files[1], Window: *r.Window, Parent: caller.PID(),
	})
	if err != nil {
		return err
	}
	defer adopted.Close()
	r.Close() // the listener must not outlive the program for our sake
	if err := c.Send(wire.Reply{}); err != nil {
		return nil
	}
	d.log.Info("program handed over", "pid", caller.PID())
	defer d.log.Info("program ended", "pid", caller.PID())
	gone := make(chan error, 1)
	go func() {
		for {
			p, err := c.Receive()
			if err != nil {
				gone <- nil
				return
			}
			p.Close() // nothing is left to be asked
		}
	}()
	select {
	case err = <-adopted.Failed():
		return fmt.Errorf("answer the program: %w", err)
	case <-gone:
	}
	return nil
}

func (d *Daemon) beginRun(c *wire.Conn) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stopping {
		return fmt.Errorf("the daemon is about to end: %w", unix.ESHUTDOWN)
	}
	d.runs[c] = struct{}{}
	d.running.Add(1)
	return nil
}

func (d *Daemon) endRun(c *wire.Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.runs, c)
	d.running.Done()
}

// netlink serves a netlink socket and its options until the client closes the connection.
func (d *Daemon) netlink(c *wire.Conn, caller *exec.Caller, r request) error {
	ns, err := r.namespace(caller)
	if err != nil {
		return err
	}
	defer ns.Close()
	socket, client, err := d.direct.Open(caller, r.Protocol, ns)
	if err != nil {
		return fmt.Errorf("open netlink socket of protocol %d: %w", r.Protocol, err)
	}
	defer socket.Close()
	err = c.Send(wire.Reply{Port: socket.Port()}, client)
	client.Close()
	if err != nil {
		return nil
	}
	for {
		next, err := receive(c)
		next.Close()
		if err != nil {
			return err
		}
		reply := wire.Reply{}
		if next.Type != wire.TypeOption {
			err = fmt.Errorf("request %q: %w", next.Type, unix.EOPNOTSUPP)
		} else {
			err = socket.SetOption(next.Name, binary.NativeEndian.AppendUint32(nil, next.Value))
		}
		if err != nil {
			reply = wire.Refusal(err)
		}
		if err := c.Send(reply); err != nil {
			return nil
		}
	}
}

// namespace is the network namespace that came with a request, which the caller must be allowed to use. It is to be closed.
func (r request) namespace(caller *exec.Caller) (*netns.NS, error) {
	if len(r.packet.Files) != 1 {
		return nil, fmt.Errorf("%s with %d descriptors: %w", r.Type, len(r.packet.Files), unix.EPROTO)
	}
	file := r.packet.Files[0]
	if err := netns.Control(file, requireNetNS); err != nil {
		return nil, err
	}
	ns, err := netns.New(file)
	if err != nil {
		return nil, err
	}
	if err := caller.MayUse(ns); err != nil {
		ns.Close()
		return nil, err
	}
	return ns, nil
}

// requireNetNS checks that a descriptor is of a network namespace. What it is not yet known to be is asked nothing that might
// mean something else to it.
func requireNetNS(fd int) error {
	var fs unix.Statfs_t
	err := unix.Fstatfs(fd, &fs)
	if err == nil && fs.Type == unix.NSFS_MAGIC {
		var kind int
		if kind, err = unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE); err == nil && kind == unix.CLONE_NEWNET {
			return nil
		}
	}
	return errors.Join(fmt.Errorf("the descriptor is not a network namespace: %w", unix.EINVAL), err)
}
