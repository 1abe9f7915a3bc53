package main

import (
	"fmt"
	"strconv"

	"github.com/spf13/pflag"

	"ovpn-go/datapath"
)

// fitFlags are the flags by which a user chooses what becomes of packets that are too long for the path.
type fitFlags struct {
	mssfix   string
	oversize string
}

func (f *fitFlags) register(flags *pflag.FlagSet) {
	flags.StringVar(&f.mssfix, "mssfix", "auto", "limit the TCP segments in tunnels over UDP, so that the datagrams they travel in have "+
		"at most this many bytes with IP and UDP headers, and fit the path: a number, auto (the path decides), or off")
	flags.StringVar(&f.oversize, "oversize", "hint", "packets that are still too long travel in fragments; "+
		"hint: and their senders are told by ICMP if they forbid fragments; fragment: nobody is told, as by the kernel module")
}

func (f *fitFlags) parse() (fit datapath.Fit, err error) {
	switch f.mssfix {
	case "auto":
		fit.MSS = datapath.MSSAuto
	case "off":
		fit.MSS = datapath.MSSOff
	default:
		n, err := strconv.Atoi(f.mssfix)
		if err != nil || n < datapath.MinMSS || n > datapath.MaxMSS {
			return fit, fmt.Errorf("--mssfix %q: must be auto, off, or %d to %d", f.mssfix, datapath.MinMSS, datapath.MaxMSS)
		}
		fit.MSS = n
	}
	switch f.oversize {
	case "hint":
	case "fragment":
		fit.Silent = true
	default:
		return fit, fmt.Errorf("--oversize %q: must be hint or fragment", f.oversize)
	}
	return fit, nil
}
