#!/usr/bin/env bash
# Builds the test root: a Debian trixie tree with OpenVPN 2.7 (built with DCO), iproute2, iperf3 and the
# other programs the tests drive, and with OpenVPN 2.6 in /opt/openvpn-2.6. The tests enter it with chroot.
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
	--customize-hook='cd "$1"/opt
		APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get download openvpn/trixie
		dpkg-deb -x openvpn_2.6*.deb openvpn-2.6
		rm openvpn_2.6*.deb' \
	--customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/* "$1"/usr/share/doc "$1"/usr/share/locale' \
	trixie "$tmp" \
	"deb $mirror trixie main" \
	"deb $mirror trixie-backports main"

# has COMMAND VERSION: whether that OpenVPN is of that version and was built with DCO. Up to 2.6 it exits with 1 after
# printing its version.
has() {
	version=$( (chroot "$tmp" "$1" --version || true) | head -n1)
	case $version in
	*"OpenVPN $2"*"[DCO]"*) ;;
	*)
		echo "test root: expected OpenVPN $2 with DCO, the mirror has: $version" >&2
		exit 1
		;;
	esac
}
has /opt/openvpn-2.6/usr/sbin/openvpn 2.6
has openvpn 2.7
echo "$want" >"$tmp/.testroot"
rm -rf --one-file-system "$root"
mv "$tmp" "$root"
echo "test root: $version"
