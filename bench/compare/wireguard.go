package compare

import (
	"bufio"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"ovpn-go/bench"
)

const (
	wireGuardPort = 51820
	// wireGuardSockets is where wireguard-go listens for its configuration, for every namespace alike.
	wireGuardSockets = "/var/run/wireguard"
)

// A wireGuardEnd is what one end of a WireGuard tunnel is told.
type wireGuardEnd struct {
	private *ecdh.PrivateKey
	public  []byte // the other side's
	remote  netip.AddrPort
}

// wireGuardEnds makes keys for the client and the server.
func (t *tunnel) wireGuardEnds() (ends [2]wireGuardEnd, err error) {
	for i := range ends {
		if ends[i].private, err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
			return ends, err
		}
	}
	for i, remote := range []netip.Addr{t.serverAddr, t.clientAddr} {
		ends[i].public = ends[1-i].private.PublicKey().Bytes()
		ends[i].remote = netip.AddrPortFrom(remote, wireGuardPort)
	}
	return ends, nil
}

func startWireGuardGo(ctx context.Context, c *comparison, t *tunnel, s setting) error {
	launcher, err := bench.NewLauncher("")
	if err != nil {
		return err
	}
	t.onClose(launcher.Close)
	t.launcher = launcher
	ends, err := t.wireGuardEnds()
	if err != nil {
		return err
	}
	const iface = "wg0"
	for i, node := range []*bench.Node{t.client, t.server} {
		// Its socket is named after the interface, so the name has to be unlike any other's on this machine.
		name := fmt.Sprintf("wg%x%c", os.Getpid(), 'a'+i)
		process, err := launcher.Start(bench.Command{Node: node, Args: []string{c.wireGuardGo, "-f", name}, Env: []string{"LOG_LEVEL=error"}})
		if err != nil {
			return err
		}
		socket := wireGuardSockets + "/" + name + ".sock"
		t.onClose(func() error {
			err := process.Stop()
			// It removes the socket itself, unless it was killed.
			if rmErr := os.Remove(socket); !errors.Is(rmErr, os.ErrNotExist) {
				err = errors.Join(err, rmErr)
			}
			return err
		})
		t.processes = append(t.processes, process)
		if err := ends[i].tellProcess(ctx, socket); err != nil {
			return fmt.Errorf("configure wireguard-go: %w; it said:\n%s", err, process.Log.Tail(10))
		}
		if err := node.RenameLink(name, iface); err != nil {
			return err
		}
	}
	return t.settle(ctx, iface, s.tunnelMTU())
}

// tellProcess speaks wireguard-go's configuration protocol, lines of key=value.
func (e wireGuardEnd) tellProcess(ctx context.Context, socket string) error {
	var conn net.Conn
	deadline := time.Now().Add(tunnelUp)
	for {
		var err error
		if conn, err = net.Dial("unix", socket); err == nil {
			break
		}
		if time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(10 * time.Millisecond):
		}
	}
	defer conn.Close()
	conn.SetDeadline(deadline)
	_, err := fmt.Fprintf(conn, "set=1\nprivate_key=%s\nlisten_port=%d\nreplace_peers=true\npublic_key=%s\nendpoint=%v\nallowed_ip=0.0.0.0/0\n\n",
		hex.EncodeToString(e.private.Bytes()), wireGuardPort, hex.EncodeToString(e.public), e.remote)
	if err != nil {
		return err
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return err
	}
	if strings.TrimSpace(answer) != "errno=0" {
		return fmt.Errorf("it answers %q", answer)
	}
	return nil
}

func startKernelWireGuard(ctx context.Context, _ *comparison, t *tunnel, s setting) error {
	ends, err := t.wireGuardEnds()
	if err != nil {
		return err
	}
	const iface = "wg0"
	for i, node := range []*bench.Node{t.client, t.server} {
		if err := node.AddLink(iface, "wireguard"); err != nil {
			return err
		}
		if err := node.Do(func() error { return ends[i].tellKernel(iface) }); err != nil {
			return fmt.Errorf("configure %s: %w", iface, err)
		}
	}
	return t.settle(ctx, iface, s.tunnelMTU())
}

// The family wireguard (include/uapi/linux/wireguard.h).
const (
	wgSetDevice = 1

	wgDeviceIfname     = 2
	wgDevicePrivateKey = 3
	wgDeviceListenPort = 6
	wgDevicePeers      = 8

	wgPeerPublicKey  = 1
	wgPeerEndpoint   = 4
	wgPeerAllowedIPs = 9

	wgAllowedFamily  = 1
	wgAllowedAddress = 2
	wgAllowedMask    = 3
)

// tellKernel runs on a thread in the interface's namespace.
func (e wireGuardEnd) tellKernel(iface string) error {
	conn, err := genetlink.Dial(nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	family, err := conn.GetFamily("wireguard")
	if err != nil {
		return err
	}
	addr := e.remote.Addr().As4()
	endpoint := make([]byte, unix.SizeofSockaddrInet4)
	endpoint[0] = unix.AF_INET
	endpoint[2], endpoint[3] = byte(e.remote.Port()>>8), byte(e.remote.Port()&0xff)
	copy(endpoint[4:], addr[:])

	ae := netlink.NewAttributeEncoder()
	ae.String(wgDeviceIfname, iface)
	ae.Bytes(wgDevicePrivateKey, e.private.Bytes())
	ae.Uint16(wgDeviceListenPort, wireGuardPort)
	ae.Nested(wgDevicePeers, func(peers *netlink.AttributeEncoder) error {
		peers.Nested(0, func(peer *netlink.AttributeEncoder) error {
			peer.Bytes(wgPeerPublicKey, e.public)
			peer.Bytes(wgPeerEndpoint, endpoint)
			peer.Nested(wgPeerAllowedIPs, func(ips *netlink.AttributeEncoder) error {
				ips.Nested(0, func(ip *netlink.AttributeEncoder) error {
					ip.Uint16(wgAllowedFamily, unix.AF_INET)
					ip.Bytes(wgAllowedAddress, make([]byte, 4))
					ip.Uint8(wgAllowedMask, 0)
					return nil
				})
				return nil
			})
			return nil
		})
		return nil
	})
	data, err := ae.Encode()
	if err != nil {
		return err
	}
	_, err = conn.Execute(genetlink.Message{Header: genetlink.Header{Command: wgSetDevice, Version: 1}, Data: data},
		family.ID, netlink.Request|netlink.Acknowledge)
	return err
}
