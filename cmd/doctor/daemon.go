package doctor

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv/client"
	"ovpn-go/netlinksrv/daemon/wire"
)

// daemon is asked something where there is one. None is needed.
func (Doctor) daemon() Finding {
	path, said := wire.Path()
	if path == "" {
		return ok("%s says that none is wanted", wire.Variable)
	}
	hello, err := wire.Dial(path)
	if errors.Is(err, os.ErrNotExist) && !said {
		return ok("none runs; `exec` does its work by itself")
	}
	if err == nil {
		hello.Close()
		err = askDaemon()
	}
	switch {
	case err == nil:
		return ok("one answers at %s", path)
	case said:
		return failed(err.Error(), "`exec` and the other commands, which are told to use it, can't work",
			fmt.Sprintf("start it there: ovpn-go serve --socket %s, or say --socket none", path))
	case errors.Is(err, os.ErrPermission):
		return degraded(err.Error(), "`exec` does its work by itself, and shares no interfaces", "run as root, or let a group use the daemon: ovpn-go serve --group NAME")
	}
	return degraded(err.Error(), "`exec` does its work by itself, and shares no interfaces", "start it again: systemctl restart ovpn-go, or ovpn-go serve")
}

// askDaemon has the daemon answer for the family. Whether this process may use that is another finding's.
func askDaemon() error {
	c, err := client.Dial()
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Usable(); err != nil && !errors.Is(err, unix.EPERM) {
		return err
	}
	return nil
}
