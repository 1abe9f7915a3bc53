package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"ovpn-go/datapath"
	"ovpn-go/netlinksrv"
	"ovpn-go/netlinksrv/exec"
)

func newExecCommand() *cobra.Command {
	var logging logFlags
	var fit fitFlags
	var workers workersFlag
	var profile string
	var gso datapath.GSO
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

It needs /dev/net/tun, CAP_NET_ADMIN over the network namespace it is used in, and Linux 5.9 or later.`,
		Example: `  ovpn-go exec -- openvpn --config client.ovpn
  ovpn-go exec --log-file /var/log/ovpn-go.log -- openvpn --config server.conf
  ovpn-go exec -- ip link add tun0 type ovpn`,
		Args:                  cobra.MinimumNArgs(1),
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			fit, err := fit.parse()
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
			status, err := runClient(cmd, args, netlinksrv.Config{Logger: log, Fit: fit, GSO: gso, Workers: int(workers)})
			if err := errors.Join(err, endProfile()); err != nil {
				fmt.Fprintln(cmd.ErrOrStderr(), "ovpn-go exec:", err)
			}
			closeLog()
			status.Exit()
			return nil
		},
	}
	logging.register(cmd.Flags())
	fit.register(cmd.Flags())
	workers.register(cmd.Flags())
	cmd.Flags().StringVar(&profile, "cpu-profile", "", "write a CPU profile of this program, in pprof's format, to this file")
	cmd.Flags().TextVar(&gso, "udp-gso", datapath.GSOAuto, "whether the kernel cuts batches of datagrams: auto (not where it is known to garble them), on, or off")
	cmd.Flags().Var(&who, "datapath", "who carries the packets: the kernel's module, this program (userspace), or auto, which is the module where it works")
	return cmd
}

// notRun says why a client could not be run, with the exit status of a shell: found, but not to be run.
func notRun(cmd *cobra.Command, err error) error {
	fmt.Fprintln(cmd.ErrOrStderr(), "ovpn-go exec:", err)
	return exitStatus(126)
}

// runClient returns how the client ended, once nothing of it, of the server or of their devices is left.
func runClient(cmd *cobra.Command, args []string, cfg netlinksrv.Config) (status exec.Status, err error) {
	failed := exec.Status{Code: 126} // as a shell says: found, but not to be run
	sockets, err := datapath.NewSockets(cfg.Logger)
	if err != nil {
		return failed, err
	}
	defer sockets.Close()
	cfg.Sockets = sockets
	server, err := netlinksrv.New(cfg)
	if err != nil {
		return failed, err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	return exec.Run(cmd.Context(), exec.Options{
		Args: args, Server: server, Sockets: sockets, Logger: cfg.Logger,
		Apart: func() { hideKeys(cfg.Logger) },
	})
}
