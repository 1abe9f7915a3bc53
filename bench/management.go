package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

// managementTimeout bounds the wait for one answer; OpenVPN answers between two packets.
const managementTimeout = 10 * time.Second

// Management is a connection to OpenVPN's management socket. It is not safe for concurrent use.
type Management struct {
	conn    net.Conn
	replies chan string   // lines that answer a command; closed at the end
	events  chan string   // lines that begin with ">", without it
	done    chan struct{} // closed by Close
}

// DialManagement connects to a management socket, waiting for it to appear until the context ends.
func DialManagement(ctx context.Context, path string) (*Management, error) {
	var dialer net.Dialer
	for {
		conn, err := dialer.DialContext(ctx, "unix", path)
		if err == nil {
			m := &Management{conn: conn, replies: make(chan string), events: make(chan string, 4096),
				done: make(chan struct{})}
			go m.read()
			return m, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("management socket: %w", errors.Join(err, context.Cause(ctx)))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (m *Management) read() {
	defer close(m.replies)
	defer close(m.events)
	scanner := bufio.NewScanner(m.conn)
	for scanner.Scan() {
		line := strings.TrimRight(scanner.Text(), "\r")
		if event, ok := strings.CutPrefix(line, ">"); ok {
			select {
			case m.events <- event:
			default: // nobody listens; the newest are worth no more than the oldest
			}
			continue
		}
		select {
		case m.replies <- line:
		case <-m.done:
			return
		}
	}
}

// Close closes the connection; OpenVPN goes on.
func (m *Management) Close() error {
	close(m.done)
	return m.conn.Close()
}

// Command sends a command that is answered by one line, and returns what follows "SUCCESS: ".
func (m *Management) Command(command string) (string, error) {
	if err := m.send(command); err != nil {
		return "", err
	}
	line, err := m.reply()
	if err != nil {
		return "", fmt.Errorf("management %s: %w", command, err)
	}
	text, ok := strings.CutPrefix(line, "SUCCESS: ")
	if !ok {
		return "", fmt.Errorf("management %s: %s", command, line)
	}
	return text, nil
}

// Event waits for a notification of the given kind, such as "BYTECOUNT", and returns the text behind
// its colon.
func (m *Management) Event(ctx context.Context, kind string) (string, error) {
	for {
		select {
		case event, ok := <-m.events:
			if !ok {
				return "", fmt.Errorf("management: %w", net.ErrClosed)
			}
			if text, ok := strings.CutPrefix(event, kind+":"); ok {
				return text, nil
			}
		case <-ctx.Done():
			return "", fmt.Errorf("management: wait for %s: %w", kind, context.Cause(ctx))
		}
	}
}

// list sends a command that is answered by lines up to "END".
func (m *Management) list(command string) ([]string, error) {
	if err := m.send(command); err != nil {
		return nil, err
	}
	var lines []string
	for {
		line, err := m.reply()
		if err != nil {
			return nil, fmt.Errorf("management %s: %w", command, err)
		}
		if line == "END" {
			return lines, nil
		}
		if strings.HasPrefix(line, "ERROR:") {
			return nil, fmt.Errorf("management %s: %s", command, line)
		}
		lines = append(lines, line)
	}
}

func (m *Management) send(command string) error {
	if err := m.conn.SetWriteDeadline(time.Now().Add(managementTimeout)); err != nil {
		return err
	}
	_, err := m.conn.Write([]byte(command + "\n"))
	return err
}

func (m *Management) reply() (string, error) {
	select {
	case line, ok := <-m.replies:
		if !ok {
			return "", net.ErrClosed
		}
		return line, nil
	case <-time.After(managementTimeout):
		return "", fmt.Errorf("no answer within %v", managementTimeout)
	}
}

// ClientStatus is the view that a client with an offloaded data channel has of its traffic, in bytes.
// Link counts whole UDP payloads, control packets included; VPN counts packets inside the tunnel.
type ClientStatus struct {
	LinkRx, LinkTx uint64
	VPNRx, VPNTx   uint64
}

// ClientStatus asks a client for its statistics.
func (m *Management) ClientStatus() (ClientStatus, error) {
	lines, err := m.list("status")
	if err != nil {
		return ClientStatus{}, err
	}
	values := make(map[string]uint64)
	for _, line := range lines {
		if name, value, ok := strings.Cut(line, ","); ok {
			// The heading's date is no number.
			if n, err := strconv.ParseUint(value, 10, 64); err == nil {
				values[name] = n
			}
		}
	}
	// Under DCO "TUN/TAP read bytes" is the peer's VPN_RX_BYTES; OpenVPN's own data channel counts there
	// what it reads from the interface, which is the other direction.
	s := ClientStatus{
		LinkRx: values["TCP/UDP read bytes"], LinkTx: values["TCP/UDP write bytes"],
		VPNRx: values["TUN/TAP read bytes"], VPNTx: values["TUN/TAP write bytes"],
	}
	return s, nil
}

// A ServerClient is one client in a server's status. The byte counts are of UDP payloads, control
// packets included, and by the server's direction.
type ServerClient struct {
	CommonName  string
	RealAddress string
	VPN4, VPN6  string
	LinkRx      uint64
	LinkTx      uint64
	ClientID    string
	PeerID      string
	Cipher      string
}

// ServerStatus asks a server for its clients, and whether it offloads its data channel.
func (m *Management) ServerStatus() (clients []ServerClient, dco bool, err error) {
	lines, err := m.list("status 3")
	if err != nil {
		return nil, false, err
	}
	columns := map[string]int{}
	for _, line := range lines {
		f := strings.Split(line, "\t")
		switch {
		case len(f) > 2 && f[0] == "HEADER" && f[1] == "CLIENT_LIST":
			for i, name := range f[2:] {
				columns[name] = i + 1
			}
		case f[0] == "CLIENT_LIST":
			column := func(name string) string {
				if i, ok := columns[name]; ok && i < len(f) {
					return f[i]
				}
				return ""
			}
			rx, _ := strconv.ParseUint(column("Bytes Received"), 10, 64)
			tx, _ := strconv.ParseUint(column("Bytes Sent"), 10, 64)
			clients = append(clients, ServerClient{
				CommonName:  column("Common Name"),
				RealAddress: column("Real Address"),
				VPN4:        column("Virtual Address"),
				VPN6:        column("Virtual IPv6 Address"),
				LinkRx:      rx,
				LinkTx:      tx,
				ClientID:    column("Client ID"),
				PeerID:      column("Peer ID"),
				Cipher:      column("Data Channel Cipher"),
			})
		case len(f) == 3 && f[0] == "GLOBAL_STATS" && f[1] == "dco_enabled":
			dco = f[2] == "1"
		}
	}
	return clients, dco, nil
}
