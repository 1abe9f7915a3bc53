package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"ovpn-go/tun/netns"
)

// A Node is one network namespace of a topology.
type Node struct {
	Name string
	NS   *netns.NS

	handle *netlink.Handle
}

func (n *Node) open() error {
	err := netns.Control(n.NS.File(), func(fd int) (err error) {
		n.handle, err = netlink.NewHandleAt(vnetns.NsHandle(fd), unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return fmt.Errorf("open rtnetlink socket: %w", err)
	}
	for _, scope := range []string{"all", "default"} {
		// A kernel without IPv6 has no such switch.
		err := n.SetSysctl("net.ipv6.conf."+scope+".accept_dad", "0")
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return n.SetUp("lo")
}

func (n *Node) close() error {
	if n.handle != nil {
		n.handle.Close()
	}
	return n.NS.Close()
}

// Do runs fn on a thread inside the node's namespace; see netns.NS.Do.
func (n *Node) Do(fn func() error) error { return n.NS.Do(fn) }

// SetSysctl sets a kernel parameter of the namespace, such as net.ipv4.ip_forward.
func (n *Node) SetSysctl(name, value string) error {
	return n.Do(func() error {
		path := "/proc/sys/" + strings.ReplaceAll(name, ".", "/")
		if err := os.WriteFile(path, []byte(value), 0); err != nil {
			return fmt.Errorf("node %s: %w", n.Name, err)
		}
		return nil
	})
}

// DisableIPv6 turns IPv6 off for interfaces that appear later, so that an interface which comes up
// sends nothing of its own accord.
func (n *Node) DisableIPv6() error {
	return n.SetSysctl("net.ipv6.conf.default.disable_ipv6", "1")
}

// Forward lets the node forward IPv4 and IPv6 packets between its interfaces.
func (n *Node) Forward() error {
	if err := n.SetSysctl("net.ipv4.ip_forward", "1"); err != nil {
		return err
	}
	return n.SetSysctl("net.ipv6.conf.all.forwarding", "1")
}

// SetUp brings an interface up.
func (n *Node) SetUp(link string) error {
	return n.withLink("set up", link, func(l netlink.Link) error { return n.handle.LinkSetUp(l) })
}

// SetDown takes an interface down.
func (n *Node) SetDown(link string) error {
	return n.withLink("set down", link, func(l netlink.Link) error { return n.handle.LinkSetDown(l) })
}

// SetMTU sets the MTU of an interface in bytes.
func (n *Node) SetMTU(link string, mtu int) error {
	return n.withLink("set the MTU of", link, func(l netlink.Link) error { return n.handle.LinkSetMTU(l, mtu) })
}

// AddDummy adds an interface of the node's own with the given addresses and brings it up: a
// network behind the node. It is one end of a veth pair whose other end stays unused, as not every
// kernel has dummy interfaces.
func (n *Node) AddDummy(link string, addrs ...netip.Prefix) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = link
	pair := netlink.NewVeth(attrs)
	pair.PeerName = link + "p"
	if err := n.handle.LinkAdd(pair); err != nil {
		return fmt.Errorf("node %s: add %s: %w", n.Name, link, err)
	}
	for _, addr := range addrs {
		if err := n.AddAddr(link, addr); err != nil {
			return err
		}
	}
	if err := n.SetUp(link + "p"); err != nil {
		return err
	}
	return n.SetUp(link)
}

// AddAddr adds an address to an interface.
func (n *Node) AddAddr(link string, addr netip.Prefix) error {
	return n.withLink("add "+addr.String()+" to", link, func(l netlink.Link) error {
		return n.handle.AddrAdd(l, &netlink.Addr{IPNet: ipNet(addr), Flags: unix.IFA_F_NODAD})
	})
}

// AddLocal makes every address of a network the node's own.
func (n *Node) AddLocal(network netip.Prefix) error {
	return n.withLink("add "+network.String()+" to", "lo", func(l netlink.Link) error {
		return n.handle.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(network),
			Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: unix.RT_SCOPE_HOST})
	})
}

