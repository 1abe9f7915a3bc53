// Command ovpn-go is the Linux kernel's ovpn device (OpenVPN data channel offload) as a userspace program.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"ovpn-go/netlinksrv/daemon/wire"
	"ovpn-go/netlinksrv/exec"
)

// The main goroutine stays on the main thread, so that no goroutine that enters another namespace ever does so
// on the thread that /proc/PID speaks of.
func init() { runtime.LockOSThread() }

// minProcs is how many goroutines may run at once at least. A worker that waits for a packet counts as running until
// the Go scheduler needs its place for another, and with one place per processor of a small machine it always does:
// handing the place on and asking for it back took a third of a ping's round trip.
const minProcs = 4

func main() {
	exec.Reexec()
	if os.Getenv("GOMAXPROCS") == "" && runtime.GOMAXPROCS(0) < minProcs {
		runtime.GOMAXPROCS(minProcs)
	}
	os.Exit(run(os.Args[1:]))
}

// exitStatus is an error that only sets the exit status: what there was to say has been said.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

func run(args []string) int {
	root := newRootCommand()
	root.SetArgs(args)
	err := root.Execute()
	var status exitStatus
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	}
	fmt.Fprintln(os.Stderr, "ovpn-go:", err)
	return 1
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "ovpn-go",
		Short: "OpenVPN data channel offload without the kernel module",
		Long: `ovpn-go is the Linux kernel's ovpn device (OpenVPN data channel offload, DCO) as a userspace
program. Unmodified clients of the kernel module, such as OpenVPN 2.7, run on it unchanged:

    ovpn-go exec -- openvpn --config client.ovpn`,
		Version:       version(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.PersistentFlags().Var(socketFlag{}, "socket", "where the daemon's socket is; none: use no daemon "+
		"(default: $"+wire.Variable+", or else "+wire.DefaultPath+" if a daemon answers there)")
	root.AddCommand(newExecCommand(), newServeCommand(), newLinkCommand(), newPeerCommand(), newKeyCommand(), newShowCommand(),
		newMonitorCommand(), newDoctorCommand(), newDemoCommand(), newBenchCommand(), newHoldCommand(), newDoctorChildCommand(), newControllerCommand())
	return root
}

// socketFlag says where the daemon is. What is said goes to the environment, so that programs that are started, such as the holder of a peer's
// socket, know it as well.
type socketFlag struct{}

func (socketFlag) String() string { return "" }
func (socketFlag) Type() string   { return "PATH" }

func (socketFlag) Set(path string) (err error) {
	if path != wire.None {
		if path, err = filepath.Abs(path); err != nil {
			return err
		}
	}
	return os.Setenv(wire.Variable, path)
}

// version is what the Go toolchain recorded about the build.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 && v == "(devel)" {
			v = s.Value[:12]
		}
	}
	return fmt.Sprintf("%s (%s, %s/%s)", v, info.GoVersion, runtime.GOOS, runtime.GOARCH)
}
