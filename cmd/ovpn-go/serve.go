package main

import (
	"context"
	"errors"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"ovpn-go/datapath"
	"ovpn-go/netlinksrv"
	"ovpn-go/netlinksrv/daemon"
	"ovpn-go/netlinksrv/daemon/wire"
	"ovpn-go/netlinksrv/exec"
)

func newServeCommand() *cobra.Command {
	var logging logFlags
	var device deviceFlags
	var group, pprof string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run as a daemon whose devices several programs share",
		Long: `serve answers the ovpn device's clients on a UNIX socket, as the kernel's module would answer them: "ovpn-go exec" and the
commands link, peer, key, show and monitor find it there and use it. What one makes, the others see. Interfaces outlive who
made them and end with the daemon.

The socket is root's alone unless --group says otherwise. Beyond that a client may do what it may do to the network namespace it is in: it needs
CAP_NET_ADMIN there.

At SIGTERM the programs under "exec" are ended in order, then the interfaces are deleted. Under systemd the
daemon says when it is ready, and takes its socket from a socket unit.`,
		Example: `  ovpn-go serve
  ovpn-go serve --socket /run/vpn/ovpn-go.socket --group vpn`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if err := exec.LeaveRoom(); err != nil {
				return err
			}
			cfg, err := device.config()
			if err != nil {
				return err
			}
			path, _ := wire.Path()
			log, closeLog, err := logging.open()
			if err != nil {
				return err
			}
			defer closeLog()
			cfg.Logger = log
			endPprof, err := servePprof(pprof)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, endPprof()) }()
			return serve(cmd, cfg, path, group)
		},
	}
	logging.register(cmd.Flags())
	device.register(cmd.Flags())
	registerPprof(cmd.Flags(), &pprof)
	cmd.Flags().StringVar(&group, "group", "", "let the members of this group use the socket")
	return cmd
}

// serve runs the daemon until it is told to stop.
func serve(cmd *cobra.Command, cfg netlinksrv.Config, path, group string) (err error) {
	ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	hideKeys(cfg.Logger)
	listener, err := daemon.Listen(path, group)
	if err != nil {
		return err
	}
	defer listener.Close()
	sockets, err := datapath.NewSockets(cfg.Logger)
	if err != nil {
		return err
	}
	defer sockets.Close()
	cfg.Sockets = sockets
	server, err := netlinksrv.New(cfg)
	if err != nil {
		return err
	}
	d := daemon.New(daemon.Config{Server: server, Sockets: sockets, Logger: cfg.Logger})
	defer d.Close()
	defer func() { err = errors.Join(err, server.Close()) }()

	confineDaemon(cfg.Logger)
	cfg.Logger.Info("serving", "socket", listener.Addr().String())
	if err := daemon.Notify("READY=1"); err != nil {
		return err
	}
	said := make(chan struct{})
	context.AfterFunc(ctx, func() {
		defer close(said)
		cfg.Logger.Info("stopping")
		if err := daemon.Notify("STOPPING=1"); err != nil {
			cfg.Logger.Warn("say that it stops", "error", err)
		}
	})
	err = d.Serve(ctx, listener)
	if ctx.Err() != nil {
		<-said
	}
	return err
}
