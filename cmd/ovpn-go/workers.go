package main

import (
	"fmt"
	"strconv"

	"github.com/spf13/pflag"

	"ovpn-go/datapath"
)

// workersFlag is the flag by which a user says how many workers a device has: a pflag.Value.
type workersFlag int

func (w *workersFlag) register(flags *pflag.FlagSet) {
	flags.Var(w, "workers", fmt.Sprintf("goroutines that move the packets of each interface, 1 to %d; "+
		"0: one, or half as many as processors for a server with more than four", datapath.MaxWorkers))
}

func (w *workersFlag) Set(s string) error {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || n > datapath.MaxWorkers {
		return fmt.Errorf("must be 0 to %d", datapath.MaxWorkers)
	}
	*w = workersFlag(n)
	return nil
}

func (w *workersFlag) String() string { return strconv.Itoa(int(*w)) }
func (w *workersFlag) Type() string   { return "number" }
