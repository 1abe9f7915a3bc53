package test

import (
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"ovpn-go/bench"
	"ovpn-go/tun/netns"
)

// A container is a user namespace and a network namespace, as an unprivileged container has them: root in it may do everything in
// its network namespace and nothing outside.
type container struct {
	node *bench.Node
	pid  int // of a process in both
}

// startContainer makes a container, for which a process holds the two namespaces until the test ends. Its root is the machine's, for
// files, but without any capability outside.
func (s *scenario) startContainer(name string) container {
	s.Helper()
	holder := exec.Command("sleep", "infinity")
	same := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
	holder.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNET, UidMappings: same, GidMappings: same}
	if err := holder.Start(); err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() {
		holder.Process.Kill()
		holder.Wait()
	})
	ns, err := netns.OfThread(holder.Process.Pid)
	if err != nil {
		s.Fatal(err)
	}
	node, err := s.AdoptNode(name, ns)
	if err != nil {
		s.Fatal(err)
	}
	return container{node, holder.Process.Pid}
}

// contain places a process in a container under our program, which is in it as well.
func (s *scenario) contain(c container) bench.Placement {
	enter := []string{"nsenter", "--target", fmt.Sprint(c.pid), "--user", "--net", "--"}
	return bench.Placement{Node: c.node, Prefix: slices.Concat(enter, s.prefix)}
}

// TestContainer runs a client in a container, whose server is not in one. The kernel's module would refuse the client.
func TestContainer(t *testing.T) {
	t.Parallel()
	s := newScenario(t, 1)
	const transfer = 1 << 20
	inner := s.startContainer("container")
	outside, inside := netip.MustParsePrefix("10.9.100.1/24"), netip.MustParsePrefix("10.9.100.2/24")
	err := s.Connect(
		bench.End{Node: s.Server, Name: "eth100", Addrs: []netip.Prefix{outside}},
		bench.End{Node: inner.node, Name: "eth0", Addrs: []netip.Prefix{inside}})
	if err != nil {
		t.Fatal(err)
	}
	server := s.startServer(s.exec(s.Server), bench.ServerOptions{Pool6: pool6})
	client := s.startClient(s.contain(inner), 0, bench.ClientOptions{
		Options: bench.Options{Name: "container"},
		Remote:  netip.AddrPortFrom(outside.Addr(), bench.DefaultPort)})
	server4, server6 := s.addrs(server)
	client4, _ := s.addrs(client)
	s.requirePing(inner.node, server4)
	s.requirePing(inner.node, server6)
	s.requirePing(s.Server, client4)
	s.requireTransfer(inner.node, s.Server, server4, transfer)
	s.requireTransfer(s.Server, inner.node, client4, transfer)
	s.stop(client)
	s.requireCarried(client, 1, transfer, transfer)
}
