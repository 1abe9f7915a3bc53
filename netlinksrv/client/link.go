package client

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv/uapi"
	"ovpn-go/peers"
)

// ErrNotOvpn says that an interface is of another kind.
var ErrNotOvpn = errors.New("interface is not of kind ovpn")

// Mode says how many peers a link can have.
type Mode = peers.Mode

// The modes.
const (
	P2P = peers.P2P // one peer, which gets everything
	MP  = peers.MP  // many, chosen by route and VPN address
)

// Link is an interface of kind ovpn, or of kind ovpn-dco, as OpenVPN 2.6 asks for it and the family speaks of as well.
type Link struct {
	Name  string
	Index int
	Mode  Mode
	MTU   int // bytes
	Up    bool
}

// LinkConfig is a new link. Name is required; one %d in it becomes the first free number.
type LinkConfig struct {
	Name string
	Mode Mode
	MTU  int // bytes; 0 leaves the choice to the other side
}

// NewLink makes a link, which is down and has no addresses. The error is EEXIST if the name is taken, EOPNOTSUPP if the
// kind is unknown.
func (c *Conn) NewLink(cfg LinkConfig) error {
	a := netlink.NewAttributeEncoder()
	a.String(unix.IFLA_IFNAME, cfg.Name)
	if cfg.MTU != 0 {
		a.Uint32(unix.IFLA_MTU, uint32(cfg.MTU))
	}
	a.Nested(unix.IFLA_LINKINFO, func(a *netlink.AttributeEncoder) error {
		a.String(unix.IFLA_INFO_KIND, uapi.LinkKind)
		a.Nested(unix.IFLA_INFO_DATA, func(a *netlink.AttributeEncoder) error {
			a.Uint8(uapi.LinkMode, uint8(cfg.Mode))
			return nil
		})
		return nil
	})
	_, err := c.linkRequest(unix.RTM_NEWLINK, netlink.Acknowledge|netlink.Create|netlink.Excl, 0, a)
	if err != nil {
		return fmt.Errorf("new link %q: %w", cfg.Name, err)
	}
	return nil
}

// DeleteLink removes a link with all its peers. The error is ErrNotOvpn for an interface of another kind.
func (c *Conn) DeleteLink(name string) error {
	link, err := c.Link(name)
	if err != nil {
		return err
	}
	if _, err := c.linkRequest(unix.RTM_DELLINK, netlink.Acknowledge, link.Index, netlink.NewAttributeEncoder()); err != nil {
		return fmt.Errorf("delete link %q: %w", name, err)
	}
	return nil
}

// Link returns a link by name. The error is ENODEV if there is no such interface, ErrNotOvpn if it is of another kind.
func (c *Conn) Link(name string) (Link, error) {
	a := netlink.NewAttributeEncoder()
	a.String(unix.IFLA_IFNAME, name)
	messages, err := c.linkRequest(unix.RTM_GETLINK, 0, 0, a)
	if err != nil {
		return Link{}, fmt.Errorf("look up link %q: %w", name, err)
	}
	for _, m := range messages {
		if link, ok := parseLink(m); ok {
			return link, nil
		}
	}
	return Link{}, fmt.Errorf("look up link %q: %w", name, ErrNotOvpn)
}

// Links returns all links, by name.
func (c *Conn) Links() ([]Link, error) {
	messages, err := c.linkRequest(unix.RTM_GETLINK, netlink.Dump, 0, netlink.NewAttributeEncoder())
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var links []Link
	for _, m := range messages {
		if link, ok := parseLink(m); ok {
			links = append(links, link)
		}
	}
	slices.SortFunc(links, func(a, b Link) int { return cmp.Compare(a.Name, b.Name) })
	return links, nil
}

// linkRequest sends one message of rtnetlink.
func (c *Conn) linkRequest(kind netlink.HeaderType, flags netlink.HeaderFlags, index int, a *netlink.AttributeEncoder) ([]netlink.Message, error) {
	attributes, err := a.Encode()
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	// struct ifinfomsg: family, padding, type, index, flags, change.
	info := make([]byte, unix.SizeofIfInfomsg, unix.SizeofIfInfomsg+len(attributes))
	binary.NativeEndian.PutUint32(info[4:], uint32(index))
	messages, err := c.route.Execute(netlink.Message{
		Header: netlink.Header{Type: kind, Flags: netlink.Request | flags},
		Data:   append(info, attributes...),
	})
	return messages, answered(err)
}

// parseLink reads a link; ok is false if it is of another kind.
func parseLink(m netlink.Message) (link Link, ok bool) {
	if m.Header.Type != unix.RTM_NEWLINK || len(m.Data) < unix.SizeofIfInfomsg {
		return Link{}, false
	}
	link.Index = int(int32(binary.NativeEndian.Uint32(m.Data[4:])))
	link.Up = binary.NativeEndian.Uint32(m.Data[8:])&unix.IFF_UP != 0
	ad, err := netlink.NewAttributeDecoder(m.Data[unix.SizeofIfInfomsg:])
	if err != nil {
		return Link{}, false
	}
	for ad.Next() {
		switch ad.Type() {
		case unix.IFLA_IFNAME:
			link.Name = ad.String()
		case unix.IFLA_MTU:
			link.MTU = int(ad.Uint32())
		case unix.IFLA_LINKINFO:
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					switch ad.Type() {
					case unix.IFLA_INFO_KIND:
						kind := ad.String()
						ok = kind == uapi.LinkKind || kind == uapi.DCOLinkKind
					case unix.IFLA_INFO_DATA:
						ad.Nested(func(ad *netlink.AttributeDecoder) error {
							for ad.Next() {
								if ad.Type() == uapi.LinkMode {
									link.Mode = Mode(ad.Uint8())
								}
							}
							return nil
						})
					}
				}
				return nil
			})
		}
	}
	return link, ok && ad.Err() == nil
}
