package test

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"ovpn-go/bench/benchtest"
	"ovpn-go/test/oracle"
)

// moduleScript runs where the kernel has the module, and says what it sees.
const moduleScript = `#!/bin/sh
P=/job/ovpn-go
say() { echo "$1: $2"; }
check() { if "$@" >/tmp/log 2>&1; then echo yes; else echo no; cat /tmp/log >&2; fi; }
links() { $P link show | sed 1d | cut -d' ' -f1 | tr '\n' ' '; }
ip link set lo up
mkdir -p /dev/net; [ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200

# A link of the kernel's stays when exec has ended, one of the program's goes with it.
$P exec -- $P link add auto0
$P exec --datapath kernel -- $P link add kernel0
$P exec --datapath userspace -- $P link add user0
say "links that stay" "$(links)"
$P exec --datapath userspace -- sh -c "$P link add user1; $P link show user1 | grep -c user1; cat /sys/class/net/user1/tun_flags" >/tmp/user1
say "a link of the program's is a TUN interface" "$(check grep 0x /tmp/user1)"
$P link del auto0; $P link del kernel0
$P doctor --json >/out/doctor.json

# Two hosts.
unshare -n sleep 1000 & far=$!
at() { nsenter -t $far -n "$@"; }
until [ "$(readlink /proc/$far/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.1; done
ip link add name near type veth
other=$(ip -o link | sed -n 's/.*: \(veth[0-9]*\)@.*/\1/p')
ip link set $other netns $far
ip addr add 192.0.2.1/24 dev near; ip link set near up
at ip addr add 192.0.2.2/24 dev $other; at ip link set $other up; at ip link set lo up
cat >/tmp/end <<'END'
P=/job/ovpn-go; set -e
$P link add tun0
$P peer add tun0 1 --local :1194 --remote $2:1194
$P key add tun0 1 --file $4 --direction $1
ip addr add $3/24 dev tun0
ip link set tun0 up
END
arrives() { for i in 1 2 3 4 5 6 7 8 9 10; do ping -c 1 -W 1 $1 && return; done; return 1; }

# The module at both ends, driven by the program's commands.
$P key generate >/tmp/key1
say "the module is driven" "$(check sh /tmp/end 0 192.0.2.2 10.8.0.1 /tmp/key1)$(check at sh /tmp/end 1 192.0.2.1 10.8.0.2 /tmp/key1)"
say "the module carries" "$(check arrives 10.8.0.2)"
$P show --json >/out/show.json
at $P peer del tun0 1; at $P link del tun0
for i in 1 2 3 4 5 6 7 8 9 10; do at $P link show | grep -q tun0 || break; sleep 0.5; done

# The module here, the program there.
$P key generate >/tmp/key2
$P key add tun0 1 --file /tmp/key2 --direction 0
mkfifo /tmp/end-of-user
at $P exec --datapath userspace -- sh -c 'sh /tmp/end 1 192.0.2.1 10.8.0.2 /tmp/key2 && echo up >/tmp/user-is-up; read end </tmp/end-of-user; /job/ovpn-go link del tun0' &
user=$!
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do [ -e /tmp/user-is-up ] && break; sleep 0.5; done
say "the program carries" "$(check arrives 10.8.0.2)"
echo end >/tmp/end-of-user
wait $user
say "the program has ended" $?
$P link del tun0

# The program at both ends, while somebody sets the clock.
$P serve --socket /tmp/daemon & daemon=$!
until [ -S /tmp/daemon ]; do sleep 0.1; done
export OVPN_GO_SOCKET=/tmp/daemon
$P key generate >/tmp/key3
sh /tmp/end 0 192.0.2.2 10.8.0.1 /tmp/key3
at sh /tmp/end 1 192.0.2.1 10.8.0.2 /tmp/key3
say "before the clock is set" "$(check arrives 10.8.0.2)"
later() { date -s @$(($(date +%s) + $1)) >/dev/null; }
for end in "" at; do $end $P peer set tun0 1 --keepalive 1,5; done
later 86400
sleep 2
$P show tun0 --json >/out/forwards.json
later -172800
sleep 6
$P show tun0 --json >/out/back.json
at $P peer set tun0 1 --keepalive 0,0
later -86400
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do $P peer show tun0 --json >/tmp/peers; grep -q '"id"' /tmp/peers || break; sleep 0.5; done
say "silence, as the clock is set back" "$(grep -q '"id"' /tmp/peers && echo ignored || echo noticed)"
for end in "" at; do $end $P link del tun0; done
kill $daemon; wait $daemon
say "the daemon has ended" $?
kill $far
say "links at the end" "$(links)"
`

