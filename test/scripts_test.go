package test

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ovpn-go/bench"
)

// upScript uses what people's scripts use. Each of these programs opens sockets of its own, netlink
// ones among them, and inherits whatever our program did to OpenVPN.
const upScript = `#!/bin/sh
set -ex
ip -d link show dev "$dev"
ip addr show dev "$dev"
ip route get 10.8.0.1
ip -6 route show
ip link add link0 type veth peer name link1
ip link del link0
nft add table inet script
nft add chain inet script out '{ type filter hook output priority 0; }'
nft list ruleset
curl --silent --show-error --fail %[1]s/hello
getent passwd nobody
getent ahostsv4 127.0.0.1
echo "script $1 done"
`

const connectScript = `#!/bin/sh
set -ex
ip -o link show
nft list ruleset
getent passwd nobody
echo "hello from the script of $common_name"
echo "push \"setenv-safe greeting from-the-script\"" >"$1"
echo "script connect done"
`

// TestScripts runs scripts of OpenVPN's under our program.
func TestScripts(t *testing.T) { overBoth(t, testScripts) }

func testScripts(t *testing.T, tcp bool) {
	t.Parallel()
	s := newScenario(t, 1)
	url := serveHTTP(t, s)

	writeScript := func(name, text string) string {
		// Its output goes to a file: OpenVPN may keep its own to itself.
		text = strings.Replace(text, "\n", "\nexec >>"+s.Inside(name+".out")+" 2>&1\n", 1)
		path, err := s.WriteFile(name, []byte(text), 0o755)
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	up := writeScript("up.sh", fmt.Sprintf(upScript, url))
	connect := writeScript("connect.sh", connectScript)

	server := s.startServer(s.exec(s.Server), bench.ServerOptions{Options: bench.Options{TCP: tcp,
		Extra: []string{"script-security 2", "client-connect " + connect}}})
	s.startClient(s.exec(s.Clients[0]), 0, bench.ClientOptions{Options: bench.Options{TCP: tcp,
		Extra: []string{"script-security 2", "up " + up, "up-restart"}}})
	server4, _ := s.addrs(server)
	s.requirePing(s.Clients[0], server4)

	output := func(name string) string {
		data, err := os.ReadFile(filepath.Join(s.Dir(), name+".out"))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	upOut := output("up.sh")
	for _, want := range []string{
		"script tun0 done",
		"hello, client",          // curl
		"chain out",              // nft
		"inet 10.8.0.2/24",       // ip addr
		"nobody:",                // getent passwd
		"127.0.0.1       STREAM", // getent ahostsv4
	} {
		if !strings.Contains(upOut, want) {
			t.Errorf("the up script's output lacks %q:\n%s", want, upOut)
		}
	}
	if !hasField(upOut, "ovpn") || hasField(upOut, "tun") {
		t.Errorf("ip -d link show does not name the kind ovpn:\n%s", upOut)
	}
	if out := output("connect.sh"); !strings.Contains(out, "script connect done") || !strings.Contains(out, "script of client1") {
		t.Errorf("the client-connect script's output:\n%s", out)
	}
}

// TestCommands runs programs that have nothing to do with OpenVPN: they must not notice us.
func TestCommands(t *testing.T) {
	t.Parallel()
	s := newScenario(t, 1)
	url := serveHTTP(t, s)
	for _, tt := range []struct {
		name   string
		script string
		code   int
		want   string
	}{
		{"exit code", "exit 42", 42, ""},
		{"signal", "kill -TERM $$", 128 + 15, ""},
		{"ip", "ip -o link show dev eth0", 0, "eth0"},
		{"ip route", "ip route show", 0, "10.9.0.0/24"},
		{"ip monitor", "timeout 0.3 ip monitor link; echo ended with $?", 0, "ended with 124"},
		{"nft", "nft add table t && nft list tables", 0, "table ip t"},
		{"curl", "curl -sf " + url + "/hello", 0, "hello, client"},
		{"getent", "getent ahostsv4 127.0.0.1 && getent passwd nobody", 0, "nobody:"},
		{"ping", "ping -c 1 -W 5 10.9.0.1", 0, "1 received"},
		{"generic netlink", "ip netns list-id; genl ctrl get name ovpn", 0, "ovpn"},
		{"link of kind ovpn", "ip link add vpn7 type ovpn && ip -d link show vpn7 && ip link del vpn7", 0, "ovpn"},
		{"link of kind ovpn, name taken", "ip link add eth0 type ovpn", 2, "File exists"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := s.Launcher.Start(bench.Command{Node: s.Clients[0], Prefix: s.prefix,
				Args: []string{"sh", "-c", tt.script}})
			if err != nil {
				t.Fatal(err)
			}
			select {
			case <-p.Done():
			case <-time.After(30 * time.Second):
				p.Kill()
				t.Errorf("did not end")
			}
			code, err := p.Wait()
			if err != nil || code != tt.code {
				t.Errorf("exit code %d, %v; want %d", code, err, tt.code)
			}
			if tt.want != "" && !p.Log.Contains(tt.want) {
				t.Errorf("the output lacks %q", tt.want)
			}
			if t.Failed() {
				t.Logf("output:\n%s", p.Log.Tail(40))
			}
		})
	}
}

// serveHTTP answers /hello in the server's namespace and returns the URL by which client 0 reaches it
// outside of the tunnel.
func serveHTTP(t *testing.T, s *scenario) string {
	t.Helper()
	var listener net.Listener
	err := s.Server.Do(func() (err error) {
		listener, err = net.Listen("tcp", net.JoinHostPort(s.ServerAddr4(0).String(), "0"))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "hello, client")
	})}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	return "http://" + listener.Addr().String()
}

// hasField reports whether a word stands by itself at the beginning of a line's text.
func hasField(text, word string) bool {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) > 0 && fields[0] == word {
			return true
		}
	}
	return false
}
