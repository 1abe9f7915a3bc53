package netlinksrv

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"ovpn-go/tun/netns"
)

// targetNamespace finds where a link is to be made: in ns, or in another namespace, which then is the caller's to
// close.
func (s *Server) targetNamespace(task Task, ns *netns.NS, m *linkMessage) (target *netns.NS, foreign bool, errno unix.Errno) {
	var err error
	if a, ok := m.attrs[unix.IFLA_NET_NS_FD]; ok && len(a.payload) == 4 {
		var file *os.File
		if file, err = task.File(int(int32(a.u32()))); err == nil {
			target, err = netns.New(file)
		}
	} else if a, ok := m.attrs[unix.IFLA_NET_NS_PID]; ok && len(a.payload) == 4 {
		target, err = namespaceOfPID(task, a.u32())
	} else if id, ok := m.u32(unix.IFLA_TARGET_NETNSID); ok {
		target, err = namespaceOfID(ns, id)
	} else {
		return ns, false, 0
	}
	if err != nil {
		return nil, false, errnoOf(err, unix.EINVAL)
	}
	if err := checkNetworkNamespace(target); err != nil {
		target.Close()
		return nil, false, unix.EINVAL
	}
	if err := task.MayAdmin(target); err != nil {
		target.Close()
		return nil, false, errnoOf(err, unix.EPERM)
	}
	return target, true, 0
}

// checkNetworkNamespace makes sure that a client's descriptor is of the right type before it is entered.
func checkNetworkNamespace(ns *netns.NS) error {
	return netns.Control(ns.File(), func(fd int) error {
		kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
		if err == nil && kind != unix.CLONE_NEWNET {
			err = unix.EINVAL
		}
		return err
	})
}

// namespaceOfPID opens the network namespace of a process, whose number is one of the task's pid namespace.
func namespaceOfPID(task Task, pid uint32) (*netns.NS, error) {
	ours, err := os.Stat("/proc/self/ns/pid")
	if err != nil {
		return nil, err
	}
	theirs, err := os.Stat(fmt.Sprintf("/proc/%d/ns/pid", task.PID()))
	if err != nil {
		return nil, err
	}
	if !os.SameFile(ours, theirs) {
		return nil, unix.ESRCH
	}
	ns, err := netns.OfThread(int(pid))
	if errors.Is(err, unix.ENOENT) {
		return nil, unix.ESRCH
	}
	return ns, err
}

// namespaceIDExists reports whether a namespace knows another under a number.
func namespaceIDExists(ns *netns.NS, id uint32) bool {
	c, err := dialNetlink(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return false
	}
	defer c.close()
	var b builder
	b.buf = append(b.buf, unix.AF_UNSPEC, 0, 0, 0) // struct rtgenmsg, padded
	b.u32(nsidAttrID, id)
	_, err = c.ask(unix.RTM_GETNSID, 0, b.buf)
	return err == nil
}

// namespaceOfID opens the namespace that another knows under a number. Nothing leads from the one to the other, so it
// looks at all that have a process in them or a name. The error is EINVAL if there is none, as in the kernel, and
// EOPNOTSUPP if it can't be found.
func namespaceOfID(from *netns.NS, id uint32) (*netns.NS, error) {
	if !namespaceIDExists(from, id) {
		return nil, unix.EINVAL
	}
	c, err := dialNetlink(from, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer c.close()
	seen := map[netns.ID]bool{}
	for _, pattern := range []string{"/run/netns/*", "/proc/[0-9]*/ns/net"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		for _, path := range paths {
			ns, err := netns.Open(path)
			if err != nil {
				continue // its process has ended
			}
			if !seen[ns.ID()] {
				seen[ns.ID()] = true
				found := false
				_ = netns.Control(ns.File(), func(fd int) error {
					got, err := c.nsid(fd)
					found = err == nil && got == int32(id)
					return err
				})
				if found {
					return ns, nil
				}
			}
			ns.Close()
		}
	}
	return nil, unix.EOPNOTSUPP
}
