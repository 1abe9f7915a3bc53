package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"ovpn-go/datapath"
	"ovpn-go/netlinksrv"
	"ovpn-go/netlinksrv/daemon/wire"
	"ovpn-go/netlinksrv/exec"
)

func newExecCommand() *cobra.Command {
	var logging logFlags
	var device deviceFlags
	var profile, pprof string
	who := datapathAuto
	cmd := &cobra.Command{
		Use:   "exec [flags] -- COMMAND [ARGUMENT...]",
		Short: "Run a client of the kernel's ovpn module, unchanged, on this program instead",
		Long: `exec runs COMMAND so that it, and every process it starts, finds the ovpn device: the netlink family
"ovpn" and network interfaces of kind "ovpn". Everything else COMMAND does goes to the kernel as always.

Where the kernel has the module and COMMAND may use it, exec lets COMMAND do so and keeps out of the way; it says which
it chose. --datapath decides otherwise.

Signals are passed on to COMMAND, and exec ends as COMMAND ends: with its exit status, or by the same
signal. It waits for processes that COMMAND leaves behind, such as a daemon. If exec itself is killed,
so are they, and their interfaces are gone.

Where "ovpn-go serve" runs, that answers COMMAND, whose interfaces are then shared with others; --socket says where it is, or that
this program itself is to answer (none). If the daemon ends, so does COMMAND.

It needs /dev/net/tun, CAP_NET_ADMIN over the network namespace it is used in, and Linux 5.9 or later.`,
		Example: `  ovpn-go exec -- openvpn --config client.ovpn
  ovpn-go exec --log-file /var/log/ovpn-go.log -- openvpn --config server.conf
  ovpn-go exec -- ip link add tun0 type ovpn`,
		Args:                  cobra.MinimumNArgs(1),
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := device.config()
			if err != nil {
				return err
			}
			log, closeLog, err := logging.open()
			if err != nil {
				return err
			}
			defer closeLog()
			kernel, err := who.choose(log)
			if err != nil {
				return notRun(cmd, err)
			}
			if kernel {
				closeLog()
				return notRun(cmd, leaveToKernel(args))
			}
			endProfile, err := startProfile(profile)
			if err != nil {
				return err
			}
			endPprof, err := servePprof(pprof)
			if err != nil {
				return errors.Join(err, endProfile())
			}
			cfg.Logger = log
			status, err := runClient(cmd, args, cfg)
			if err := errors.Join(err, endProfile(), endPprof()); err != nil {
				fmt.Fprintln(cmd.ErrOrStderr(), "ovpn-go exec:", err)
			}
			closeLog()
			status.Exit()
			return nil
		},
	}
	logging.register(cmd.Flags())
	device.register(cmd.Flags())
	cmd.Flags().StringVar(&profile, "cpu-profile", "", "write a CPU profile of this program, in pprof's format, to this file")
	registerPprof(cmd.Flags(), &pprof)
	cmd.Flags().Var(&who, "datapath", "who carries the packets: the kernel's module, this program (userspace), or auto, which is the module where it works")
	return cmd
}

// notRun says why a client could not be run, with the exit status of a shell: found, but not to be run.
func notRun(cmd *cobra.Command, err error) error {
	fmt.Fprintln(cmd.ErrOrStderr(), "ovpn-go exec:", err)
	return exitStatus(126)
}

// runClient returns how the client ended, once nothing of it is left, nor of a server of its own and its devices.
func runClient(cmd *cobra.Command, args []string, cfg netlinksrv.Config) (status exec.Status, err error) {
	failed := exec.Status{Code: 126} // as a shell says: found, but not to be run
	o := exec.Options{Args: args, Logger: cfg.Logger}
	if o.Daemon, err = wire.Find(); err == nil {
		cfg.Logger.Info("a daemon answers")
		for _, name := range deviceFlagNames {
			if cmd.Flags().Changed(name) {
				cfg.Logger.Warn("the flag has no effect: the daemon's devices are as the daemon's own flags say", "flag", "--"+name)
			}
		}
		noDaemonBelow()
		return exec.Run(cmd.Context(), o)
	}
	if !errors.Is(err, wire.ErrNoDaemon) {
		return failed, err
	}
	cfg.Logger.Debug("this process answers", "because", err)
	if o.Sockets, err = datapath.NewSockets(cfg.Logger); err != nil {
		return failed, err
	}
	defer o.Sockets.Close()
	cfg.Sockets = o.Sockets
	if o.Server, err = netlinksrv.New(cfg); err != nil {
		return failed, err
	}
	defer func() { err = errors.Join(err, o.Server.Close()) }()
	o.Apart = func() { hideKeys(cfg.Logger) }
	noDaemonBelow()
	return exec.Run(cmd.Context(), o)
}

// noDaemonBelow has our own commands, run under this one, use netlink: whoever answers there is who answers their neighbours.
func noDaemonBelow() { os.Setenv(wire.Variable, wire.None) }
