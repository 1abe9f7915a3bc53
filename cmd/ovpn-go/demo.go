package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"ovpn-go/bench"
)

// exitUnable is the demo's exit status where namespaces or TUN devices are not to be had.
const exitUnable exitStatus = 2

func newDemoCommand() *cobra.Command {
	var (
		asJSON  bool
		demo    bench.Demo
		workers workersFlag
	)
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Build a server and two clients in network namespaces and measure their tunnels",
		Long: `demo makes one server and two clients in network namespaces of their own, connects them with
unmodified OpenVPN processes under this program, pings and sends through the tunnels, does the same
with OpenVPN's own data channel, and prints the ratio. It needs root and /dev/net/tun, takes less than
20 seconds and leaves nothing behind.

It uses the openvpn in PATH if that is 2.7 or later and built with DCO, or else the one in the tests'
Debian tree (test/testroot/build.sh; OVPN_GO_TESTROOT). Without either the devices get static keys.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			noDaemonBelow()
			program, err := os.Executable()
			if err != nil {
				return err
			}
			demo.Program, demo.Workers = program, int(workers)
			progress := cmd.OutOrStdout()
			if asJSON {
				progress = cmd.ErrOrStderr()
			}
			begin := time.Now()
			demo.Progress = func(line string) {
				fmt.Fprintf(progress, "%5.1fs  %s\n", time.Since(begin).Seconds(), line)
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM)
			defer stop()
			result, err := demo.Run(ctx)
			switch {
			case errors.Is(err, bench.ErrUnable):
				fmt.Fprintln(cmd.ErrOrStderr(), "ovpn-go: demo:", err)
				return exitUnable
			case errors.Is(err, context.Canceled):
				return fmt.Errorf("demo: interrupted")
			case err != nil:
				return fmt.Errorf("demo: %w", err)
			}
			if asJSON {
				out := json.NewEncoder(cmd.OutOrStdout())
				out.SetIndent("", "  ")
				return out.Encode(result)
			}
			return printDemo(cmd.OutOrStdout(), result)
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&asJSON, "json", false, "print the result as JSON, and progress to standard error")
	flags.BoolVar(&demo.StaticKeys, "static-keys", false, "do without OpenVPN even if there is one")
	workers.register(flags)
	flags.DurationVar(&demo.Duration, "duration", 2*time.Second, "length of each throughput measurement")
	return cmd
}

func printDemo(out io.Writer, result bench.DemoResult) error {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintf(w, "\nTUNNEL\tINTERFACE\tDATA CHANNEL\tPING\tLOST\tGBIT/S\n")
	for _, t := range result.Tunnels {
		fmt.Fprintf(w, "%s\t%s\t%s\t%.2f ms\t%d of %d\t%.2f\n",
			t.Name, t.Interface, t.DataChannel, t.PingMedian, t.PingsLost, t.Pings, t.GbitPerSecond)
	}
	if result.Ratio > 0 {
		fmt.Fprintf(w, "\nthroughput of client1 against OpenVPN itself: %.1f times\n", result.Ratio)
	}
	return w.Flush()
}
