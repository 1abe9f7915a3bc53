#!/usr/bin/env bash
# Builds the tests' Debian tree if that is missing, and names what else `make test` needs and this machine lacks. It fails
# only if OVPN_GO_REQUIRE is set: otherwise the tests that need it are skipped, each with its reason.
set -euo pipefail

missing=()
need() { missing+=("$1"); }

go=${GO:-go}
command -v "$go" >/dev/null || { echo "make: Go is missing: https://go.dev/dl/" >&2; exit 1; }
command -v "${CC:-gcc}" >/dev/null || need "a C compiler, for the race detector: apt-get install gcc libc6-dev"
[ "$(id -u)" = 0 ] || need "root, for network namespaces and TUN devices"
[ -c /dev/net/tun ] || need "/dev/net/tun"

command -v cpio >/dev/null && command -v qemu-system-x86_64 >/dev/null ||
	need "an emulator for the kernel's own module: apt-get install --no-install-recommends cpio qemu-system-x86"

command -v crun >/dev/null || need "an OCI runtime, for containers: apt-get install --no-install-recommends crun"
command -v systemd-analyze >/dev/null && command -v systemd-socket-activate >/dev/null && command -v setpriv >/dev/null ||
	need "systemd's tools, for its units: apt-get install --no-install-recommends systemd util-linux"

if command -v mmdebstrap >/dev/null && [ "$(id -u)" = 0 ]; then
	[ -f "${OVPN_GO_TESTROOT:-/var/cache/ovpn-go/testroot}/.testroot" ] ||
		echo "The Debian tree with OpenVPN 2.7 is built first: 250 MB, about a minute."
	test/testroot/build.sh || need "the Debian tree with OpenVPN 2.7: test/testroot/build.sh has just said why"
else
	need "root and mmdebstrap, for a Debian tree with OpenVPN 2.7: apt-get install mmdebstrap"
fi

[ ${#missing[@]} -gt 0 ] || exit 0
echo "This machine lacks:" >&2
printf '  - %s\n' "${missing[@]}" >&2
if [ -n "${OVPN_GO_REQUIRE:-}" ]; then
	exit 1
fi
echo "The tests that need it are skipped." >&2
