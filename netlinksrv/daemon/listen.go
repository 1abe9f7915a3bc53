package daemon

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Listen returns the daemon's socket: the one that the service manager has opened, if it has, or else a new one at path. The new
// one's file is the caller's alone, or a group's as well if one is named, and goes when the listener is closed. One that another daemon has
// left there is removed.
func Listen(path, group string) (*net.UnixListener, error) {
	if file, err := activated(); file != nil || err != nil {
		if err != nil {
			return nil, err
		}
		defer file.Close()
		return adoptListener(file)
	}
	gid := -1
	if group != "" {
		var err error
		if gid, err = groupID(group); err != nil {
			return nil, err
		}
	}
	if path == "" || path[0] == '@' {
		return nil, fmt.Errorf("listen on %q: a daemon needs a socket with a file, whose mode says who may connect", path)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	mask := unix.Umask(0o177) // nobody may come between
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	unix.Umask(mask)
	if err != nil {
		return nil, err
	}
	if gid >= 0 {
		if err = os.Chown(path, -1, gid); err == nil {
			err = os.Chmod(path, 0o660)
		}
		if err != nil {
			l.Close()
			return nil, fmt.Errorf("let a group use the socket: %w", err)
		}
	}
	return l, nil
}

// removeStale removes the socket of a daemon that has ended without doing so.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("listen on %s: something else is there: %w", path, unix.EEXIST)
	}
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err == nil {
		conn.Close()
		return fmt.Errorf("listen on %s: another daemon does: %w", path, unix.EADDRINUSE)
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("listen on %s: who has it can't be told: %w", path, err)
	}
	return os.Remove(path)
}

func groupID(name string) (int, error) {
	g, err := user.LookupGroup(name)
	if err != nil {
		if _, numeric := strconv.ParseUint(name, 10, 31); numeric != nil {
			return 0, err
		}
		g = &user.Group{Gid: name}
	}
	return strconv.Atoi(g.Gid)
}

// adoptListener checks that a descriptor is such a socket as Listen makes.
func adoptListener(file *os.File) (*net.UnixListener, error) {
	l, err := net.FileListener(file)
	if err != nil {
		return nil, fmt.Errorf("adopt the service manager's socket: %w", err)
	}
	if unixListener, ok := l.(*net.UnixListener); ok && l.Addr().Network() == "unixpacket" {
		return unixListener, nil
	}
	l.Close()
	return nil, fmt.Errorf("adopt the service manager's socket: it is of type %s; the unit needs ListenSequentialPacket=", l.Addr().Network())
}
