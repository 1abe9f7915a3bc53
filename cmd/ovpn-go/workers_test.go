package main

import (
	"testing"

	"github.com/spf13/pflag"
)

func TestWorkersFlag(t *testing.T) {
	for value, want := range map[string]int{"0": 0, "1": 1, "64": 64, "65": -1, "-1": -1, "": -1, "many": -1} {
		var w workersFlag
		flags := pflag.NewFlagSet("", pflag.ContinueOnError)
		w.register(flags)
		err := flags.Parse([]string{"--workers=" + value})
		if (err == nil) != (want >= 0) || err == nil && int(w) != want {
			t.Errorf("--workers=%s: %d, %v; want %d", value, w, err, want)
		}
	}
}
