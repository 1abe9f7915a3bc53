package exec

import (
	"bytes"
	"fmt"
	"net"
	osexec "os/exec"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv"
)

// withRealServer runs a command under a supervisor with the real server, in a network namespace
// of its own, and returns its output.
func withRealServer(t *testing.T, command ...string) (output string) {
	t.Helper()
	inNewNamespace(t, func() {
		before := openDescriptors(t)
		server, err := netlinksrv.New(netlinksrv.Config{})
		if err != nil {
			t.Error(err)
			return
		}
		o := underSupervisor(t, realServer{server}, nil, command...)
		output = o.output
		if o.err != nil || o.status != (Status{}) {
			t.Errorf("%s: %v, %v\n%s", strings.Join(command, " "), o.status, o.err, o.output)
		}
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		if after := openDescriptors(t); after != before {
			t.Errorf("%d descriptors open, %d before", after, before)
		}
	})
	return output
}

// requireTool skips a test whose program is not installed.
func requireTool(t *testing.T, name string) {
	t.Helper()
	if _, err := osexec.LookPath(name); err != nil {
		t.Skipf("no %s", name)
	}
}

// What programs say about a machine without links of ours is the same with and without us.
func TestToolsSeeTheSame(t *testing.T) {
	requireRoot(t)
	script := func(lines ...string) []string { return []string{"sh", "-c", strings.Join(lines, "; ")} }
	tests := []struct {
		name, tool string
		command    []string
	}{
		{"ip link", "ip", script("ip link", "ip -d -s link show lo")},
		{"ip addr", "ip", script("ip link set lo up", "ip addr add 10.9.9.9/32 dev lo", "ip addr", "ip -o -6 addr")},
		{"ip route", "ip", script("ip link set lo up", "ip route add 10.8.0.0/16 dev lo", "ip route", "ip route get 10.8.1.1")},
		{"ip rule, neigh, netns", "ip", script("ip rule", "ip neigh", "ip netns list-id")},
		{"errors", "ip", script("ip link add x type nonsense", "ip link del nonsense", "ip addr add 1.2.3.4/8 dev nonsense", "ip link add lo type ovpn", "true")},
		{"nft", "nft", script("nft add table inet t", "nft list ruleset")},
		{"getent", "getent", []string{"getent", "ahosts", "localhost"}},
		{"ss", "ss", []string{"ss", "-tuln"}},
		{"python", "python3", []string{"python3", "-c", "import socket; print(socket.getaddrinfo('localhost', 80), socket.if_nameindex())"}},
		{"a Go program", "sh", roleCommand("interfaces")},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			requireTool(t, test.tool)
			var want []byte
			inNewNamespace(t, func() {
				cmd := osexec.Command(test.command[0], test.command[1:]...)
				var err error
				if want, err = cmd.CombinedOutput(); err != nil {
					t.Errorf("without a supervisor: %v\n%s", err, want)
				}
			})
			if got := withRealServer(t, test.command...); got != string(want) {
				t.Errorf("output differs\nwith:\n%s\nwithout:\n%s", got, want)
			}
		})
	}
}

func TestToolsSeeOurLinks(t *testing.T) {
	requireTool(t, "ip")
	tests := []struct {
		name, script string
		want         []string
	}{
		{"add, show, delete", "ip link add tun7 type ovpn && ip -d link show tun7 && ip link del tun7 && ! ip link show tun7", []string{"ovpn", "does not exist"}},
		{"add twice", "ip link add tun7 type ovpn; ! ip link add tun7 type ovpn", []string{"File exists"}},
		{"in a list", "ip link add tun7 type ovpn; ip -d link", []string{"tun7", "ovpn", "lo"}},
		{"addresses of all, links first", "ip link add tun7 type ovpn; ip addr add 10.1.2.3/24 dev tun7; ip addr", []string{"10.1.2.3/24", "tun7"}},
		{"by type", "ip link add tun7 type ovpn; ip link show type ovpn", []string{"tun7"}},
		{"family", "genl ctrl get name ovpn", []string{"peers"}},
		{"families", "genl ctrl list", []string{"Name: ovpn", "Name: nlctrl"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			requireTool(t, strings.Fields(test.script)[0])
			output := withRealServer(t, "sh", "-c", test.script)
			for _, want := range test.want {
				if !strings.Contains(output, want) {
					t.Errorf("%q is missing from\n%s", want, output)
				}
			}
		})
	}
}

