package bench_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"ovpn-go/bench"
	"ovpn-go/bench/benchtest"
)

// Two devices in this process carry real traffic, with nobody's help.
func TestDemoStaticKeys(t *testing.T) {
	benchtest.Root(t)
	result, err := bench.Demo{StaticKeys: true, Duration: 200 * time.Millisecond,
		Progress: func(line string) { t.Log(line) }}.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(result.Tunnels) != 2 || result.OpenVPN != "" || result.Ratio != 0 {
		t.Errorf("got %+v", result)
	}
	for _, tunnel := range result.Tunnels {
		if tunnel.PingsLost != 0 || tunnel.PingMedian <= 0 || tunnel.GbitPerSecond <= 0.01 {
			t.Errorf("got %+v", tunnel)
		}
	}
}

func TestDemoEndsWithItsContext(t *testing.T) {
	benchtest.Root(t)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := bench.Demo{StaticKeys: true, Duration: time.Hour}.Run(ctx)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}
