package netlinksrv

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"ovpn-go/tun/netns"
)

// What a client asks of the real kernel is asked by a thread of ours, and the kernel looks at that thread's
// rights. The client must not gain any, so the thread first gives up what the client does not have.

// asSender runs fn with no more rights over the socket's namespace, and over our own, than task has. fn is a
// system call or two on the twin. The error is fn's, EPERM if the rights can't be given up, or why they are not known.
func (g *GenericSocket) asSender(task Task, fn func() error) error {
	rights, err := g.senderRights(task)
	if err != nil {
		return err
	}
	switch rights {
	case rightsAdmin:
		// Of the sender's capabilities we only know this one.
		return withCapabilities(1<<unix.CAP_NET_ADMIN, fn)
	case rightsNone:
		return withCapabilities(0, fn)
	}
	return unix.EPERM
}

type rights uint8

const (
	rightsAdmin   rights = iota // the sender has CAP_NET_ADMIN wherever we have it
	rightsNone                  // without capabilities we may do no more than the sender
	rightsTooMany               // we own the namespace, which is as good as all capabilities there
)

// senderRights compares the sender's rights with ours. A sender that is capable in its own namespaces only, such
// as root in a container, is treated as one without capabilities: families that guard against it look at the
// initial user namespace, and where it owns its namespace as the user we run as, we still own that too.
func (g *GenericSocket) senderRights(task Task) (rights, error) {
	there := task.MayAdmin(g.ns)
	if isShortage(there) {
		return rightsTooMany, there
	}
	if there != nil {
		if ownedByUs(g.ns) {
			return rightsTooMany, nil
		}
		return rightsNone, nil
	}
	switch here := task.MayAdmin(g.server.home); {
	case here == nil:
		return rightsAdmin, nil
	case isShortage(here):
		return rightsTooMany, here
	}
	return rightsNone, nil
}

// withCapabilities runs fn on a thread whose effective set has nothing but keep, a mask of the first 32
// capabilities.
func withCapabilities(keep uint32, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var full [2]unix.CapUserData
		if err := unix.Capget(&hdr, &full[0]); err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("read capabilities: %w", err)
			return
		}
		reduced := full
		reduced[0].Effective &= keep
		reduced[1].Effective = 0
		if err := unix.Capset(&hdr, &reduced[0]); err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("drop capabilities: %w", err)
			return
		}
		err := fn()
		if unix.Capset(&hdr, &full[0]) == nil {
			runtime.UnlockOSThread()
		}
		// Otherwise the thread stays locked and ends with this goroutine.
		done <- err
	}()
	return <-done
}

// ownedByUs reports whether the owner of a user namespace above ns is the user we run as, which makes us capable
// there without any capability (user_namespaces(7)).
func ownedByUs(ns *netns.NS) bool {
	own, err := os.Stat("/proc/self/ns/user")
	if err != nil {
		return true
	}
	userns, err := related(ns.File(), unix.NS_GET_USERNS)
	for depth := 0; depth < 32; depth++ { // namespaces nest no deeper
		if err != nil {
			// EPERM: beyond what is ours to see. Any other failure must not give rights away.
			return !errors.Is(err, unix.EPERM)
		}
		st, statErr := userns.Stat()
		if statErr == nil && os.SameFile(st, own) {
			userns.Close()
			return false
		}
		uid, uidErr := ownerOf(userns)
		if statErr != nil || uidErr != nil || uid == os.Geteuid() {
			userns.Close()
			return true
		}
		child := userns
		userns, err = related(child, unix.NS_GET_PARENT)
		child.Close()
	}
	return true
}

// related opens the namespace that a namespace file's ioctl leads to.
func related(file *os.File, request uint) (*os.File, error) {
	var fd int
	err := netns.Control(file, func(raw int) (err error) {
		fd, err = unix.IoctlRetInt(raw, request)
		return err
	})
	if err != nil {
		return nil, err
	}
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), "namespace"), nil
}

func ownerOf(userns *os.File) (uid int, err error) {
	err = netns.Control(userns, func(fd int) error {
		owner, err := unix.IoctlGetUint32(fd, unix.NS_GET_OWNER_UID)
		uid = int(owner)
		return err
	})
	return uid, err
}

// inNamespace runs fn on a thread in ns. Where that is the thread's own namespace it needs no right to enter it.
func inNamespace(ns *netns.NS, fn func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if here, err := netns.Current(); err == nil {
		here.Close()
		if here.ID() == ns.ID() {
			return fn()
		}
	}
	return ns.Do(fn)
}
