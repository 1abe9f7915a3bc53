package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"ovpn-go/netlinksrv/client"
)

func newLinkCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "link",
		Short: "Add, delete and show interfaces of kind ovpn",
	}
	cmd.AddCommand(newLinkAddCommand(), newLinkDeleteCommand(), newLinkShowCommand())
	return cmd
}

func newLinkAddCommand() *cobra.Command {
	cfg := client.LinkConfig{}
	var mode modeFlag
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "Make an interface",
		Long: `add makes an interface of kind ovpn. It is down and has no addresses: "ip address" and "ip link set up" do
the rest, as with any interface.

An interface in mode p2p has one peer, which gets everything. In mode mp it has many: a packet goes to the peer whose VPN
address is the destination, or the next hop of the route to it.`,
		Example: "  ovpn-go link add ovpn0 --mode mp",
		Args:    cobra.ExactArgs(1),
		RunE: withClient(func(cmd *cobra.Command, c *client.Conn, args []string) error {
			cfg.Name, cfg.Mode = args[0], client.Mode(mode)
			return c.NewLink(cfg)
		}),
	}
	cmd.Flags().Var(&mode, "mode", "p2p or mp")
	cmd.Flags().IntVar(&cfg.MTU, "mtu", 0, "MTU in bytes (default: as the system chooses)")
	return cmd
}

func newLinkDeleteCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "del NAME",
		Aliases:           []string{"delete"},
		Short:             "Delete an interface with all its peers",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeLinks,
		RunE: withClient(func(cmd *cobra.Command, c *client.Conn, args []string) error {
			return c.DeleteLink(args[0])
		}),
	}
}

func newLinkShowCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:               "show [NAME]",
		Short:             "Print one interface or all",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: completeLinks,
		RunE: withClient(func(cmd *cobra.Command, c *client.Conn, args []string) error {
			links, err := selectLinks(c, args)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if asJSON {
				views := make([]linkView, 0, len(links))
				for _, link := range links {
					views = append(views, viewLink(link))
				}
				return printJSON(out, views)
			}
			return printLinks(out, links)
		}),
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

func printLinks(out io.Writer, links []client.Link) error {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "NAME\tINDEX\tMODE\tMTU\tSTATE")
	for _, link := range links {
		fmt.Fprintf(w, "%s\t%d\t%v\t%d\t%s\n", link.Name, link.Index, link.Mode, link.MTU, linkState(link))
	}
	return w.Flush()
}

func linkState(link client.Link) string {
	if link.Up {
		return "up"
	}
	return "down"
}

// selectLinks returns the link that is named, or all.
func selectLinks(c *client.Conn, names []string) ([]client.Link, error) {
	if len(names) == 0 {
		return c.Links()
	}
	link, err := c.Link(names[0])
	if err != nil {
		return nil, err
	}
	return []client.Link{link}, nil
}

// modeFlag is a link's mode on the command line.
type modeFlag client.Mode

func (f *modeFlag) String() string { return client.Mode(*f).String() }
func (f *modeFlag) Type() string   { return "MODE" }
func (f *modeFlag) Set(text string) error {
	for _, mode := range []client.Mode{client.P2P, client.MP} {
		if text == mode.String() {
			*f = modeFlag(mode)
			return nil
		}
	}
	return fmt.Errorf("must be p2p or mp")
}
