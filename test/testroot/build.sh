#!/usr/bin/env bash
# Builds the test root: a Debian trixie tree with OpenVPN 2.7 (built with DCO), iproute2, iperf3 and the
# other programs the tests drive. The tests enter it with chroot.
#
#   build.sh [DIR]    build into DIR, unless DIR already holds a tree made by this very script;
#                     without DIR into $OVPN_GO_TESTROOT or root's cache directory
#
# The packages come from the mirror that apt on this machine is set up with.
set -euo pipefail

root=${1:-${OVPN_GO_TESTROOT:-/var/cache/ovpn-go/testroot}}
want=$(sha256sum "${BASH_SOURCE[0]}" | cut -d' ' -f1)
stamp=$root/.testroot

made() { [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; }

if made; then
	exit 0
fi
mkdir -p "$(dirname "$root")"
# Whoever comes second finds the tree made.
exec 9>"$root.lock"
flock 9
if made; then
	exit 0
fi
command -v mmdebstrap >/dev/null || {
	echo "test root: mmdebstrap is missing; install it with: apt-get install mmdebstrap" >&2
	exit 1
}

mirror=$(apt-get indextargets --format '$(SITE)' | grep -v -e security -e 'apt$' | sort -u | head -n1)
[ -n "$mirror" ] || {
	echo "test root: apt has no Debian mirror; run apt-get update first" >&2
	exit 1
}

# Built beside its final place and renamed, so that an interrupted build is never taken for a finished one.
tmp=$root.new
rm -rf --one-file-system "$tmp"

include=openvpn,iproute2,iperf3,iputils-ping,nftables,curl,openssl,procps,socat,tcpdump,libcap2-bin,util-linux
mmdebstrap --variant=minbase --skip=check/empty \
	--aptopt='Acquire::Check-Valid-Until "false"' \
	--aptopt='APT::Install-Recommends "false"' \
	--include="$include" \
	--setup-hook='mkdir -p "$1/etc/apt/preferences.d"
		printf "Package: openvpn\nPin: release n=trixie-backports\nPin-Priority: 990\n" >"$1/etc/apt/preferences.d/openvpn"' \
	--customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/* "$1"/usr/share/doc "$1"/usr/share/locale' \
	trixie "$tmp" \
	"deb $mirror trixie main" \
	"deb $mirror trixie-backports main"

version=$(chroot "$tmp" openvpn --version | head -n1)
case $version in
*"OpenVPN 2.7"*"[DCO]"*) ;;
*)
	echo "test root: expected OpenVPN 2.7 with DCO, the mirror has: $version" >&2
	exit 1
	;;
esac
echo "$want" >"$tmp/.testroot"
rm -rf --one-file-system "$root"
mv "$tmp" "$root"
echo "test root: $version"
