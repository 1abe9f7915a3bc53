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

// TestContainer runs a client in a user namespace of its own, as in an unprivileged container: it may
// do everything in its network namespace and nothing outside. The kernel module would refuse it.
func TestContainer(t *testing.T) {
	t.Parallel()
	s := newScenario(t, 1)
	const transfer = 1 << 20

	// A process that holds the two namespaces. Its root is the machine's, for files, but without
	// any capability outside.
	holder := exec.Command("sleep", "infinity")
	same := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
	holder.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNET, UidMappings: same, GidMappings: same}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		holder.Process.Kill()
		holder.Wait()
	})
	ns, err := netns.OfThread(holder.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	node, err := s.AdoptNode("container", ns)
	if err != nil {
		t.Fatal(err)
	}
	outside, inside := netip.MustParsePrefix("10.9.100.1/24"), netip.MustParsePrefix("10.9.100.2/24")
	err = s.Connect(
		bench.End{Node: s.Server, Name: "eth100", Addrs: []netip.Prefix{outside}},
		bench.End{Node: node, Name: "eth0", Addrs: []netip.Prefix{inside}})
	if err != nil {
		t.Fatal(err)
	}
	server := s.startServer(s.exec(s.Server), bench.ServerOptions{Pool6: pool6})
	enter := []string{"nsenter", "--target", fmt.Sprint(holder.Process.Pid), "--user", "--net", "--"}
	client := s.startClient(bench.Placement{Node: node, Prefix: slices.Concat(enter, s.prefix)}, 0, bench.ClientOptions{
		Options: bench.Options{Name: "container"},
		Remote:  netip.AddrPortFrom(outside.Addr(), bench.DefaultPort)})
	server4, server6 := s.addrs(server)
	client4, _ := s.addrs(client)
	s.requirePing(node, server4)
	s.requirePing(node, server6)
	s.requirePing(s.Server, client4)
	s.requireTransfer(node, s.Server, server4, transfer)
	s.requireTransfer(s.Server, node, client4, transfer)
	s.stop(client)
	s.requireCarried(client, 1, transfer, transfer)
}
