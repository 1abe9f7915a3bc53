package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"ovpn-go/cmd/doctor"
)

func newDoctorCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Find out what works on this machine, and what to do about the rest",
		Long: `doctor tries everything that the program needs of the kernel, the container and its own rights, prints what works, what
falls back to what, and what to do about it. It changes nothing and leaves nothing behind. Run it where you would run
the program: in the same container, as the same user.

The exit status is 0 if all is well, 1 if something works slower or with less, and 2 if the program can't do its work.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			program, err := os.Executable()
			if err != nil {
				return err
			}
			findings := doctor.Doctor{Program: program}.Examine()
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), findings)
			} else {
				err = printFindings(cmd.OutOrStdout(), findings)
			}
			if worst := doctor.Worst(findings); err == nil && worst != doctor.OK {
				return exitStatus(worst)
			}
			return err
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

func printFindings(out io.Writer, findings []doctor.Finding) error {
	for _, f := range findings {
		lines := fmt.Sprintf("%-9s %-21s %s\n", f.Severity, f.Check, f.Detail)
		if f.Effect != "" {
			lines += fmt.Sprintf("%-31s so: %s\n", "", f.Effect)
		}
		if f.Advice != "" {
			lines += fmt.Sprintf("%-31s do: %s\n", "", f.Advice)
		}
		if _, err := io.WriteString(out, lines); err != nil {
			return err
		}
	}
	var err error
	switch doctor.Worst(findings) {
	case doctor.OK:
		_, err = fmt.Fprintln(out, "\nEverything works.")
	case doctor.Degraded:
		_, err = fmt.Fprintln(out, "\nIt works, with less than there could be.")
	case doctor.Failed:
		_, err = fmt.Fprintln(out, "\nIt can't work like this.")
	}
	return err
}

// newDoctorChildCommand is a process for doctor to look into.
func newDoctorChildCommand() *cobra.Command {
	return &cobra.Command{
		Use:    doctor.ChildCommand,
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := io.WriteString(cmd.OutOrStdout(), "\n"); err != nil {
				return err
			}
			_, err := io.Copy(io.Discard, cmd.InOrStdin())
			return err
		},
	}
}
