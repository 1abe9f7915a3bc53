package bench

import (
	"context"
	"errors"
	"fmt"
)

// staticKeys measures through devices of ours in this very process.
func (d Demo) staticKeys(ctx context.Context, star *Star) (result DemoResult, err error) {
	devices, err := NewStaticDevices(star, d.Workers)
	if err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, devices.Close()) }()
	d.say("made a device with a random AES-256-GCM key for each client")
	for i, client := range star.Clients {
		t, err := d.measure(ctx, fmt.Sprintf("client%d", i+1), "ovpn-go, static keys", staticInterface, client, star.Server, StaticServerAddr)
		if err != nil {
			return result, err
		}
		result.Tunnels = append(result.Tunnels, t)
	}
	return result, nil
}
