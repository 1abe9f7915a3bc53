package main

import (
	"github.com/spf13/pflag"

	"ovpn-go/datapath"
	"ovpn-go/netlinksrv"
)

// deviceFlags are the flags by which a user chooses how devices work.
type deviceFlags struct {
	fit     fitFlags
	workers workersFlag
	gso     datapath.GSO
}

// deviceFlagNames are the names of the flags.
var deviceFlagNames = []string{"mssfix", "oversize", "workers", "udp-gso"}

func (f *deviceFlags) register(flags *pflag.FlagSet) {
	f.fit.register(flags)
	f.workers.register(flags)
	flags.TextVar(&f.gso, "udp-gso", datapath.GSOAuto, "whether the kernel cuts batches of datagrams: auto (not where it is known to garble them), on, or off")
}

// config is what the flags say of a server.
func (f *deviceFlags) config() (netlinksrv.Config, error) {
	fit, err := f.fit.parse()
	if err != nil {
		return netlinksrv.Config{}, err
	}
	return netlinksrv.Config{Fit: fit, GSO: f.gso, Workers: int(f.workers)}, nil
}
