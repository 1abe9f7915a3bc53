package test

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ovpn-go/bench"
	"ovpn-go/bench/benchtest"
)

// TestNoListenerThatNobodyAskedFor looks at every socket of a namespace in which nothing runs but the program and its commands: before
// there is a peer nobody can reach it, and then at the peer's port alone.
func TestNoListenerThatNobodyAskedFor(t *testing.T) {
	t.Parallel()
	program, err := plainBinary()
	if err != nil {
		t.Fatal(err)
	}
	benchtest.Root(t)
	star := benchtest.Star(t, 1)
	shell := startShell(t, star.Server, program)
	shell.run("$P link add ovpn0")
	if diff := cmp.Diff([]string(nil), open(t, star.Server)); diff != "" {
		t.Errorf("with a link (-want +got):\n%s", diff)
	}
	shell.run(fmt.Sprintf("$P peer add ovpn0 7 --local 0.0.0.0:1194 --remote %v:1194", star.ClientAddr4(0)))
	// Two sockets at the port, the client's and the device's, are one way in. The other is how the client's is found again.
	if diff := cmp.Diff([]string{"udp 1194", "unix @ovpn-go/udp/0.0.0.0:1194"}, open(t, star.Server)); diff != "" {
		t.Errorf("with a peer (-want +got):\n%s", diff)
	}
	shell.run("$P peer del ovpn0 7")
	shell.run("$P link del ovpn0")
	if diff := cmp.Diff([]string(nil), open(t, star.Server)); diff != "" {
		t.Errorf("with neither any more (-want +got):\n%s", diff)
	}
}

// open returns the sockets of a namespace that anybody can reach: those that listen, and those that receive datagrams without
// being connected.
func open(t *testing.T, node *bench.Node) (sockets []string) {
	t.Helper()
	table := func(name string) (rows [][]string) {
		var text []byte
		err := node.Do(func() (err error) {
			text, err = os.ReadFile("/proc/thread-self/net/" + name)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			rows = append(rows, strings.Fields(line))
		}
		return rows[1:]
	}
	const listening, unconnected = "0A", "07"
	for _, protocol := range []struct{ name, state string }{
		{"tcp", listening}, {"tcp6", listening}, {"udp", unconnected}, {"udp6", unconnected}, {"raw", unconnected}, {"raw6", unconnected},
	} {
		for _, row := range table(protocol.name) {
			_, port, _ := strings.Cut(row[1], ":")
			number, err := strconv.ParseUint(port, 16, 16)
			if err != nil {
				t.Fatal(err)
			}
			const sendOnly = 255 // IPPROTO_RAW, see raw(7)
			if row[3] == protocol.state && number != sendOnly {
				sockets = append(sockets, fmt.Sprint(protocol.name, " ", number))
			}
		}
	}
	for range table("packet") {
		sockets = append(sockets, "packet")
	}
	for _, row := range table("unix") {
		const accepts = 1 << 16 // __SO_ACCEPTCON
		flags, err := strconv.ParseUint(row[3], 16, 32)
		if err != nil {
			t.Fatal(err)
		}
		if flags&accepts != 0 {
			sockets = append(sockets, "unix "+strings.Join(row[7:], " "))
		}
	}
	slices.Sort(sockets)
	return slices.Compact(sockets)
}
