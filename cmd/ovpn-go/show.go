package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv/client"
)

func newShowCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show [LINK]",
		Short: "Print interfaces with their peers, keys and traffic",
		Long: `show prints what there is to know at a glance: each interface of kind ovpn with its peers, where they are, which keys
they have, when they were last heard and how much has passed. How old keys are and when a peer was last heard only the daemon
tells. Run it under "ovpn-go exec" to see that one's interfaces, and by itself to see the
daemon's, or the kernel module's where there is no daemon.`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: completeLinks,
		RunE: withClient(func(cmd *cobra.Command, c *client.Conn, args []string) error {
			links, err := selectLinks(c, args)
			if err != nil {
				return err
			}
			views := make([]linkView, 0, len(links))
			for _, link := range links {
				view := viewLink(link)
				if view.Peers, err = viewAllPeers(c, link); err != nil {
					return fmt.Errorf("%s: %w", link.Name, err)
				}
				views = append(views, view)
			}
			out := cmd.OutOrStdout()
			if asJSON {
				return printJSON(out, views)
			}
			for i, view := range views {
				if i > 0 {
					fmt.Fprintln(out)
				}
				fmt.Fprintf(out, "%s: mode %s, MTU %d, %s, %s\n", view.Name, view.Mode, view.MTU, view.State, peerCount(len(view.Peers)))
				if len(view.Peers) == 0 {
					continue
				}
				if err := printPeers(out, view.Peers); err != nil {
					return err
				}
			}
			return nil
		}),
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

func peerCount(n int) string {
	if n == 1 {
		return "1 peer"
	}
	return fmt.Sprintf("%d peers", n)
}

// linkView is a link as --json prints it.
type linkView struct {
	Name  string     `json:"name"`
	Index int        `json:"ifindex"`
	Mode  string     `json:"mode"`
	MTU   int        `json:"mtu"`
	State string     `json:"state"`
	Peers []peerView `json:"peers,omitempty"`
}

func viewLink(link client.Link) linkView {
	return linkView{Name: link.Name, Index: link.Index, Mode: link.Mode.String(), MTU: link.MTU, State: linkState(link)}
}

// peerView is a peer as --json prints it.
type peerView struct {
	ID            uint32      `json:"id"`
	TxID          uint32      `json:"tx_id"`
	Remote        string      `json:"remote,omitempty"`
	Local         string      `json:"local,omitempty"`
	LocalPort     uint16      `json:"local_port"`
	VPN4          string      `json:"vpn_ipv4,omitempty"`
	VPN6          string      `json:"vpn_ipv6,omitempty"`
	Keys          []keyView   `json:"keys"`
	LastSeen      *int64      `json:"last_seen"`          // seconds ago; null: never, or not known
	Interval      int         `json:"keepalive_interval"` // seconds
	Timeout       int         `json:"keepalive_timeout"`  // seconds
	SocketNetNSID *int32      `json:"socket_netnsid,omitempty"`
	VPN           trafficView `json:"vpn"`
	Link          trafficView `json:"link"`
}

// keyView is a key as --json prints it.
type keyView struct {
	Slot   string `json:"slot"`
	ID     uint8  `json:"id"`
	Cipher string `json:"cipher"`
	Age    *int64 `json:"age"` // seconds; null: not known
}

// trafficView is a pair of counters as --json prints it.
type trafficView struct {
	RxBytes   uint64 `json:"rx_bytes"`
	RxPackets uint64 `json:"rx_packets"`
	TxBytes   uint64 `json:"tx_bytes"`
	TxPackets uint64 `json:"tx_packets"`
}

// viewAllPeers describes the peers of a link.
func viewAllPeers(c *client.Conn, link client.Link) ([]peerView, error) {
	peers, err := c.Peers(link.Index)
	if err != nil {
		return nil, err
	}
	return viewPeers(c, link, peers)
}

