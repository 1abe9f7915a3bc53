package confine

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// KeepCapabilities leaves the process those of its capabilities that are in keep (unix.CAP_...), in every thread. What a thread
// gives up here it can't have again. The error is unix.ENOTSUP in a program with cgo, where Go can't reach all threads.
//
// Programs that are executed afterwards get no more than that, unless they belong to another user or are run as root:
// that takes RefuseCalls.
func KeepCapabilities(keep ...int) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	var mask [2]uint32
	for _, capability := range keep {
		mask[capability/32] |= 1 << (capability % 32)
	}
	for i := range sets {
		sets[i].Permitted &= mask[i]
		sets[i].Effective &= mask[i]
		sets[i].Inheritable = 0
	}
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&sets[0])), 0)
	if errno != 0 {
		return fmt.Errorf("drop capabilities: %w", errno)
	}
	return nil
}
