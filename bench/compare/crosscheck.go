package compare

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"ovpn-go/bench"
	"ovpn-go/bench/report"
)

// crossCheckID is what the comparison with iperf3 goes by among the cases.
const crossCheckID = "iperf3"

// crossCheck measures one TCP stream by the harness's own traffic and by iperf3's in turns, so that a reader knows what the
// harness's figures are worth. Without iperf3 in OpenVPN's tree or in PATH there is nothing to do.
func (c *comparison) crossCheck(ctx context.Context) ([]report.CrossCheck, error) {
	root := c.openvpn.Root
	if root == "" {
		if _, err := exec.LookPath("iperf3"); err != nil {
			c.say("no cross-check: iperf3 is not installed")
			return nil, nil
		}
	} else if _, err := os.Stat(filepath.Join(root, "usr/bin/iperf3")); err != nil {
		c.say("no cross-check: %v", err)
		return nil, nil
	}
	var checks []report.CrossCheck
	for _, name := range []string{report.Veth, report.OursStatic} {
		check, err := c.crossCheckThrough(ctx, root, name)
		if err != nil {
			return nil, fmt.Errorf("compare with iperf3 through %s: %w", name, err)
		}
		checks = append(checks, check)
	}
	return checks, nil
}

func (c *comparison) crossCheckThrough(ctx context.Context, root, name string) (check report.CrossCheck, err error) {
	check.Contender = name
	t, err := c.start(ctx, name, setting{pathMTU: standardMTU, cipher: standardCipher})
	if err != nil {
		return check, err
	}
	defer func() { err = errors.Join(err, t.close()) }()
	launcher, err := bench.NewLauncher(root)
	if err != nil {
		return check, err
	}
	defer func() { err = errors.Join(err, launcher.Close()) }()
	seconds := max(1, int(c.options.Duration.Seconds()/2))
	for range (3*c.options.Rounds + 4) / 5 {
		own, err := bench.Throughput{From: t.client, To: t.server, Addr: t.serverAddr, Duration: time.Duration(seconds) * time.Second}.Run(ctx)
		if err != nil {
			return check, err
		}
		other, err := iperf3(ctx, launcher, t, seconds)
		if err != nil {
			return check, err
		}
		check.Own, check.Iperf3 = append(check.Own, own/1e9), append(check.Iperf3, other/1e9)
		c.say("%s  one TCP stream through %s: %.2f Gbit/s, by iperf3 %.2f", c.clock.left(), name, own/1e9, other/1e9)
	}
	return check, nil
}

// iperf3 measures one stream from the client to the server in bits per second, after a warm-up as long as the harness's own.
func iperf3(ctx context.Context, launcher *bench.Launcher, t *tunnel, seconds int) (bits float64, err error) {
	server, err := launcher.Start(bench.Command{Node: t.server, Args: []string{"iperf3", "--server", "--one-off", "--forceflush",
		"--bind", t.serverAddr.String()}})
	if err != nil {
		return 0, err
	}
	defer server.Kill()
	ctx, cancel := context.WithTimeout(ctx, time.Duration(seconds)*time.Second+tunnelUp)
	defer cancel()
	if _, _, err := server.Log.WaitFor(ctx, 0, "Server listening"); err != nil {
		return 0, err
	}
	client, err := launcher.Start(bench.Command{Node: t.client, Args: []string{"iperf3", "--client", t.serverAddr.String(), "--json",
		"--congestion", "cubic", "--omit", "1", "--time", strconv.Itoa(seconds)}})
	if err != nil {
		return 0, err
	}
	defer client.Kill()
	select {
	case <-client.Done():
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	text := client.Log.Tail(1 << 20)
	var result struct {
		Error string
		End   struct {
			Received struct {
				BitsPerSecond float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		}
	}
	if err := json.Unmarshal([]byte(text), &result); err != nil {
		return 0, fmt.Errorf("iperf3: %w: %s", err, text)
	}
	if result.Error != "" || result.End.Received.BitsPerSecond == 0 {
		return 0, fmt.Errorf("iperf3: %s", result.Error)
	}
	return result.End.Received.BitsPerSecond, nil
}