func viewPeers(c *client.Conn, link client.Link, peers []client.Peer) ([]peerView, error) {
	slices.SortFunc(peers, func(a, b client.Peer) int { return cmp.Compare(a.ID, b.ID) })
	status, err := c.PeerStatus(link.Index)
	if err != nil && !errors.Is(err, client.ErrNoStatus) {
		return nil, err
	}
	views := make([]peerView, 0, len(peers))
	for _, p := range peers {
		keys, err := viewKeys(c, link, p.ID, status[p.ID])
		if err != nil {
			return nil, err
		}
		view := peerView{
			ID: p.ID, TxID: p.TxID, LocalPort: p.LocalPort, Keys: keys, SocketNetNSID: p.SocketNetNSID,
			VPN4: addressText(p.VPN4), VPN6: addressText(p.VPN6), Local: addressText(p.Local),
			Interval: int(p.Keepalive.Interval / time.Second), Timeout: int(p.Keepalive.Timeout / time.Second),
			VPN: trafficView(p.VPN), Link: trafficView(p.Link),
		}
		if p.Remote.IsValid() {
			view.Remote = p.Remote.String()
		}
		if s, ok := status[p.ID]; ok && s.Silence >= 0 {
			view.LastSeen = seconds(s.Silence)
		}
		views = append(views, view)
	}
	return views, nil
}

func addressText(addr netip.Addr) string {
	if !addr.IsValid() {
		return ""
	}
	return addr.String()
}

func (p peerView) endpoint() string {
	if p.Remote == "" {
		return "tcp"
	}
	return "udp " + p.Remote
}

func (p peerView) addresses() string { return orDash(strings.TrimSpace(p.VPN4 + " " + p.VPN6)) }

func (p peerView) keys() string {
	var texts []string
	for _, k := range p.Keys {
		texts = append(texts, fmt.Sprintf("%s %d (%s)", k.Slot, k.ID, ageText(k.Age)))
	}
	return orDash(strings.Join(texts, ", "))
}

func seconds(d time.Duration) *int64 {
	n := int64(d / time.Second)
	return &n
}

// ageText rounds a number of seconds, which may not be known, down to its largest unit.
func ageText(age *int64) string {
	if age == nil {
		return "-"
	}
	const minute, hour, day = 60, 60 * 60, 24 * 60 * 60
	switch n := *age; {
	case n < minute:
		return fmt.Sprintf("%d s", n)
	case n < hour:
		return fmt.Sprintf("%d min", n/minute)
	case n < day:
		return fmt.Sprintf("%d h", n/hour)
	default:
		return fmt.Sprintf("%d d", n/day)
	}
}

func (p peerView) keepalive() string {
	if p.Interval == 0 {
		return "-"
	}
	return fmt.Sprintf("%d s, %d s", p.Interval, p.Timeout)
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

func (t trafficView) received() string { return sizeText(t.RxBytes) }
func (t trafficView) sent() string     { return sizeText(t.TxBytes) }

// sizeText rounds a number of bytes to three digits.
func sizeText(n uint64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	value, names := float64(n)/unit, "KMGTPE"
	for value >= unit && len(names) > 1 {
		value, names = value/unit, names[1:]
	}
	return fmt.Sprintf("%.3g %ciB", value, names[0])
}

// jsonFlag adds the flag that every command with a result has.
func jsonFlag(cmd *cobra.Command, asJSON *bool) {
	cmd.Flags().BoolVar(asJSON, "json", false, "print JSON")
}

func printJSON(out io.Writer, value any) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(value)
}

// withClient opens a connection for a command, and says of some errors what to do.
func withClient(run func(*cobra.Command, *client.Conn, []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := client.Dial()
		if err != nil {
			return err
		}
		defer c.Close()
		return advise(run(cmd, c, args))
	}
}

// advise adds what a user can do to errors that have one likely cause.
func advise(err error) error {
	switch {
	case errors.Is(err, client.ErrNoFamily), errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf(`%w: the kernel has no ovpn module; start "ovpn-go serve", or run this under "ovpn-go exec -- ..."`, err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: this takes CAP_NET_ADMIN", err)
	}
	return err
}

// completeLinks offers the names of links to the shell.
func completeLinks(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	c, err := client.Dial()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	defer c.Close()
	links, err := c.Links()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	names := make([]string, 0, len(links))
	for _, link := range links {
		names = append(names, link.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
