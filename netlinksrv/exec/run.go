package exec

import (
	"context"
	"errors"
	"log/slog"

	"ovpn-go/datapath"
	"ovpn-go/netlinksrv"
	"ovpn-go/netlinksrv/daemon/wire"
)

// Options say what to run and who answers it.
type Options struct {
	// Args is the client's command line. The program is looked up as a shell does.
	Args []string
	// Server answers the client's netlink sockets. It stays the caller's, and is best closed after
	// Run has returned: the client then deletes its links as it likes.
	Server *netlinksrv.Server
	// Daemon is another process that answers in place of Server; nil if there is none. Run closes it.
	Daemon *wire.Hello
	// Sockets are told when a client is about to bind an address, and know the connections whose place the
	// client's descriptors have taken; nil if there is nothing of the kind.
	Sockets *datapath.Sockets
	// Logger receives what goes wrong with a client's sockets; nil discards it.
	Logger *slog.Logger
	// Apart, unless nil, is called once the client's processes have inherited what they inherit from this one: a limit that
	// changes from then on is ours alone.
	Apart func()
}

// Run starts a program so that its netlink sockets, and those of all processes it starts, reach
// the server. It returns when the program and everything it left behind, such as a daemon, is
// gone, with the program's own status. Then no goroutine, descriptor or process of the run is
// left either.
//
// Signals that reach this process are passed on to the program, unless it got them by itself as a
// member of the same process group or control group. Ending the context kills the program and its
// descendants. So does the death of this process, however it comes about.
//
// The program gets our standard input, output and error and all descriptors that we inherited;
// of the latter, Run closes ours. Processes that this process starts during the run are taken for
// the client's if the run ends badly. There can be one run at a time in a process, whose main
// function must call Reexec first.
//
// The error says why the program could not be run, or why its end is not its own. The Status is
// then what a shell would report: 127 if there is no such program, otherwise 126.
func Run(ctx context.Context, o Options) (Status, error) {
	if o.Daemon != nil {
		defer o.Daemon.Close()
	}
	if len(o.Args) == 0 || (o.Server == nil) == (o.Daemon == nil) {
		return Status{Code: 126}, errors.New("run a client: needs a command, and a server or a daemon")
	}
	inner := options{
		args:          o.Args,
		logger:        o.logger(),
		daemon:        o.Daemon,
		stdio:         [3]uintptr{0, 1, 2},
		dropInherited: true,
		apart:         o.Apart,
		probe:         Probe,
	}
	if o.Server != nil {
		inner.session = o.session()
	}
	return run(ctx, inner)
}

func (o Options) logger() *slog.Logger {
	if o.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return o.Logger
}

// session returns one that has not started.
func (o Options) session() *session {
	s := newSession(realServer{o.Server}, o.logger())
	if o.Sockets != nil {
		s.beforeBind, s.connections = o.Sockets.BeforeBind, o.Sockets
	}
	return s
}
