package daemon

import (
	"fmt"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// firstActivated is the number of the first descriptor that a service manager passes: SD_LISTEN_FDS_START, sd_listen_fds(3).
const firstActivated = 3

// activated returns the one socket that the service manager has opened for this process, nil if it has not.
func activated() (*os.File, error) {
	if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return nil, nil
	}
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil || n != 1 {
		return nil, fmt.Errorf("the service manager passes %q sockets, expected one", os.Getenv("LISTEN_FDS"))
	}
	unix.CloseOnExec(firstActivated)
	return os.NewFile(firstActivated, "activated socket"), nil
}

// Notify tells the service manager how the daemon is, such as "READY=1", sd_notify(3). Without one it does nothing.
func Notify(state string) error {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err == nil {
		_, err = conn.Write([]byte(state))
		conn.Close()
	}
	if err != nil {
		return fmt.Errorf("tell the service manager: %w", err)
	}
	return nil
}
