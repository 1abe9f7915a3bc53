package exec

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"ovpn-go/tun/netns"
)

// withoutMore runs fn, a system call or two, with no more rights over ns than the thread has.
func (t *task) withoutMore(ns *netns.NS, fn func() error) error {
	err := t.MayAdmin(ns)
	switch {
	case err == nil:
		return fn()
	case isShortage(err):
		return err
	}
	return unprivileged(fn)
}

// unprivileged runs fn, a system call or two, on a thread without effective capabilities.
func unprivileged(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var full [2]unix.CapUserData
		if err := unix.Capget(&header, &full[0]); err != nil {
			runtime.UnlockOSThread()
			done <- os.NewSyscallError("capget", err)
			return
		}
		reduced := full
		reduced[0].Effective, reduced[1].Effective = 0, 0
		err := os.NewSyscallError("capset", unix.Capset(&header, &reduced[0]))
		if err == nil {
			err = fn()
		}
		if unix.Capset(&header, &full[0]) == nil {
			runtime.UnlockOSThread()
		}
		// Otherwise the thread ends with this goroutine.
		done <- err
	}()
	return <-done
}
