package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Initialized is what OpenVPN logs when its tunnel is up.
const Initialized = "Initialization Sequence Completed"

// A Lab writes OpenVPN configurations and runs them. It is safe for concurrent use as long as the
// configurations' names differ.
type Lab struct {
	*Launcher
	PKI *PKI
}

// NewLab returns a lab for an openvpn that was found. Its Close kills what still runs.
func NewLab(openvpn OpenVPN) (*Lab, error) {
	pki, err := NewPKI()
	if err != nil {
		return nil, err
	}
	launcher, err := NewLauncher(openvpn.Root)
	if err != nil {
		return nil, err
	}
	return &Lab{Launcher: launcher, PKI: pki}, nil
}

// A Tunnel is a running OpenVPN process.
type Tunnel struct {
	*Process
	Node *Node
	Name string

	pidFile    string
	management string
}

// Placement says where and under which command OpenVPN runs; see Command.
type Placement struct {
	Node   *Node
	Prefix []string
	Env    []string
}

// StartServer writes a server's configuration and starts it.
func (l *Lab) StartServer(at Placement, o ServerOptions) (*Tunnel, error) {
	cred, err := l.PKI.Server(o.Name)
	if err != nil {
		return nil, err
	}
	lines := o.lines()
	if len(o.Clients) > 0 {
		dir := o.Name + ".ccd"
		for name, config := range o.Clients {
			if _, err := l.WriteFile(filepath.Join(dir, name), configText(config), 0o644); err != nil {
				return nil, err
			}
		}
		lines = append(lines, "client-config-dir "+l.Inside(dir))
	}
	return l.start(at, o.Options, cred, lines)
}

// StartClient writes a client's configuration and starts it.
func (l *Lab) StartClient(at Placement, o ClientOptions) (*Tunnel, error) {
	cred, err := l.PKI.Client(o.Name)
	if err != nil {
		return nil, err
	}
	return l.start(at, o.Options, cred, o.lines())
}

func (l *Lab) start(at Placement, o Options, cred Credential, lines []string) (*Tunnel, error) {
	t := &Tunnel{Node: at.Node, Name: o.Name, pidFile: filepath.Join(l.Dir(), o.Name+".pid")}
	// A pid of an earlier process of that name must not be taken for this one's.
	if err := os.Remove(t.pidFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	lines = append(lines, "writepid "+l.Inside(o.Name+".pid"))
	if o.Management {
		t.management = filepath.Join(l.Dir(), o.Name+".mgmt")
		lines = append(lines, "management "+l.Inside(o.Name+".mgmt")+" unix")
	}
	files := []struct {
		option, name string
		data         []byte
		mode         os.FileMode
	}{
		{"ca", o.Name + ".ca", l.PKI.CA, 0o644},
		{"cert", o.Name + ".crt", cred.Cert, 0o644},
		{"key", o.Name + ".key", cred.Key, 0o600},
		{"tls-crypt", o.Name + ".tc", l.PKI.TLSCrypt, 0o600},
	}
	for _, f := range files {
		if f.option == "tls-crypt" && !o.TLSCrypt {
			continue
		}
		path, err := l.WriteFile(f.name, f.data, f.mode)
		if err != nil {
			return nil, err
		}
		lines = append(lines, f.option+" "+path)
	}
	config, err := l.WriteFile(o.Name+".conf", configText(lines), 0o644)
	if err != nil {
		return nil, err
	}
	t.Process, err = l.Start(Command{
		Node: at.Node, Prefix: at.Prefix, Env: at.Env,
		Args: []string{cmp.Or(o.Program, "openvpn"), "--config", config},
	})
	if err != nil {
		return nil, err
	}
	return t, nil
}

// WaitUp waits until the tunnel is up for the first time.
func (t *Tunnel) WaitUp(ctx context.Context, timeout time.Duration) error {
	return t.WaitUpAgain(ctx, 0, timeout)
}

// WaitUpAgain waits until the tunnel has come up after the mark in its log.
func (t *Tunnel) WaitUpAgain(ctx context.Context, mark int, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if _, err := t.WaitLog(ctx, mark, Initialized, timeout); err != nil {
		return err
	}
	// OpenVPN says so as soon as the peer exists. Until the kernel's link watcher has seen the carrier, which
	// takes its while on a busy machine, the stack discards what it would send.
	name, _, err := t.Device()
	if err != nil {
		return err
	}
	return t.Node.WaitRunning(ctx, name)
}

// WaitLog waits until a line at or after the mark holds the text, and returns the mark behind it.
func (t *Tunnel) WaitLog(ctx context.Context, mark int, text string, timeout time.Duration) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	_, next, err := t.Log.WaitFor(ctx, mark, text)
	if err != nil {
		return 0, fmt.Errorf("openvpn %s: %w", t.Name, err)
	}
	return next, nil
}

// OpenVPNPID returns OpenVPN's own process id, which differs from PID under a prefix command. It is
// known once the tunnel is up.
func (t *Tunnel) OpenVPNPID() (int, error) {
	data, err := os.ReadFile(t.pidFile)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return 0, fmt.Errorf("pid file of %s: %w", t.Name, err)
	}
	return pid, nil
}

// Management connects to the management socket of a tunnel that has one.
func (t *Tunnel) Management(ctx context.Context) (*Management, error) {
	if t.management == "" {
		return nil, fmt.Errorf("openvpn %s has no management socket", t.Name)
	}
	return DialManagement(ctx, t.management)
}

// deviceOpened matches what OpenVPN says when it has opened its interface, with and without DCO.
var deviceOpened = regexp.MustCompile(`(DCO|TUN/TAP) device \[?([^ \]]+)\]? opened`)

// Device returns the interface that the tunnel opened last, and whether it is a DCO device.
func (t *Tunnel) Device() (name string, dco bool, err error) {
	all := t.Log.Match(0, deviceOpened)
	if len(all) == 0 {
		return "", false, fmt.Errorf("openvpn %s has opened no device; the log's last lines:\n%s",
			t.Name, t.Log.Tail(20))
	}
	last := all[len(all)-1]
	return last[2], last[1] == "DCO", nil
}

// VPNAddrs returns the IPv4 and the IPv6 address of the tunnel's interface; the latter is invalid if
// there is none.
func (t *Tunnel) VPNAddrs() (v4, v6 netip.Addr, err error) {
	name, _, err := t.Device()
	if err != nil {
		return v4, v6, err
	}
	addrs, err := t.Node.LinkAddrs(name)
	if err != nil {
		return v4, v6, err
	}
	for _, a := range addrs {
		if a.Is4() {
			v4 = a
		} else {
			v6 = a
		}
	}
	if !v4.IsValid() && !v6.IsValid() {
		return v4, v6, fmt.Errorf("openvpn %s: interface %s has no address", t.Name, name)
	}
	return v4, v6, nil
}
