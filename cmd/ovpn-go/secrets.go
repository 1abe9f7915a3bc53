package main

import (
	"log/slog"

	"ovpn-go/confine"
)

// hideKeys keeps the keys that this process is going to hold from core files, from other processes of its user, and
// where that is allowed from swap space.
func hideKeys(log *slog.Logger) {
	if err := confine.HideMemory(); err != nil {
		log.Warn("keys may get into core files", "err", err)
	}
	if err := confine.LockMemory(); err != nil {
		log.Debug("keys may get into swap space", "err", err)
	}
}
