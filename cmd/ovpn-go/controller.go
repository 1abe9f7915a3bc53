package main

import (
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"ovpn-go/bench/controller"
)

// newControllerCommand is what the bench runs in a namespace: a client of the ovpn family with keys from a file.
func newControllerCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "bench-controller SPECIFICATION",
		Short:  "Make a device with the peers and keys of a file and keep it (for bench)",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM)
			defer stop()
			spec, err := controller.Load(args[0])
			if err != nil {
				return err
			}
			return controller.Run(spec, cmd.OutOrStdout(), ctx.Done())
		},
	}
}
