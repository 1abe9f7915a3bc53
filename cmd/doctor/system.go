package doctor

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv/client"
	"ovpn-go/tun"
)

// What the kernel and the interface must give.

func (Doctor) kernel() Finding {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return failed(fmt.Sprintf("uname: %v", err), "", "")
	}
	return judgeKernel(unix.ByteSliceToString(name.Release[:]))
}

func judgeKernel(release string) Finding {
	var major, minor int
	if n, _ := fmt.Sscanf(release, "%d.%d", &major, &minor); n != 2 {
		return degraded("Linux "+release, "its version can't be told", "")
	}
	at := func(wantMajor, wantMinor int) bool {
		return major > wantMajor || major == wantMajor && minor >= wantMinor
	}
	switch {
	case !at(5, 9):
		return failed("Linux "+release, execEffect, "use Linux 5.9 or later")
	case !at(6, 2):
		return degraded("Linux "+release, "UDP packets that leave the tunnel are written one by one", "use Linux 6.2 or later")
	}
	return ok("Linux %s", release)
}

func (Doctor) capabilities() Finding {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return failed(fmt.Sprintf("capget: %v", err), "", "")
	}
	has := func(capability uint) bool { return data[capability/32].Effective&(1<<(capability%32)) != 0 }
	if !has(unix.CAP_NET_ADMIN) {
		return failed("CAP_NET_ADMIN is missing", "no interface can be made or controlled",
			"run as root, add the capability NET_ADMIN to the container, or try it in namespaces of your own: unshare -Urn")
	}
	return ok("CAP_NET_ADMIN is there")
}

const tunPath = "/dev/net/tun"

func (Doctor) tunDevice() Finding {
	const effect = "no interface can be made"
	file, err := os.OpenFile(tunPath, os.O_RDWR, 0)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return failed("there is no "+tunPath, effect,
			"add the device to the container (--device "+tunPath+"), or elsewhere: modprobe tun; mkdir -p /dev/net; mknod "+tunPath+" c 10 200")
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return failed(fmt.Sprintf("%s: %v", tunPath, err), effect, "modprobe tun, on a kernel with CONFIG_TUN")
	case errors.Is(err, os.ErrPermission):
		return failed(tunPath+" can't be opened: permission denied", effect,
			"chmod 666 "+tunPath+" (making an interface takes CAP_NET_ADMIN anyway), or allow the device in the container's control group")
	case err != nil:
		return failed(err.Error(), effect, "")
	}
	file.Close()
	device, err := openTun()
	if err != nil {
		return failed(err.Error(), effect, "CAP_NET_ADMIN over the network namespace is needed")
	}
	if err := device.Close(); err != nil {
		return degraded(err.Error(), "an interface may be left", "")
	}
	return ok("interfaces can be made")
}

// openTun makes an interface that is gone when it is closed.
func openTun() (*tun.Device, error) { return tun.Open(tun.Config{Name: "doctor%d"}) }

func (Doctor) tunOffloads() Finding {
	device, err := openTun()
	if err != nil {
		return degraded("not known without an interface", "", "")
	}
	defer device.Close()
	features := device.Features()
	switch {
	case !features.TSO:
		return degraded("the TUN device has no super-frames, neither of TCP nor of UDP", "the tunnel works, but every packet is read and written by itself, much slower than otherwise", "use a kernel whose TUN driver has TUNSETOFFLOAD")
	case !features.USO:
		return degraded("the TUN device takes TCP super-frames but no UDP ones", "UDP inside the tunnel goes packet by packet", "use Linux 6.2 or later")
	}
	return ok("TCP and UDP super-frames")
}

// namespaces are entered when a client's device or socket is in another one than the program.
func (Doctor) namespaces() Finding {
	return onOwnThread(func() Finding {
		const effect = "a client, its device and its socket must all be in the network namespace of the program"
		file, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return degraded(err.Error(), effect, "mount /proc")
		}
		defer file.Close()
		if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
			return degraded(fmt.Sprintf("network namespaces can't be entered: %v", err), effect, "CAP_SYS_ADMIN in the container's user namespace makes it possible")
		}
		return ok("network namespaces can be entered")
	})
}

// kernelModule tries the real family with a request that takes the same rights as a client's.
func (Doctor) kernelModule() Finding {
	c, err := client.DialKernel()
	if err != nil {
		return degraded(err.Error(), "netlink does not work", "allow AF_NETLINK sockets in the container's seccomp profile")
	}
	defer c.Close()
	switch err := c.Usable(); {
	case errors.Is(err, client.ErrNoFamily):
		return ok("the kernel has no ovpn module; this program does its work")
	case errors.Is(err, unix.EPERM):
		return ok("the kernel has the ovpn module, and refuses it to this process; this program does its work")
	case err != nil:
		return degraded(err.Error(), "whether the kernel has the ovpn module is not known", "run `ovpn-go exec` with --datapath userspace")
	}
	return ok("the kernel has the ovpn module, and this process may use it; `exec` does, unless it is told --datapath userspace")
}

func readTrimmed(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