// AddLink adds an interface of a kind that needs nothing but its name. A kernel that does not know the kind
// answers EOPNOTSUPP.
func (n *Node) AddLink(link, kind string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = link
	if err := n.handle.LinkAdd(&netlink.GenericLink{LinkAttrs: attrs, LinkType: kind}); err != nil {
		return fmt.Errorf("node %s: add %s of kind %s: %w", n.Name, link, kind, err)
	}
	return nil
}

// DelAddr removes an address from an interface.
func (n *Node) DelAddr(link string, addr netip.Prefix) error {
	return n.withLink("remove "+addr.String()+" from", link, func(l netlink.Link) error {
		return n.handle.AddrDel(l, &netlink.Addr{IPNet: ipNet(addr)})
	})
}

// AddRoute adds a route to dst through an interface, by way of the gateway if that is valid.
func (n *Node) AddRoute(dst netip.Prefix, gateway netip.Addr, link string) error {
	return n.withLink("route "+dst.String()+" by", link, func(l netlink.Link) error {
		route := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(dst)}
		if gateway.IsValid() {
			route.Gw = gateway.AsSlice()
		}
		return n.handle.RouteAdd(route)
	})
}

// Links returns the names of the node's interfaces.
func (n *Node) Links() ([]string, error) {
	links, err := n.handle.LinkList()
	if err != nil {
		return nil, fmt.Errorf("node %s: list interfaces: %w", n.Name, err)
	}
	var names []string
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	return names, nil
}

// HasLink reports whether the node has an interface of that name.
func (n *Node) HasLink(name string) (bool, error) {
	names, err := n.Links()
	if err != nil {
		return false, err
	}
	for _, have := range names {
		if have == name {
			return true, nil
		}
	}
	return false, nil
}

// WaitRunning waits until an interface is up and has carrier, as the stack sees it.
func (n *Node) WaitRunning(ctx context.Context, link string) error {
	for {
		running := false
		err := n.withLink("look at", link, func(l netlink.Link) error {
			running = l.Attrs().RawFlags&unix.IFF_RUNNING != 0
			return nil
		})
		if err != nil || running {
			return err
		}
		if err := sleep(ctx, 2*time.Millisecond); err != nil {
			return fmt.Errorf("node %s: %s does not run: %w", n.Name, link, err)
		}
	}
}

// LinkAddrs returns the addresses of an interface, link-local ones left out.
func (n *Node) LinkAddrs(link string) ([]netip.Addr, error) {
	var addrs []netip.Addr
	err := n.withLink("list addresses of", link, func(l netlink.Link) error {
		list, err := n.handle.AddrList(l, netlink.FAMILY_ALL)
		for _, a := range list {
			addr, ok := netip.AddrFromSlice(a.IP)
			if addr = addr.Unmap(); ok && !addr.IsLinkLocalUnicast() {
				addrs = append(addrs, addr)
			}
		}
		return err
	})
	return addrs, err
}

// DelLink deletes an interface.
func (n *Node) DelLink(link string) error {
	return n.withLink("delete", link, func(l netlink.Link) error { return n.handle.LinkDel(l) })
}

// RenameLink gives an interface another name; since Linux 6.2 it may be up.
func (n *Node) RenameLink(link, name string) error {
	return n.withLink("rename", link, func(l netlink.Link) error { return n.handle.LinkSetName(l, name) })
}

// MoveLink moves an interface to another node.
func (n *Node) MoveLink(link string, to *Node) error {
	return n.withLink("move", link, func(l netlink.Link) error {
		return netns.Control(to.NS.File(), func(fd int) error { return n.handle.LinkSetNsFd(l, fd) })
	})
}

func (n *Node) withLink(what, name string, fn func(netlink.Link) error) error {
	l, err := n.handle.LinkByName(name)
	if err == nil {
		err = fn(l)
	}
	if err != nil {
		return fmt.Errorf("node %s: %s %s: %w", n.Name, what, name, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
