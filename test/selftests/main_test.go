// Package selftests runs the kernel's own tests of its ovpn module under the program: the scripts,
// the client they are written for and the netlink library they listen with, none of them changed.
// build.sh fetches them; nothing of them is part of this repository.
package selftests

import (
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	if os.Args[0] == initName {
		os.Exit(runInit(os.Args[1:]))
	}
	os.Exit(m.Run())
}
