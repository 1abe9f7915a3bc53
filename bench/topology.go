package bench

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"

	"ovpn-go/tun/netns"
)

// LinkMTU is the MTU of the veth pairs, Ethernet's.
const LinkMTU = 1500

// A Topology is a set of network namespaces and the veth pairs between them. It needs
// CAP_SYS_ADMIN and CAP_NET_ADMIN. It is not safe for concurrent use; its Nodes are.
type Topology struct {
	nodes []*Node
}

// NewTopology returns a topology without any node.
func NewTopology() *Topology { return &Topology{} }

// AddNode creates a network namespace with its loopback interface up and duplicate address
// detection off, so that addresses can be used the moment they are added. The name appears in
// error texts only.
func (t *Topology) AddNode(name string) (*Node, error) {
	ns, err := netns.Create()
	if err != nil {
		return nil, err
	}
	return t.AdoptNode(name, ns)
}

// AdoptNode is AddNode for a namespace that exists, which it takes ownership of.
func (t *Topology) AdoptNode(name string, ns *netns.NS) (*Node, error) {
	n := &Node{Name: name, NS: ns}
	if err := n.open(); err != nil {
		n.close()
		return nil, fmt.Errorf("node %s: %w", name, err)
	}
	t.nodes = append(t.nodes, n)
	return n, nil
}

// An End is one end of a veth pair: the interface's name and its addresses in one node.
type End struct {
	Node  *Node
	Name  string
	Addrs []netip.Prefix
}

// Connect joins two nodes of the topology by a veth pair and brings both ends up.
func (t *Topology) Connect(a, b End) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = a.Name
	attrs.MTU = LinkMTU
	pair := netlink.NewVeth(attrs)
	pair.PeerName = b.Name
	pair.PeerMTU = LinkMTU
	err := netns.Control(b.Node.NS.File(), func(fd int) error {
		pair.PeerNamespace = netlink.NsFd(fd)
		return a.Node.handle.LinkAdd(pair)
	})
	if err != nil {
		return fmt.Errorf("connect %s to %s: %w", a.Node.Name, b.Node.Name, err)
	}
	for _, end := range []End{a, b} {
		for _, addr := range end.Addrs {
			if err := end.Node.AddAddr(end.Name, addr); err != nil {
				return err
			}
		}
		if err := end.Node.SetUp(end.Name); err != nil {
			return err
		}
	}
	return nil
}

// Close drops the namespaces, and with them every interface in them. A namespace that a process
// still lives in ends with that process, so stop those first.
func (t *Topology) Close() error {
	var errs []error
	for _, n := range t.nodes {
		errs = append(errs, n.close())
	}
	t.nodes = nil
	return errors.Join(errs...)
}

// A Star is the topology of most scenarios: one server, and clients that each reach it over a veth
// pair of their own. Client i (from 0) has the addresses ClientAddr4(i) and ClientAddr6(i) on its
// interface "eth0" and reaches the server at ServerAddr4(i) and ServerAddr6(i).
type Star struct {
	*Topology
	Server  *Node
	Clients []*Node
}

// NewStar builds a star with the given number of clients, 1 to 200.
func NewStar(clients int) (*Star, error) {
	s := &Star{Topology: NewTopology()}
	if err := s.build(clients); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *Star) build(clients int) error {
	var err error
	if s.Server, err = s.AddNode("server"); err != nil {
		return err
	}
	for i := range clients {
		client, err := s.AddNode(fmt.Sprintf("client%d", i+1))
		if err != nil {
			return err
		}
		s.Clients = append(s.Clients, client)
		err = s.Connect(
			End{s.Server, fmt.Sprintf("eth%d", i), []netip.Prefix{
				netip.PrefixFrom(s.ServerAddr4(i), 24), netip.PrefixFrom(s.ServerAddr6(i), 64)}},
			End{client, "eth0", []netip.Prefix{
				netip.PrefixFrom(s.ClientAddr4(i), 24), netip.PrefixFrom(s.ClientAddr6(i), 64)}},
		)
		if err != nil {
			return err
		}
	}
	return nil
}

// ServerAddr4 is the server's IPv4 address on the link to client i.
func (s *Star) ServerAddr4(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 9, byte(i), 1}) }

// ClientAddr4 is client i's IPv4 address.
func (s *Star) ClientAddr4(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 9, byte(i), 2}) }

// ServerAddr6 is the server's IPv6 address on the link to client i.
func (s *Star) ServerAddr6(i int) netip.Addr { return addr6(i, 1) }

// ClientAddr6 is client i's IPv6 address.
func (s *Star) ClientAddr6(i int) netip.Addr { return addr6(i, 2) }

func addr6(i int, host byte) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x09, 7: byte(i), 15: host})
}