// kernelMachine returns the emulated machine that has the kernel's module.
func kernelMachine(t *testing.T) *oracle.Machine {
	t.Helper()
	machine, err := oracle.Find(t.Context(), "oracle/build.sh")
	if errors.Is(err, oracle.ErrUnavailable) {
		benchtest.Missing(t, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	return machine
}

// TestKernelFirst runs the program on a kernel that has the module: which of the two is used, and that both carry packets. The
// program's own commands drive either. And in a machine of its own its clock may be set, which must not mean anything to the program.
func TestKernelFirst(t *testing.T) {
	t.Parallel()
	machine := kernelMachine(t)
	path, err := plainBinary()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	result, err := machine.Run(t.Context(), oracle.Job{
		Files:   map[string][]byte{"run": []byte(moduleScript), "ovpn-go": program},
		Timeout: 8 * time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{}
	for line := range strings.Lines(string(result.Files["stdout"])) {
		what, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		seen[what] = strings.TrimSpace(value)
	}
	for what, want := range map[string]string{
		"links that stay": "auto0 kernel0",
		"a link of the program's is a TUN interface": "yes",
		"the module is driven":                       "yesyes",
		"the module carries":                         "yes",
		"the program carries":                        "yes",
		"the program has ended":                      "0",
		"before the clock is set":                    "yes",
		"silence, as the clock is set back":          "noticed",
		"the daemon has ended":                       "0",
		"links at the end":                           "",
	} {
		if got, ok := seen[what]; !ok || got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	var findings []finding
	if err := json.Unmarshal(result.Files["doctor.json"], &findings); err != nil {
		t.Error(err)
	}
	said := false
	for _, f := range findings {
		said = said || f.Check == "kernel module" && strings.Contains(f.Detail, "this process may use it")
	}
	if !said {
		t.Errorf("doctor does not find the module: %s", result.Files["doctor.json"])
	}
	var shown []struct {
		Name  string
		Peers []shownPeer
	}
	if err := json.Unmarshal(result.Files["show.json"], &shown); err != nil {
		t.Error(err)
	} else if len(shown) != 1 || len(shown[0].Peers) != 1 || shown[0].Peers[0].Link.RxPackets == 0 || len(shown[0].Peers[0].Keys) != 1 {
		t.Errorf("show prints of the module: %s", result.Files["show.json"])
	}
	// A second of the machine's may take several of ours, of which it counts some.
	for _, clock := range []string{"forwards", "back"} {
		var links []struct{ Peers []shownPeer }
		if err := json.Unmarshal(result.Files[clock+".json"], &links); err != nil {
			t.Errorf("the clock is set %s: %v", clock, err)
		} else if len(links) != 1 || len(links[0].Peers) != 1 || len(links[0].Peers[0].Keys) != 1 {
			t.Errorf("the clock is set %s: the peer is gone: %s", clock, result.Files[clock+".json"])
		} else if p := links[0].Peers[0]; p.LastSeen == nil || *p.LastSeen > 5 || p.Keys[0].Age == nil || *p.Keys[0].Age > 600 {
			t.Errorf("the clock is set %s: ages that can't be: %s", clock, result.Files[clock+".json"])
		}
	}
	if t.Failed() {
		t.Logf("stdout:\n%s\nstderr:\n%s\ndmesg:\n%s", result.Files["stdout"], result.Files["stderr"], result.Files["dmesg"])
	}
}
