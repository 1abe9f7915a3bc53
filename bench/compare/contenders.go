package compare

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"ovpn-go/bench"
	"ovpn-go/bench/report"
)

// A contender is one way to carry packets from one namespace to the other.
type contender struct {
	name, what string
	// find returns what version there is to run, or why there is none and what to install.
	find func(*comparison) (version string, err error)
	// start makes a tunnel of what is only two namespaces with a link between them so far. The caller closes it.
	start func(context.Context, *comparison, *tunnel, setting) error
}

// contenders are in the order in which they take turns.
var contenders = []contender{
	{report.Ours, "this program under unmodified OpenVPN, as users run it", (*comparison).findStock, startStock},
	{report.OursStatic, "this program with keys that were not negotiated", (*comparison).findOurs, startStatic},
	{report.OpenVPN, "OpenVPN with its own data channel (--disable-dco)", (*comparison).findOpenVPN, startOpenVPN},
	{report.WireGuardGo, "wireguard-go, WireGuard's userspace program", (*comparison).findWireGuardGo, startWireGuardGo},
	{report.KernelOvpn, "OpenVPN on the kernel's ovpn module", (*comparison).findKernelOvpn, startKernelOvpn},
	{report.KernelStatic, "the kernel's ovpn module with keys that were not negotiated", (*comparison).findOvpnModule, startKernelStatic},
	{report.KernelWG, "the kernel's WireGuard module", (*comparison).findWireGuardModule, startKernelWireGuard},
	{report.Veth, "no tunnel: the link between the namespaces, the ceiling", func(*comparison) (string, error) { return "the kernel's own", nil }, startVeth},
}

func (c *comparison) findOurs() (string, error) { return programVersion(c.options.Program), nil }

func (c *comparison) findOpenVPN() (string, error) {
	if c.openvpn.Version == "" {
		return "", c.noOpenVPN
	}
	fields := strings.Fields(c.openvpn.Version)
	return strings.Join(fields[:min(2, len(fields))], " "), nil
}

func (c *comparison) findStock() (string, error) {
	openvpn, err := c.findOpenVPN()
	if err != nil {
		return "", err
	}
	ours, err := c.findOurs()
	return ours + ", " + openvpn, err
}

func (c *comparison) findKernelOvpn() (string, error) {
	openvpn, err := c.findOpenVPN()
	if err != nil {
		return "", err
	}
	kernel, err := c.findOvpnModule()
	return openvpn + ", " + kernel, err
}

// lookForOpenVPN finds the OpenVPN that is used throughout.
func (c *comparison) lookForOpenVPN() {
	var err error
	if c.openvpn, err = bench.FindOpenVPN(); err != nil {
		c.noOpenVPN = fmt.Errorf("%w; install Debian's openvpn 2.7, or run test/testroot/build.sh", err)
	}
}

func (c *comparison) findOvpnModule() (string, error) {
	return c.findModule("ovpn", "Linux 6.16 or later has it (CONFIG_OVPN)")
}

func (c *comparison) findWireGuardModule() (string, error) {
	return c.findModule("wireguard", "CONFIG_WIREGUARD; in Debian's kernels it is the module wireguard")
}

// findModule tries to make a link of the kind, for which the kernel loads a module if it can.
func (c *comparison) findModule(kind, hint string) (version string, err error) {
	t := bench.NewTopology()
	defer func() { err = errors.Join(err, t.Close()) }()
	node, err := t.AddNode("probe")
	if err != nil {
		return "", err
	}
	release := kernelRelease()
	if err := node.AddLink("probe0", kind); err != nil {
		if errors.Is(err, unix.EOPNOTSUPP) {
			return "", fmt.Errorf("this kernel (%s) has no %s device: %s", release, kind, hint)
		}
		return "", err
	}
	return "Linux " + release, nil
}

const wireGuardGo = "golang.zx2c4.com/wireguard"

// findWireGuardGo prefers the one beside the program, which make builds, to that in PATH.
func (c *comparison) findWireGuardGo() (string, error) {
	path := filepath.Join(filepath.Dir(c.options.Program), "wireguard-go")
	if _, err := os.Stat(path); err != nil {
		if path, err = exec.LookPath("wireguard-go"); err != nil {
			return "", errors.New("there is no wireguard-go beside this program or in PATH: run make wireguard-go, or apt-get install wireguard-go")
		}
	}
	c.wireGuardGo = path
	// Its own version line has lagged behind for years; what it was built from says more.
	if info, err := buildinfo.ReadFile(path); err == nil {
		if info.Main.Path == wireGuardGo && info.Main.Version != "(devel)" && info.Main.Version != "" {
			return info.Main.Version, nil
		}
		for _, dep := range info.Deps {
			if dep.Path == wireGuardGo {
				return dep.Version, nil
			}
		}
	}
	out, err := exec.Command(path, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w", path, err)
	}
	line, _, _ := bytes.Cut(out, []byte("\n"))
	return string(line), nil
}

func programVersion(path string) string {
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return "unknown"
	}
	version := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 && (version == "(devel)" || version == "") {
			version = s.Value[:12]
		}
	}
	return fmt.Sprintf("%s (%s)", version, info.GoVersion)
}

// execPrefix is what makes a command a client of a binary of ours. Where a profile is asked for, each process
// writes its own.
func (c *comparison) execPrefix(binary, side string) []string {
	prefix := []string{binary, "exec", "--datapath", "userspace", "--log-level", "warn"}
	if c.options.Profile != "" {
		c.profiles++
		prefix = append(prefix, "--cpu-profile", filepath.Join(c.options.Profile, fmt.Sprintf("%03d-%s.pprof", c.profiles, side)))
	}
	return append(prefix, "--")
}
