package tun

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Release is the version of a Linux kernel.
type Release struct{ Major, Minor, Patch int }

// RunningRelease returns the version of the running kernel; zero if it does not say. A distribution's kernel may
// hold corrections of later versions than it names.
func RunningRelease() Release {
	var name unix.Utsname
	if unix.Uname(&name) != nil {
		return Release{}
	}
	return ParseRelease(unix.ByteSliceToString(name.Release[:]))
}

// ParseRelease reads a version such as 6.8.0-45-generic or 7.1-rc3. Numbers that are missing are 0.
func ParseRelease(s string) (r Release) {
	_, _ = fmt.Sscanf(s, "%d.%d.%d", &r.Major, &r.Minor, &r.Patch)
	return r
}

// Before reports whether r is an earlier version than the given one.
func (r Release) Before(major, minor, patch int) bool {
	switch {
	case r.Major != major:
		return r.Major < major
	case r.Minor != minor:
		return r.Minor < minor
	}
	return r.Patch < patch
}

// losesUSO reports whether a kernel may lose UDP super-frames that are written to a TUN device: one that is forwarded
// into a VXLAN or Geneve tunnel vanishes before Linux 6.8.5, and 6.6.26 of its line.
func losesUSO(r Release) bool {
	return r.Before(6, 8, 5) && !(r.Major == 6 && r.Minor == 6 && r.Patch >= 26)
}
