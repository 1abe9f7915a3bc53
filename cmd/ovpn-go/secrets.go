package main

import (
	"log/slog"

	"golang.org/x/sys/unix"

	"ovpn-go/confine"
)

// hideKeys keeps the keys that this process is going to hold from core files, from other processes of its user, and
// where that is allowed from swap space.
func hideKeys(log *slog.Logger) {
	if err := confine.HideMemory(); err != nil {
		log.Warn("keys may get into core files", "error", err)
	}
	if err := confine.LockMemory(); err != nil {
		log.Debug("keys may get into swap space", "error", err)
	}
}

// confineDaemon takes from a daemon that is set up what it does not need from then on.
func confineDaemon(log *slog.Logger) {
	err := confine.KeepCapabilities(
		unix.CAP_NET_ADMIN,        // interfaces, and what is set on sockets
		unix.CAP_NET_RAW,          // a client's connected UDP socket
		unix.CAP_NET_BIND_SERVICE, // a client's port below 1024
		unix.CAP_CHOWN,            // a socket beside a client's has the same owner
		unix.CAP_SYS_ADMIN,        // to enter a client's network namespace
		unix.CAP_SYS_PTRACE,       // what a client's requests refer to: its memory and its descriptors
		unix.CAP_DAC_READ_SEARCH,  // their lists in /proc, where the client is another user
	)
	if err != nil {
		log.Warn("capabilities that are not needed are kept", "error", err)
	}
	if err := confine.RefuseCalls(); err != nil {
		log.Warn("system calls that are not needed are not refused", "error", err)
	}
}
