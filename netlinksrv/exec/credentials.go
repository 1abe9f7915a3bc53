package exec

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"ovpn-go/tun/netns"
)

// credentials are what decides over a thread's rights in a user namespace.
type credentials struct {
	effective uint64 // capability set
	uid, euid uint32 // in our user namespace
	userNS    namespaceID
}

// namespaceID identifies a namespace of any kind while it exists.
type namespaceID struct {
	dev, ino uint64
}

// credentials reads the thread's present credentials.
func (t *task) credentials() (credentials, error) {
	var userNS unix.Stat_t
	if err := unix.Stat("/proc/"+strconv.Itoa(t.tid)+"/ns/user", &userNS); err != nil {
		return credentials{}, os.NewSyscallError("stat user namespace", err)
	}
	status, err := t.status()
	if err != nil {
		return credentials{}, err
	}
	c, err := parseCredentials(status)
	c.userNS = namespaceID{userNS.Dev, userNS.Ino}
	return c, err
}

// parseCredentials takes the effective capabilities and user id from /proc/PID/status.
func parseCredentials(status []byte) (credentials, error) {
	effective, err := strconv.ParseUint(string(statusField(status, "CapEff")), 16, 64)
	if err != nil {
		return credentials{}, fmt.Errorf("effective capabilities: %w", err)
	}
	var uid, euid uint32
	if _, err := fmt.Sscan(string(statusField(status, "Uid")), &uid, &euid); err != nil {
		return credentials{}, fmt.Errorf("user ids: %w", err)
	}
	return credentials{effective: effective, uid: uid, euid: euid}, nil
}

// userNamespace is one link of the chain from a network namespace's owner to the initial one.
type userNamespace struct {
	id    namespaceID
	owner uint32 // uid that created it, in our user namespace
}

// mayAdmin is task.MayAdmin for who has the credentials.
func (c credentials) mayAdmin(ns *netns.NS) error {
	var chain []userNamespace
	err := netns.Control(ns.File(), func(fd int) (err error) {
		chain, err = owners(fd)
		return err
	})
	switch {
	case isShortage(err):
		return err
	case err != nil || !c.adminOver(chain):
		return unix.EPERM
	}
	return nil
}

// adminOver is the kernel's cap_capable: a capability counts in the credentials' own user
// namespace and below it, and who created a user namespace from its parent has them all in it.
// chain leads from the namespace in question upwards, as far as it can be seen.
func (c credentials) adminOver(chain []userNamespace) bool {
	for i, ns := range chain {
		if ns.id == c.userNS {
			return c.effective&(1<<unix.CAP_NET_ADMIN) != 0
		}
		if i+1 < len(chain) && chain[i+1].id == c.userNS && ns.owner == c.euid {
			return true
		}
	}
	return false
}

// owners returns the user namespace that owns a network namespace, its parent and so on. It ends
// at the initial one, or at our own, beyond which we can't see.
func owners(nsfd int) ([]userNamespace, error) {
	var chain []userNamespace
	fd, err := unix.IoctlRetInt(nsfd, unix.NS_GET_USERNS)
	if err != nil {
		return nil, os.NewSyscallError("ioctl NS_GET_USERNS", err)
	}
	for {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			unix.Close(fd)
			return nil, os.NewSyscallError("fstat", err)
		}
		link := userNamespace{id: namespaceID{st.Dev, st.Ino}}
		link.owner, err = unix.IoctlGetUint32(fd, unix.NS_GET_OWNER_UID)
		if err != nil {
			unix.Close(fd)
			return nil, os.NewSyscallError("ioctl NS_GET_OWNER_UID", err)
		}
		chain = append(chain, link)
		parent, err := unix.IoctlRetInt(fd, unix.NS_GET_PARENT)
		unix.Close(fd)
		if errors.Is(err, unix.EPERM) {
			return chain, nil
		}
		if err != nil {
			return nil, os.NewSyscallError("ioctl NS_GET_PARENT", err)
		}
		fd = parent
	}
}
