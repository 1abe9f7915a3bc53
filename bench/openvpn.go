package bench

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// ErrNoOpenVPN says that neither the machine nor the test root has an OpenVPN that can offload its
// data channel to the ovpn family.
var ErrNoOpenVPN = errors.New("no OpenVPN 2.7 or later built with DCO")

// TestRoot is the directory of the tree that test/testroot/build.sh makes: $OVPN_GO_TESTROOT, or
// else ovpn-go/testroot in the system's cache directory for root and in the user's for others.
func TestRoot() string {
	if dir := os.Getenv("OVPN_GO_TESTROOT"); dir != "" {
		return dir
	}
	if os.Getuid() != 0 {
		if dir, err := os.UserCacheDir(); err == nil {
			return filepath.Join(dir, "ovpn-go", "testroot")
		}
	}
	return "/var/cache/ovpn-go/testroot"
}

// An OpenVPN is an openvpn program that was found.
type OpenVPN struct {
	// Root is the tree it lives in, "" for the machine itself.
	Root string
	// Version is the program's own version line.
	Version string
}

// FindOpenVPN looks for an openvpn that speaks the ovpn family, first in PATH, then in the test
// root. Its error is ErrNoOpenVPN with what was seen in each place.
func FindOpenVPN() (OpenVPN, error) {
	var seen []string
	for _, root := range []string{"", TestRoot()} {
		version, err := openvpnVersion(root)
		if err != nil {
			seen = append(seen, fmt.Sprintf("%s: %v", place(root), err))
			continue
		}
		if !speaksOvpn(version) {
			seen = append(seen, fmt.Sprintf("%s: %s", place(root), version))
			continue
		}
		return OpenVPN{Root: root, Version: version}, nil
	}
	return OpenVPN{}, fmt.Errorf("%w (%s)", ErrNoOpenVPN, strings.Join(seen, "; "))
}

// OpenVPNIn is FindOpenVPN for one tree only.
func OpenVPNIn(root string) (OpenVPN, error) {
	version, err := openvpnVersion(root)
	if err == nil && !speaksOvpn(version) {
		err = errors.New(version)
	}
	if err != nil {
		return OpenVPN{}, fmt.Errorf("%w (%s: %w)", ErrNoOpenVPN, place(root), err)
	}
	return OpenVPN{Root: root, Version: version}, nil
}

func place(root string) string {
	if root == "" {
		return "PATH"
	}
	return root
}

func openvpnVersion(root string) (string, error) {
	args := []string{"openvpn", "--version"}
	if root != "" {
		if _, err := os.Stat(root); err != nil {
			return "", err
		}
		args = append([]string{"chroot", root}, args...)
	}
	// OpenVPN up to 2.6 exits with 1 after printing its version.
	out, err := exec.Command(args[0], args[1:]...).Output()
	line, _, _ := strings.Cut(string(out), "\n")
	if !strings.HasPrefix(line, "OpenVPN") {
		if err == nil {
			err = fmt.Errorf("unknown version line %q", line)
		}
		return "", err
	}
	return line, nil
}

var versionLine = regexp.MustCompile(`^OpenVPN (\d+)\.(\d+).*\[DCO\]`)

// speaksOvpn reports whether the version line is of a program that uses the family "ovpn". 2.6 was
// built with DCO as well, but for the out-of-tree module's family.
func speaksOvpn(version string) bool {
	m := versionLine.FindStringSubmatch(version)
	if m == nil {
		return false
	}
	major, _ := strconv.Atoi(m[1])
	minor, _ := strconv.Atoi(m[2])
	return major > 2 || major == 2 && minor >= 7
}
