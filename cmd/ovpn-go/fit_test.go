package main

import (
	"testing"

	"github.com/spf13/pflag"

	"ovpn-go/datapath"
)

func TestFitFlags(t *testing.T) {
	for _, row := range []struct {
		args []string
		want datapath.Fit
		ok   bool
	}{
		{nil, datapath.Fit{}, true},
		{[]string{"--mssfix=auto", "--oversize=hint"}, datapath.Fit{}, true},
		{[]string{"--mssfix=off"}, datapath.Fit{MSS: datapath.MSSOff}, true},
		{[]string{"--mssfix=1400", "--oversize=fragment"}, datapath.Fit{MSS: 1400, Silent: true}, true},
		{[]string{"--mssfix=576"}, datapath.Fit{MSS: 576}, true},
		{[]string{"--mssfix=575"}, datapath.Fit{}, false},
		{[]string{"--mssfix=65536"}, datapath.Fit{}, false},
		{[]string{"--mssfix=0"}, datapath.Fit{}, false},
		{[]string{"--mssfix=-1"}, datapath.Fit{}, false},
		{[]string{"--mssfix="}, datapath.Fit{}, false},
		{[]string{"--oversize=drop"}, datapath.Fit{}, false},
	} {
		var f fitFlags
		flags := pflag.NewFlagSet("", pflag.ContinueOnError)
		f.register(flags)
		if err := flags.Parse(row.args); err != nil {
			t.Fatal(err)
		}
		got, err := f.parse()
		if (err == nil) != row.ok || row.ok && got != row.want {
			t.Errorf("%q = %+v, %v; want %+v, %v", row.args, got, err, row.want, row.ok)
		}
	}
}