// A listener to link messages shares the machine with a program that makes links.
func TestIPMonitor(t *testing.T) {
	requireTool(t, "ip")
	script := `ip -d monitor link > monitored & monitor=$!
		tries=0
		until grep -q tun8 monitored; do
			ip link add tun8 type ovpn 2>/dev/null || ip link del tun8
			tries=$((tries + 1)); test $tries -lt 500 || exit 1
		done
		kill $monitor; wait; cat monitored`
	t.Chdir(t.TempDir())
	output := withRealServer(t, "sh", "-c", script)
	if !strings.Contains(output, "tun8") || !strings.Contains(output, "ovpn") || strings.Contains(output, "tun type tun") {
		t.Errorf("output is %q", output)
	}
}

func init() {
	roles["interfaces"] = func([]string) error {
		interfaces, err := net.Interfaces()
		if err != nil {
			return err
		}
		for _, i := range interfaces {
			addresses, err := i.Addrs()
			if err != nil {
				return err
			}
			fmt.Println(i.Name, i.Index, i.MTU, i.Flags, addresses)
		}
		return nil
	}
	// genetlink uses the library as its users do: families by name and as a list, from several
	// goroutines, with deadlines and a multicast group.
	roles["genetlink"] = func([]string) error {
		conn, err := genetlink.Dial(&netlink.Config{Strict: true})
		if err != nil {
			return err
		}
		defer conn.Close()
		family, err := conn.GetFamily("ovpn")
		if err != nil {
			return err
		}
		if len(family.Groups) != 1 || family.Groups[0].Name != "peers" {
			return fmt.Errorf("groups %v", family.Groups)
		}
		families, err := conn.ListFamilies()
		if err != nil {
			return err
		}
		names := map[string]int{}
		for _, f := range families {
			names[f.Name]++
		}
		if names["ovpn"] != 1 || names["nlctrl"] != 1 {
			return fmt.Errorf("families %v", names)
		}
		if _, err := conn.GetFamily("no such family"); err == nil {
			return fmt.Errorf("found a family that does not exist")
		}
		if err := conn.JoinGroup(family.Groups[0].ID); err != nil {
			return err
		}
		if err := conn.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
			return err
		}
		if _, _, err := conn.Receive(); err == nil {
			return fmt.Errorf("received something")
		}
		if err := conn.LeaveGroup(family.Groups[0].ID); err != nil {
			return err
		}
		results := make(chan error)
		const users = 10
		for range users {
			go func() {
				results <- func() error {
					conn, err := genetlink.Dial(nil)
					if err != nil {
						return err
					}
					defer conn.Close()
					for range 20 {
						if _, err := conn.GetFamily("ovpn"); err != nil {
							return err
						}
						if _, err := conn.GetFamily("nlctrl"); err != nil {
							return err
						}
					}
					return nil
				}()
			}()
		}
		for range users {
			if err := <-results; err != nil {
				return err
			}
		}
		return nil
	}
	// route netlink through the library that most Go programs use for generic netlink.
	roles["rtnetlink"] = func([]string) error {
		conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
		if err != nil {
			return err
		}
		defer conn.Close()
		create := linkRequest(0, 0, 0, 0, attribute(unix.IFLA_IFNAME, []byte("tun9\x00")),
			attribute(unix.IFLA_LINKINFO, attribute(unix.IFLA_INFO_KIND, []byte("ovpn\x00"))))
		_, err = conn.Execute(netlink.Message{
			Header: netlink.Header{Type: unix.RTM_NEWLINK, Flags: netlink.Request | netlink.Acknowledge | netlink.Create | netlink.Excl},
			Data:   create[unix.NLMSG_HDRLEN:],
		})
		if err != nil {
			return fmt.Errorf("create: %w", err)
		}
		for range 3 {
			list, err := conn.Execute(netlink.Message{
				Header: netlink.Header{Type: unix.RTM_GETLINK, Flags: netlink.Request | netlink.Dump},
				Data:   make([]byte, unix.SizeofIfInfomsg),
			})
			if err != nil {
				return fmt.Errorf("list: %w", err)
			}
			found := false
			for _, m := range list {
				found = found || bytes.Contains(m.Data, []byte("tun9\x00")) && bytes.Contains(m.Data, attribute(unix.IFLA_INFO_KIND, []byte("ovpn\x00")))
			}
			if !found {
				return fmt.Errorf("no link of kind ovpn in the list")
			}
			_, err = conn.Execute(netlink.Message{
				Header: netlink.Header{Type: unix.RTM_SETLINK, Flags: netlink.Request | netlink.Acknowledge},
				Data:   setMTU(0, 1400)[unix.NLMSG_HDRLEN:],
			})
			if err != nil {
				return fmt.Errorf("change: %w", err)
			}
		}
		return nil
	}
}

func TestGoLibraries(t *testing.T) {
	for _, role := range []string{"genetlink", "rtnetlink"} {
		t.Run(role, func(t *testing.T) { withRealServer(t, roleCommand(role)...) })
	}
}
