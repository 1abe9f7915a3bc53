package bench

import (
	"fmt"
	"net/netip"
	"strings"
)

// Options are what the server's and the client's configuration have in common. Zero values leave
// OpenVPN's defaults.
type Options struct {
	// Name names the configuration's files and is the certificate's common name.
	Name string
	// Program is OpenVPN's path in its tree, the one in PATH if empty.
	Program string
	// IPv6 and TCP choose the transport, which is UDP over IPv4 otherwise.
	IPv6, TCP bool
	// Cipher is the only data cipher offered, such as AES-256-GCM.
	Cipher string
	// DisableDCO keeps the data channel in OpenVPN itself.
	DisableDCO bool
	// TLSCrypt wraps control packets with the PKI's static key.
	TLSCrypt bool
	// Renegotiate is the key's lifetime in seconds.
	Renegotiate int
	// Keepalive is the ping interval and the timeout in seconds, pushed to clients. The server
	// itself waits twice as long.
	Keepalive [2]int
	// User and Group are what the process becomes once it is set up. PersistTun keeps the
	// interface over restarts.
	User, Group string
	PersistTun  bool
	// Management opens a management socket; see Tunnel.Management.
	Management bool
	// Verb is the log's verbosity, 3 if zero.
	Verb int
	// Extra lines go into the configuration as they are.
	Extra []string
}

// ServerOptions configure a server.
type ServerOptions struct {
	Options
	// Port is the transport's port, 1194 if zero.
	Port int
	// Listen are the listeners if there are several, as the option local takes them, such as "10.9.0.1 1194 udp".
	// The transport chosen otherwise and Port then do not matter.
	Listen []string
	// Pool4 and Pool6 are the networks inside the tunnel; 10.8.0.0/24 and no IPv6 if invalid.
	Pool4, Pool6 netip.Prefix
	// Clients maps a client's common name to the lines of its client-config-dir file.
	Clients map[string][]string
}

// ClientOptions configure a client.
type ClientOptions struct {
	Options
	// Remote is the server's address and port.
	Remote netip.AddrPort
}

// DefaultPort is OpenVPN's registered port.
const DefaultPort = 1194

func (o ServerOptions) port() int {
	if o.Port == 0 {
		return DefaultPort
	}
	return o.Port
}

func (o ServerOptions) lines() []string {
	pool := o.Pool4
	if !pool.IsValid() {
		pool = netip.MustParsePrefix("10.8.0.0/24")
	}
	lines := []string{
		fmt.Sprintf("server %s %s", pool.Masked().Addr(), mask4(pool.Bits())),
		"topology subnet",
		"dh none",
	}
	if len(o.Listen) == 0 {
		lines = append(lines, fmt.Sprintf("port %d", o.port()), "proto "+o.protocol("server"))
	}
	for _, listener := range o.Listen {
		lines = append(lines, "local "+listener)
	}
	if o.Pool6.IsValid() {
		lines = append(lines, "server-ipv6 "+o.Pool6.String())
	}
	if o.Keepalive != [2]int{} {
		lines = append(lines, fmt.Sprintf("keepalive %d %d", o.Keepalive[0], o.Keepalive[1]))
	}
	return append(lines, o.common()...)
}

func (o ClientOptions) lines() []string {
	lines := []string{
		"client",
		"nobind",
		fmt.Sprintf("remote %s %d %s", o.Remote.Addr(), o.Remote.Port(), o.protocol("client")),
		"remote-cert-tls server",
		"connect-retry 1 2",
	}
	return append(lines, o.common()...)
}

func (o Options) common() []string {
	verb := o.Verb
	if verb == 0 {
		verb = 3
	}
	lines := []string{"dev tun", fmt.Sprintf("verb %d", verb)}
	add := func(when bool, format string, args ...any) {
		if when {
			lines = append(lines, fmt.Sprintf(format, args...))
		}
	}
	add(o.Cipher != "", "data-ciphers %s", o.Cipher)
	add(o.DisableDCO, "disable-dco")
	// Two equal numbers: no random reduction.
	add(o.Renegotiate != 0, "reneg-sec %d %d", o.Renegotiate, o.Renegotiate)
	add(o.User != "", "user %s", o.User)
	add(o.Group != "", "group %s", o.Group)
	add(o.PersistTun, "persist-tun")
	return append(lines, o.Extra...)
}

// protocol returns the transport's name in a configuration. Over TCP it also names the side.
func (o Options) protocol(side string) string {
	family := "4"
	if o.IPv6 {
		family = "6"
	}
	if o.TCP {
		return "tcp" + family + "-" + side
	}
	return "udp" + family
}

func mask4(bits int) string {
	m := ^uint32(0) << (32 - bits)
	return netip.AddrFrom4([4]byte{byte(m >> 24), byte(m >> 16), byte(m >> 8), byte(m)}).String()
}

func configText(lines []string) []byte { return []byte(strings.Join(lines, "\n") + "\n") }
