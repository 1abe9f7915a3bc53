// Package selftests runs the kernel's own tests of its ovpn module under the program: the scripts,
// the client they are written for and the netlink library they listen with, none of them changed.
// build.sh fetches them; nothing of them is part of this repository.
package selftests

import (
	"fmt"
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	if os.Args[0] == initName {
		os.Exit(runInit(os.Args[1:]))
	}
	if os.Getenv(roundVariable) != "" {
		if err := genetlinkRound(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}
