package bench

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrUnable says that this machine, or this user, can't run namespaces and TUN devices.
var ErrUnable = errors.New("can't run here")

// Demo configures a demonstration: one server and two clients in namespaces of their own, traffic
// through our data path, and the same through OpenVPN's own for comparison.
type Demo struct {
	// Program is our own binary, which OpenVPN is run under.
	Program string
	// StaticKeys skips OpenVPN even if there is one: the devices get random keys by hand.
	StaticKeys bool
	// Duration of each throughput measurement, 2 s if zero.
	Duration time.Duration
	// Workers is how many workers each device has; 0 lets it choose.
	Workers int
	// Progress is told what happens, a line at a time, if it is not nil.
	Progress func(line string)
}

// DemoResult is what a demonstration measured.
type DemoResult struct {
	// OpenVPN is the version line of the OpenVPN that ran, "" without one.
	OpenVPN string       `json:"openvpn,omitempty"`
	Tunnels []DemoTunnel `json:"tunnels"`
	// Ratio is our throughput divided by that of OpenVPN's own data channel; 0 without OpenVPN.
	Ratio float64 `json:"ratio,omitempty"`
}

// A DemoTunnel is one client's tunnel to the server.
type DemoTunnel struct {
	Name string `json:"name"`
	// DataChannel says who carries the packets.
	DataChannel string `json:"data_channel"`
	// Interface is the client's tunnel interface.
	Interface  string  `json:"interface"`
	Pings      int     `json:"pings"`
	PingsLost  int     `json:"pings_lost"`
	PingMedian float64 `json:"ping_median_ms"`
	PingP99    float64 `json:"ping_p99_ms"`
	// GbitPerSecond is the rate at which TCP payload arrived at the server.
	GbitPerSecond float64 `json:"gbit_per_s"`
}

const (
	demoClients  = 2
	demoPings    = 100
	demoInterval = 5 * time.Millisecond
	demoUp       = 20 * time.Second
	demoAnswer   = 5 * time.Second
)

// Run runs the demonstration and removes everything it made, whether it fails or is cancelled.
// Errors: ErrUnable, the context's.
func (d Demo) Run(ctx context.Context) (DemoResult, error) {
	if d.Duration == 0 {
		d.Duration = 2 * time.Second
	}
	if d.Progress == nil {
		d.Progress = func(string) {}
	}
	if _, err := os.Stat("/dev/net/tun"); errors.Is(err, fs.ErrNotExist) {
		return DemoResult{}, fmt.Errorf("%w: there is no /dev/net/tun (load the kernel module tun, or pass the device into the container)", ErrUnable)
	}
	star, err := NewStar(demoClients)
	if errors.Is(err, unix.EPERM) {
		return DemoResult{}, fmt.Errorf("%w: network namespaces need root (%w)", ErrUnable, err)
	}
	if err != nil {
		return DemoResult{}, err
	}
	defer star.Close()
	d.say("made a server and %d clients, each in a network namespace of its own", demoClients)

	if !d.StaticKeys {
		openvpn, err := FindOpenVPN()
		if err == nil {
			return d.openvpn(ctx, star, openvpn)
		}
		d.say("%v; going on with static keys", err)
	}
	return d.staticKeys(ctx, star)
}

func (d Demo) say(format string, args ...any) { d.Progress(fmt.Sprintf(format, args...)) }

// measure pings the server from a client and sends to it.
func (d Demo) measure(ctx context.Context, name, channel, iface string, client, server *Node, addr netip.Addr) (DemoTunnel, error) {
	// A tunnel that just came up may still be learning its routes.
	if err := AwaitAnswer(ctx, client, addr, demoAnswer); err != nil {
		return DemoTunnel{}, fmt.Errorf("%s: %w", name, err)
	}
	r, err := Ping{Node: client, To: addr, Count: demoPings, Interval: demoInterval}.Run(ctx)
	if err != nil {
		return DemoTunnel{}, err
	}
	if err := context.Cause(ctx); err != nil {
		return DemoTunnel{}, err
	}
	rate, err := Throughput{From: client, To: server, Addr: addr, Duration: d.Duration}.Run(ctx)
	if err != nil {
		return DemoTunnel{}, err
	}
	t := DemoTunnel{
		Name:          name,
		DataChannel:   channel,
		Interface:     iface,
		Pings:         r.Sent,
		PingsLost:     r.Lost(),
		PingMedian:    milliseconds(r.Median),
		PingP99:       milliseconds(r.P99),
		GbitPerSecond: rate / 1e9,
	}
	d.say("%s: %d pings, %d lost, median %.2f ms; %.2f Gbit/s", name, t.Pings, t.PingsLost, t.PingMedian, t.GbitPerSecond)
	return t, nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
