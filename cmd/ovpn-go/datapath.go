package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	osexec "os/exec"

	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv/client"
)

// datapathFlag says who is to carry the packets of a client.
type datapathFlag string

// What the flag can be.
const (
	datapathAuto      datapathFlag = "auto"      // the kernel's module if it works, or else this program
	datapathKernel    datapathFlag = "kernel"    // the kernel's module
	datapathUserspace datapathFlag = "userspace" // this program
)

func (f *datapathFlag) Type() string   { return "WHO" }
func (f *datapathFlag) String() string { return string(*f) }
func (f *datapathFlag) Set(text string) error {
	switch v := datapathFlag(text); v {
	case datapathAuto, datapathKernel, datapathUserspace:
		*f = v
		return nil
	}
	return errors.New("must be auto, kernel or userspace")
}

// choose decides whether the client is left to the kernel's module. The error says why that is not possible where it is
// demanded.
func (f datapathFlag) choose(log *slog.Logger) (kernel bool, err error) {
	if f == datapathUserspace {
		return false, nil
	}
	err = tryModule()
	switch {
	case err == nil:
		log.Info("the kernel's ovpn module is used")
		return true, nil
	case f == datapathKernel:
		return false, fmt.Errorf("--datapath kernel: the ovpn module can't be used: %w", err)
	}
	log.Info("this program stands in for the kernel's ovpn module", "because", err)
	return false, nil
}

// tryModule asks the kernel's module something with the rights that the client will have. Looking the family up also loads
// the module, where there is one and that is permitted.
func tryModule() error {
	c, err := client.DialKernel()
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Usable()
}

// leaveToKernel becomes the client. It returns only if that fails.
func leaveToKernel(args []string) error {
	path, err := osexec.LookPath(args[0])
	if err == nil {
		err = unix.Exec(path, args, os.Environ())
	}
	return fmt.Errorf("start %q: %w", args[0], err)
}
