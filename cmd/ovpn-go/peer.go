package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"ovpn-go/netlinksrv/client"
	"ovpn-go/netlinksrv/client/hold"
)

func newPeerCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "peer",
		Short: "Add, change, delete and show peers",
	}
	cmd.AddCommand(newPeerAddCommand(), newPeerSetCommand(), newPeerDeleteCommand(), newPeerShowCommand())
	return cmd
}

// peerFlags are what can be said of a peer both when it is added and later.
type peerFlags struct {
	remote    addrPortFlag
	from      addrFlag
	vpn4      addrFlag
	vpn6      addrFlag
	txID      idFlag
	keepalive keepaliveFlag
}

func (f *peerFlags) register(flags *pflag.FlagSet) {
	flags.Var(&f.remote, "remote", "where the peer is: ADDRESS:PORT, an IPv6 address in brackets")
	flags.Var(&f.from, "from", "address to send from (default: as routed)")
	flags.Var(&f.vpn4, "vpn-ipv4", "the peer's IPv4 address inside the tunnel; mode mp only")
	flags.Var(&f.vpn6, "vpn-ipv6", "the peer's IPv6 address inside the tunnel; mode mp only")
	flags.Var(&f.txID, "tx-id", "id in packets to the peer (default: ID)")
	flags.Var(&f.keepalive, "keepalive", "INTERVAL,TIMEOUT in seconds: ping after so long without sending, remove the peer after so long without hearing from it; 0,0 is off")
}

func newPeerAddCommand() *cobra.Command {
	var (
		flags peerFlags
		local = addrPortFlag{addr: netip.AddrPortFrom(netip.IPv6Unspecified(), 0)}
		tcp   bool
	)
	cmd := &cobra.Command{
		Use:   "add LINK ID",
		Short: "Add a peer over UDP or TCP",
		Long: `add makes a peer. It has no key yet, so nothing passes until "key add".

A peer lives as long as its transport socket. A small process holds the socket and ends when the last of its peers is deleted;
ending it deletes its peers. Over UDP there is one for all the peers of a local address.

Over TCP one side connects to its --remote. The other has no --remote: it waits at --local and takes the first connection that
comes. The peer goes with its connection, and nobody opens another by himself.`,
		Example: `  ovpn-go peer add ovpn0 1 --local :1194 --remote 192.0.2.1:1194
  ovpn-go peer add ovpn0 7 --local 0.0.0.0:1194 --remote 192.0.2.7:1194 --vpn-ipv4 10.8.0.7 --keepalive 10,60
  ovpn-go peer add ovpn0 1 --tcp --local :1194
  ovpn-go peer add ovpn0 1 --tcp --remote 192.0.2.1:1194`,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: completeLinks,
		RunE: withClient(func(cmd *cobra.Command, c *client.Conn, args []string) error {
			remote := flags.remote.addr
			switch {
			case tcp && flags.from.addr.IsValid():
				return errors.New("peer add: --from is for UDP; over TCP --local says where to connect from")
			case tcp && !remote.IsValid() && local.addr.Port() == 0:
				return errors.New("peer add: --tcp takes a --remote to connect to, or a --local with a port to wait at")
			case !tcp && !remote.IsValid():
				return errors.New("peer add: --remote is required")
			}
			link, id, err := linkAndPeer(c, args)
			if err != nil {
				return err
			}
			program, err := os.Executable()
			if err != nil {
				return err
			}
			var claim *hold.Claim
			switch {
			case !tcp:
				claim, err = hold.Acquire(program, local.addr, link.Index, id)
			case remote.IsValid():
				claim, err = hold.Connect(program, local.addr, remote, link.Index, id)
				remote = netip.AddrPort{} // the connection's own
			default:
				claim, err = hold.Accept(program, local.addr, link.Index, id)
			}
			if err != nil {
				return err
			}
			defer claim.Close()
			err = c.NewPeer(link.Index, client.PeerConfig{
				ID:        id,
				TxID:      flags.txID.id,
				Socket:    int(claim.Socket.Fd()),
				Remote:    remote,
				Local:     flags.from.addr,
				VPN4:      flags.vpn4.addr,
				VPN6:      flags.vpn6.addr,
				Keepalive: flags.keepalive.value(),
			})
			if err != nil {
				return err
			}
			return claim.Keep()
		}),
	}
	flags.register(cmd.Flags())
	cmd.Flags().Var(&local, "local", "where the socket is bound: [ADDRESS]:PORT; port 0 is any free one, and no address is every one, IPv4 and IPv6")
	cmd.Flags().BoolVar(&tcp, "tcp", false, "over TCP: connect to --remote, or without one wait for a connection at --local")
	return cmd
}

func newPeerSetCommand() *cobra.Command {
	var flags peerFlags
	cmd := &cobra.Command{
		Use:   "set LINK ID",
		Short: "Change a peer",
		Long: `set changes what is given and leaves the rest. A --vpn-ipv4 of 0.0.0.0 or a --vpn-ipv6 of :: takes that address
away. --keepalive restarts both timers.`,
		Example:           "  ovpn-go peer set ovpn0 7 --keepalive 10,60",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: completeLinks,
		RunE: withClient(func(cmd *cobra.Command, c *client.Conn, args []string) error {
			link, id, err := linkAndPeer(c, args)
			if err != nil {
				return err
			}
			return c.SetPeer(link.Index, id, client.PeerChange{
				TxID:      flags.txID.id,
				Remote:    flags.remote.addr,
				Local:     flags.from.addr,
				VPN4:      flags.vpn4.addr,
				VPN6:      flags.vpn6.addr,
				Keepalive: flags.keepalive.keepalive,
			})
		}),
	}
	flags.register(cmd.Flags())
	return cmd
}

func newPeerDeleteCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "del LINK ID",
		Aliases:           []string{"delete"},
		Short:             "Delete a peer with its keys",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: completeLinks,
		RunE: withClient(func(cmd *cobra.Command, c *client.Conn, args []string) error {
			link, id, err := linkAndPeer(c, args)
			if err != nil {
				return err
			}
			return c.DeletePeer(link.Index, id)
		}),
	}
}

func newPeerShowCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:               "show LINK [ID]",
		Short:             "Print one peer or all",
		Args:              cobra.RangeArgs(1, 2),
		ValidArgsFunction: completeLinks,
		RunE: withClient(func(cmd *cobra.Command, c *client.Conn, args []string) error {
			link, err := c.Link(args[0])
			if err != nil {
				return err
			}
			var views []peerView
			if len(args) == 2 {
				id, err := parsePeerID(args[1])
				if err != nil {
					return err
				}
				peer, err := c.Peer(link.Index, id)
				if err != nil {
					return err
				}
				views, err = viewPeers(c, link, []client.Peer{peer})
				if err != nil {
					return err
				}
			} else if views, err = viewAllPeers(c, link); err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), views)
			}
			return printPeers(cmd.OutOrStdout(), views)
		}),
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

func printPeers(out io.Writer, peers []peerView) error {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "PEER\tENDPOINT\tVPN ADDRESS\tKEYS (AGE)\tLAST SEEN\tKEEPALIVE\tRECEIVED\tSENT")
	for _, p := range peers {
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", p.ID, p.endpoint(), p.addresses(), p.keys(), ageText(p.LastSeen), p.keepalive(),
			p.Link.received(), p.Link.sent())
	}
	return w.Flush()
}

// newHoldCommand is what hold.Acquire starts.
func newHoldCommand() *cobra.Command {
	return &cobra.Command{
		Use:    hold.Command,
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE:   func(*cobra.Command, []string) error { return hold.Main() },
	}
}

// linkAndPeer reads the two arguments that most commands about peers begin with.
func linkAndPeer(c *client.Conn, args []string) (client.Link, uint32, error) {
	id, err := parsePeerID(args[1])
	if err != nil {
		return client.Link{}, 0, err
	}
	link, err := c.Link(args[0])
	return link, id, err
}

func parsePeerID(text string) (uint32, error) {
	id, err := strconv.ParseUint(text, 10, 24)
	if err != nil {
		return 0, fmt.Errorf("peer id %q: must be a number from 0 to 16777215", text)
	}
	return uint32(id), nil
}

// idFlag is an optional peer id.
type idFlag struct{ id *uint32 }

func (f *idFlag) Type() string { return "ID" }
func (f *idFlag) String() string {
	if f.id == nil {
		return ""
	}
	return strconv.FormatUint(uint64(*f.id), 10)
}
func (f *idFlag) Set(text string) error {
	id, err := parsePeerID(text)
	f.id = &id
	return err
}

// addrFlag is an optional address.
type addrFlag struct{ addr netip.Addr }

func (f *addrFlag) Type() string { return "ADDRESS" }
func (f *addrFlag) String() string {
	if !f.addr.IsValid() {
		return ""
	}
	return f.addr.String()
}
func (f *addrFlag) Set(text string) (err error) {
	f.addr, err = netip.ParseAddr(text)
	return err
}

// addrPortFlag is an optional address with a port. Without an address it is every address.
type addrPortFlag struct{ addr netip.AddrPort }

func (f *addrPortFlag) Type() string { return "ADDRESS:PORT" }
func (f *addrPortFlag) String() string {
	if !f.addr.IsValid() {
		return ""
	}
	return f.addr.String()
}
func (f *addrPortFlag) Set(text string) (err error) {
	if len(text) > 0 && text[0] == ':' {
		text = "[::]" + text
	}
	f.addr, err = netip.ParseAddrPort(text)
	return err
}

// keepaliveFlag is an optional pair of seconds.
type keepaliveFlag struct{ keepalive *client.Keepalive }

func (f *keepaliveFlag) Type() string { return "SECONDS,SECONDS" }
func (f *keepaliveFlag) String() string {
	if f.keepalive == nil {
		return ""
	}
	return fmt.Sprintf("%d,%d", f.keepalive.Interval/time.Second, f.keepalive.Timeout/time.Second)
}
func (f *keepaliveFlag) Set(text string) error {
	var interval, timeout uint32
	if n, err := fmt.Sscanf(text, "%d,%d", &interval, &timeout); n != 2 || err != nil {
		return errors.New("must be two numbers of seconds with a comma between them")
	}
	f.keepalive = &client.Keepalive{
		Interval: time.Duration(interval) * time.Second,
		Timeout:  time.Duration(timeout) * time.Second,
	}
	return nil
}
func (f *keepaliveFlag) value() client.Keepalive {
	if f.keepalive == nil {
		return client.Keepalive{}
	}
	return *f.keepalive
}
