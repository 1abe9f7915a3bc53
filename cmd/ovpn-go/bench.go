package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"ovpn-go/bench"
	"ovpn-go/bench/compare"
	"ovpn-go/bench/report"
)

// benchFlags are the flags of bench that are not options of a comparison as they stand.
type benchFlags struct {
	options  compare.Options
	cases    string
	binaries []string
	from     []string
	output   string
	json     bool
	list     bool
}

func newBenchCommand() *cobra.Command {
	var f benchFlags
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Compare this program's speed with others', side by side",
		Long: `bench sends the same traffic through this program, OpenVPN without offload, wireguard-go, the kernel's
modules where it has them, and no tunnel at all. Each stands between two network namespaces of its own; they take turns,
and what counts is the ratio of neighbouring measurements. It needs root and /dev/net/tun, nothing else should
run meanwhile, and it leaves nothing behind. Rivals that are missing are named, with what to install.

OpenVPN is that in PATH if it is 2.7 or later and built with DCO, or else the one in the tests' Debian tree
(test/testroot/build.sh; OVPN_GO_TESTROOT). wireguard-go is looked for beside this program, then in PATH.

With --output it writes performance.json, performance.md and performance.svg. With --from it measures nothing and
writes them from earlier results, of several machines if need be. It fails if a measurement could not be made,
not if a goal was missed.`,
		Example: `  ovpn-go bench --list
  ovpn-go bench --quick
  ovpn-go bench --output results
  ovpn-go bench --cases '^tcp-1-up$' --rounds 9
  ovpn-go bench --binary old=/tmp/ovpn-go.old --binary new=bin/ovpn-go
  ovpn-go bench --from results/performance.json --from vm/performance.json --output docs`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			noDaemonBelow() // it is this program that is measured
			return f.run(cmd)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.cases, "cases", "", "only the cases whose id matches this regular expression")
	flags.IntVar(&f.options.Rounds, "rounds", 5, "how often each contender has its turn at what a goal depends on; less elsewhere")
	flags.DurationVar(&f.options.Duration, "duration", 4*time.Second, "length of a measurement that a goal depends on; others are shorter")
	flags.StringVar(&f.output, "output", "", "directory for performance.json, performance.md and performance.svg")
	flags.BoolVar(&f.json, "json", false, "print the results as JSON, and progress to standard error")
	flags.BoolVar(&f.list, "list", false, "name the cases and the contenders, and measure nothing")
	flags.BoolVar(&f.options.Quick, "quick", false, "a few short cases in one round, without waiting for a quiet machine: to see that it works")
	flags.StringArrayVar(&f.binaries, "binary", nil, "NAME=PATH of a build of this program; given several times, those are compared with each other and nothing else")
	flags.StringVar(&f.options.Profile, "profile", "", "directory where each of this program's processes leaves a CPU profile")
	flags.StringArrayVar(&f.from, "from", nil, "results as JSON to write the document from, instead of measuring")
	return cmd
}

func (f *benchFlags) run(cmd *cobra.Command) (err error) {
	if len(f.from) > 0 {
		return f.render(cmd)
	}
	if err := f.prepare(cmd); err != nil {
		return err
	}
	if f.list {
		return f.printList(cmd.OutOrStdout())
	}
	progress := cmd.OutOrStdout()
	if f.json {
		progress = cmd.ErrOrStderr()
	}
	f.options.Progress = func(line string) { fmt.Fprintln(progress, line) }
	ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	result, err := compare.Run(ctx, f.options)
	switch {
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("bench: interrupted")
	case err != nil && !errors.Is(err, compare.ErrFailed):
		return unable(cmd, "bench", err)
	}
	if outErr := f.write(cmd, []report.Report{result}); outErr != nil {
		return errors.Join(err, outErr)
	}
	if err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	return nil
}

// unable prints why the command can't run here and chooses the exit status that says so.
func unable(cmd *cobra.Command, name string, err error) error {
	if errors.Is(err, bench.ErrUnable) {
		fmt.Fprintf(cmd.ErrOrStderr(), "ovpn-go: %s: %v\n", name, err)
		return exitUnable
	}
	return fmt.Errorf("%s: %w", name, err)
}

// prepare makes options of the flags.
func (f *benchFlags) prepare(cmd *cobra.Command) (err error) {
	if f.options.Program, err = os.Executable(); err != nil {
		return err
	}
	if f.cases != "" {
		if f.options.Cases, err = regexp.Compile(f.cases); err != nil {
			return fmt.Errorf("--cases: %w", err)
		}
	}
	for _, b := range f.binaries {
		name, path, ok := strings.Cut(b, "=")
		if !ok || name == "" || path == "" {
			return fmt.Errorf("--binary %q: must be NAME=PATH", b)
		}
		if path, err = filepath.Abs(path); err != nil {
			return err
		}
		if _, err := os.Stat(path); err != nil {
			return fmt.Errorf("--binary: %w", err)
		}
		f.options.Binaries = append(f.options.Binaries, compare.Binary{Name: name, Path: path})
	}
	if f.options.Profile != "" {
		if f.options.Profile, err = filepath.Abs(f.options.Profile); err != nil {
			return err
		}
		if err := os.MkdirAll(f.options.Profile, 0o755); err != nil {
			return err
		}
	}
	if f.options.Quick {
		if !cmd.Flags().Changed("rounds") {
			f.options.Rounds = 1
		}
		if !cmd.Flags().Changed("duration") {
			f.options.Duration = 400 * time.Millisecond
		}
	}
	if f.options.Rounds < 1 || f.options.Duration < 100*time.Millisecond {
		return errors.New("--rounds must be at least 1 and --duration 100ms")
	}
	return nil
}

func (f *benchFlags) printList(out io.Writer) error {
	cases, contenders, total, err := compare.List(f.options)
	if err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "CASE\tROUNDS\tEACH\tCONTENDERS")
	for _, c := range cases {
		fmt.Fprintf(w, "%s\t%d\t%v\t%s\n", c.ID, c.Rounds, c.Duration, strings.Join(c.Contenders, " "))
	}
	fmt.Fprintln(w, "\nCONTENDER\tWHAT")
	for _, c := range contenders {
		state := c.Version
		if c.Missing != "" {
			state = "MISSING: " + c.Missing
		}
		fmt.Fprintf(w, "%s\t%s: %s\n", c.Name, c.What, state)
	}
	fmt.Fprintf(w, "\nabout %d minutes\n", int(total.Minutes()+0.999))
	return w.Flush()
}

// render writes the document from results that exist.
func (f *benchFlags) render(cmd *cobra.Command) error {
	var reports []report.Report
	for _, path := range f.from {
		more, err := report.ReadJSON(path)
		if err != nil {
			return fmt.Errorf("bench: %w", err)
		}
		reports = append(reports, more...)
	}
	return f.write(cmd, reports)
}

func (f *benchFlags) write(cmd *cobra.Command, reports []report.Report) error {
	if f.output != "" {
		if err := report.Write(f.output, reports); err != nil {
			return fmt.Errorf("bench: %w", err)
		}
	}
	if f.json {
		return report.EncodeJSON(cmd.OutOrStdout(), reports)
	}
	return report.Print(cmd.OutOrStdout(), reports)
}
